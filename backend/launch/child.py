"""One part as a process: started, watched, started again with back-off when it dies, ended. Tells what happens, decides nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from backend.core import processes
from backend.launch.parts import Part
from backend.localkube.runtime import podlogs

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 10.0
HEALTHY_S = 30.0
FAILING_AFTER = 3
"""Deaths within HEALTHY_S each after which a part counts as failing and the end of its log is shown."""
USAGE_EXIT = 2
"""Exit code of a part that was started wrongly: starting it again changes nothing."""

ChildState = Literal["starting", "ready", "backoff", "stopped"]
OnDeath = Callable[["Child", str], None]


class Child:
    """A part of a running stack. Call from one event loop only."""

    def __init__(self, part: Part, *, env: Mapping[str, str], pass_fds: Sequence[int], log_file: Path, on_death: OnDeath) -> None:
        self.part = part
        self.state: ChildState = "stopped"
        self.restarts = 0
        self.deaths_in_a_row = 0
        self.exit_code: int | None = None
        self.started_at = 0.0
        self.log_file = log_file
        self._env, self._pass_fds, self._on_death = env, pass_fds, on_death
        self._process: subprocess.Popen[bytes] | None = None
        self._stop_watching: Callable[[], None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._ended = asyncio.Event()
        self._wanted = False

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start the process now. Raises OSError when the system refuses."""
        self._wanted = True
        self._again = None
        self._ended.clear()
        self._process = processes.spawn(
            self.part.argv, env=self._env, log=self.log_file, pass_fds=self._pass_fds, die_with_parent=self.part.foreign
        )
        self.state, self.started_at = "starting", time.time()
        self._stop_watching = processes.watch_exit(self._process.pid, self._died)

    def became_ready(self) -> None:
        self.state = "ready"

    async def stop(self, patience_s: float) -> bool:
        """SIGTERM, then SIGKILL to its group after `patience_s`; returns when it is gone, and whether it had to be killed."""
        self._wanted = False
        if self._again is not None:
            self._again.cancel()
        if self._process is None:
            self.state = "stopped"
            return False
        self._process.terminate()
        try:
            await asyncio.wait_for(self._ended.wait(), patience_s)
        except TimeoutError:
            self.kill()
            await self._ended.wait()
            return True
        return False

    def kill(self) -> None:
        if self._process is not None:
            processes.signal_group(self._process.pid, signal.SIGKILL)

    def last_words(self, lines: int = 15) -> str:
        """The end of its log."""
        return podlogs.tail(self.log_file, lines)

    def _died(self) -> None:
        process = self._process
        if process is None:
            return
        if not self._wanted:
            # What it left in its group goes with it; before its number is given back.
            processes.signal_group(process.pid, signal.SIGKILL)
        self.exit_code = process.wait()
        self._process, self._stop_watching = None, None
        self._ended.set()
        if not self._wanted:
            self.state = "stopped"
            return
        healthy = time.time() - self.started_at >= HEALTHY_S
        self.deaths_in_a_row = 1 if healthy else self.deaths_in_a_row + 1
        self.state = "backoff"
        self._on_death(self, describe_exit(self.exit_code))

    def start_again(self) -> float:
        """Start it after its back-off; gives the wait. Called by whoever was told of the death."""
        wait_s = min(FIRST_BACKOFF_S * 2.0 ** min(self.deaths_in_a_row - 1, 10), LONGEST_BACKOFF_S)
        self.restarts += 1
        self._again = asyncio.get_running_loop().call_later(wait_s, self._restart)
        return wait_s

    def _restart(self) -> None:
        try:
            self.start()
        except OSError as error:
            self.deaths_in_a_row += 1
            self.state = "backoff"
            self._on_death(self, f"could not be started: {error.strerror or error}")


def describe_exit(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def base_environment(stack: str, cache: Path) -> dict[str, str]:
    """Environment of every part: ours, the stack's mark, and small thread pools. Numba and polars would otherwise take one thread a
    core and tens of megabytes each for work of microseconds."""
    defaults = {
        "NUMBA_CACHE_DIR": str(cache),
        "POLARS_MAX_THREADS": "2",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
    }
    return {**defaults, **os.environ, processes.STACK: stack}
