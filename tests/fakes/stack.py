"""A whole running stack for tests: `python -m workbench up` on scratch ports and a scratch state folder, nothing replaced.

`running_stack()` is one for the whole test session, to look at: the sample fleet, dashboard and gentle traffic. `own_stack(folder)`
starts another one to do harm to.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec

from backend.api.endpoints import Endpoints
from backend.api.fleet import Pod
from backend.core import files, life, processes
from backend.launch import look
from backend.launch.model import StackStatus
from backend.localkube.fleet_file import SAMPLE
from tests.fakes import ports

RUN_TIME_FILES = ("lock", "endpoints.json", "pods.json", "processes.json")
SMALL_FLEET = """\
pods:
  - name: vllm-{i}
    replicas: %d
    version: 0.32.0
    model: qwen3-8b
    args: {block-size: 64, num-blocks: 4096, speed: %g}
"""


@dataclass
class RunningStack:
    """A stack that is ready, and how to reach and to end it."""

    endpoints: Endpoints
    process: subprocess.Popen[str]
    state: Path
    port_base: int
    ready_after_s: float
    output: Path
    _client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self._client = httpx.Client(timeout=10.0, headers={"Authorization": f"Bearer {self.token}"})

    @property
    def token(self) -> str:
        return Path(self.endpoints.token_file).read_text().strip()

    def get(self, part: str, path: str) -> httpx.Response:
        """GET from a part, with the stack's token."""
        return self._client.get(f"{getattr(self.endpoints, part)}{path}")

    def pods(self) -> list[Pod]:
        return msgspec.json.decode((self.state / "pods.json").read_bytes(), type=list[Pod])

    def status(self) -> StackStatus:
        found = look.status(self.state, sample_s=0.0)
        assert found is not None, "the stack is gone"
        return found

    def pid(self, name: str) -> int:
        """Process of a part or pod; 0 while there is none."""
        return next(row.pid for row in self.status().processes if row.name == name)

    def said(self) -> str:
        """What `up` printed so far."""
        return self.output.read_text()

    def stop(self, number: signal.Signals = signal.SIGINT, *, timeout_s: float = 15.0) -> float:
        """Ask the stack to end and wait for it; gives the seconds that it took."""
        self._client.close()
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(timeout_s)
        return time.monotonic() - began

    def leftovers(self) -> list[str]:
        """Everything that a stopped stack should not have left: processes, sockets, shared files, run-time files."""
        found = [f"process {pid}" for pid in processes.of_stack(str(self.state))]
        found += [f"port {self.port_base + offset}" for offset in range(ports.STEP) if _is_listening(self.port_base + offset)]
        kept = [files.shared_folder(self.state), *(self.state / name for name in RUN_TIME_FILES)]
        return found + [str(path) for path in kept if path.exists()]


def command(state: Path, port_base: int, *more: str) -> list[str]:
    """The command line of a stack."""
    return [sys.executable, "-m", "workbench", "up", "--state", str(state), "--port-base", str(port_base), *more]


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would connect a test with the machine's own stack."""
    kept = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "WORKBENCH_STATE", life.LIFE_FD)}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


@functools.cache
def running_stack() -> Endpoints:
    """The session's stack; started at the first call, ended when the test run ends."""
    context = own_stack(Path(tempfile.mkdtemp(prefix="workbench-test-")), fleet=SAMPLE)
    stack = context.__enter__()
    atexit.register(_end, context, stack)
    return stack.endpoints


def _end(context: AbstractContextManager[RunningStack], stack: RunningStack) -> None:
    context.__exit__(None, None, None)
    shutil.rmtree(stack.state.parent, ignore_errors=True)


@contextmanager
def own_stack(
    folder: Path, *more: str, pods: int = 2, speed: float = 20.0, fleet: Path | None = None, env: dict[str, str] | None = None
) -> Iterator[RunningStack]:
    """Start a stack below `folder`, wait until it is ready, and end it at the end whatever happened."""
    state, port_base = folder / "state", ports.free_base(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fleet_file = fleet or folder / "fleet.yaml"
    if fleet is None:
        fleet_file.write_text(SMALL_FLEET % (pods, speed))
    output = folder / "up.txt"
    began = time.monotonic()
    with open(output, "w") as out:
        words = command(state, port_base, "--fleet", str(fleet_file), *more)
        process = subprocess.Popen(words, stdout=out, stderr=out, text=True, env=environment(**(env or {})), start_new_session=True)
    try:
        endpoints = _wait_ready(process, state, output)
        stack = RunningStack(endpoints, process, state, port_base, time.monotonic() - began, output)
        try:
            yield stack
        finally:
            stack.stop()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def refused(state: Path, port_base: int, *more: str, env: dict[str, str] | None = None, timeout_s: float = 60.0) -> tuple[int, str]:
    """Run a stack that should not come up; gives exit code and what it said."""
    words = command(state, port_base, "--exit-after", "0.1", "--no-traffic", *more)
    done = subprocess.run(words, capture_output=True, text=True, env=environment(**(env or {})), timeout=timeout_s, check=False)
    return done.returncode, done.stdout + done.stderr


def _wait_ready(process: subprocess.Popen[str], state: Path, output: Path, *, timeout_s: float = 90.0) -> Endpoints:
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        endpoints = look.find(state)
        if endpoints is not None and endpoints.pid == process.pid:
            return endpoints
        if process.poll() is not None:
            raise AssertionError(f"`up` ended with {process.returncode}:\n{output.read_text()}")
        time.sleep(0.02)
    process.terminate()
    process.wait(15)
    raise AssertionError(f"`up` was not ready after {timeout_s:g} s:\n{output.read_text()}")


def _is_listening(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
