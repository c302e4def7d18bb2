"""Starts a stack in the background for somebody who needs one, such as `connect()` in a notebook."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from backend.api.endpoints import Endpoints
from backend.core import files, life
from backend.core.errors import EnvironmentProblem, UsageError, WorkbenchError
from backend.launch import look
from backend.launch.options import DEFAULT_STATE, UpOptions

_pipes: list[life.LifePipe] = []
"""Kept open as long as this process lives: their closing ends the stacks that were started for it."""


def detached(
    state: Path | str = DEFAULT_STATE, options: UpOptions | None = None, *, keep: bool = False, timeout_s: float = 90.0
) -> Endpoints:
    """Start `up` in the background and wait until it is ready. End it with `down(state)`.

    It ends with this process, however that ends, unless `keep`. Raises what `up` would have raised.
    """
    from backend.launch.__main__ import arguments

    chosen = options or UpOptions()
    folder = files.ensure_folder(Path(state).expanduser()).resolve()
    log = files.ensure_folder(folder / "logs") / "up.log"
    pipe = life.LifePipe()
    env = dict(os.environ)
    env.pop(life.LIFE_FD, None)
    with open(log, "ab", buffering=0) as output:
        began = output.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "backend.launch", *arguments(chosen, folder)],
            env=env if keep else pipe.env(env),
            pass_fds=() if keep else (pipe.read_fd,),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    if keep:
        pipe.close()
    else:
        _pipes.append(pipe)
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        endpoints = look.find(folder)
        if endpoints is not None and endpoints.pid == child.pid:
            return endpoints
        if child.poll() is not None:
            raise _failure(child.returncode, log, began)
        time.sleep(0.05)
    child.terminate()
    child.wait()
    raise EnvironmentProblem(f"The stack in {folder} was not ready after {timeout_s:g} s.", fix=f"See {log}.")


def _failure(code: int, log: Path, began: int) -> WorkbenchError:
    with open(log, "rb") as said:
        said.seek(began)
        lines = said.read().decode(errors="replace").strip().splitlines()
    problem = [line for line in lines if line.startswith("error: ")] or lines[-3:]
    at = lines.index(problem[0]) if problem else 0
    message = "\n".join(lines[at:]).removeprefix("error: ") or f"`up` ended with exit code {code}."
    return UsageError(message) if code == 2 else EnvironmentProblem(message, fix=f"See {log}.")
