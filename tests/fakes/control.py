"""Control as a process of its own, for tests that kill it, and as an object with a port, for those that only ask it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.fakes.valkey import free_port


class ControlProcess:
    """`python -m backend.control` on a free port with its own state folder; can be killed and started again."""

    def __init__(self, state: Path, *, redis_url: str = "", kvindex_port: int = 1, gateway_port: int = 1, more: str = "") -> None:
        self.state = state
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = state.parent / f"{state.name}.toml"
        self.log = state.parent / f"{state.name}.log"
        self.config.write_text(
            f'state = "{state}"\nkvindex_url = "http://127.0.0.1:{kvindex_port}"\ngateway_url = "http://127.0.0.1:{gateway_port}"\n'
            f'[listen]\nport = {self.port}\n[records]\nredis_url = "{redis_url}"\n{more}'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, timeout_s: float = 20.0) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "backend.control", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stderr=log, stdout=log)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                httpx.get(f"{self.url}/healthz", trust_env=False)
                return
            except httpx.HTTPError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise TimeoutError(f"control does not answer: {self.log.read_text()}") from None
                time.sleep(0.05)

    def get(self, path: str, **params: object) -> httpx.Response:
        token = (self.state / "token").read_text().strip()
        query = {name: str(value) for name, value in params.items()}
        return httpx.get(self.url + path, params=query, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=15)

    def kill(self) -> None:
        """As `kill -9` does it."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self, timeout_s: float = 5.0) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(timeout_s)
        self.process = None
        return code

    def resident_bytes(self) -> int:
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")
