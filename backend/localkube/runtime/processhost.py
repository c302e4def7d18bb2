"""The `process` host: one operating-system process a program, adopted by the next runtime when this one is killed."""

from __future__ import annotations

import functools
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from backend.api.fleet import Pod
from backend.core import life, processes
from backend.core.clock import Clock, SystemClock
from backend.localkube.runtime import commands, podlogs, record
from backend.localkube.runtime.addresses import Address
from backend.localkube.runtime.hosts import Report, how_it_ended
from backend.localkube.runtime.model import Exited, PodSpec, Started, Tracked

log = logging.getLogger(__name__)


class ProcessHost:
    """Starts processes whose output goes to STATE/pods/, and notices their end. Not thread-safe: one event loop."""

    scheme = "process"
    probed = True
    lasting = True

    def __init__(self, state: Path, engines: Mapping[str, Sequence[str]], stack: str, clock: Clock | None = None) -> None:
        self._state, self._engines, self._stack = state, engines, stack
        self._clock = clock or SystemClock()
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        self.watches: dict[int, Callable[[], None]] = {}
        (state / "pods").mkdir(mode=0o700, parents=True, exist_ok=True)

    def start(self, spec: PodSpec, address: Address, report: Report) -> Started:
        extra = {processes.STACK: self._stack}
        pass_fds = []
        if (life_fd := life.inherited_life_fd()) is not None:
            extra[life.LIFE_FD] = str(life_fd)
            pass_fds.append(life_fd)
        argv = commands.argv(spec, address, self._engines)
        environment = commands.environment(spec, os.environ, extra)
        child = processes.spawn(argv, env=environment, log=podlogs.path(self._state, spec.name), pass_fds=pass_fds)
        self.children[child.pid] = child
        self._watch(spec.name, child.pid, report)
        return Started(child.pid, processes.started_at(child.pid) or self._clock.now())

    def adopt(self, pod: Pod, report: Report) -> bool:
        if not record.still_runs(pod):
            return False
        self._watch(pod.name, pod.pid, report)
        return True

    def terminate(self, pod: Tracked) -> None:
        """The process itself only, as in a container: what it started is its own business until SIGKILL."""
        try:
            os.kill(pod.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass

    def kill(self, pod: Tracked) -> None:
        if pod.pid:
            processes.signal_group(pod.pid, signal.SIGKILL)

    def sweep(self, known: set[int]) -> None:
        for pid in record.strays(self._stack, known) if self._stack else []:
            log.warning("process %d is a pod of this stack that no record names: ended", pid)
            processes.signal_group(pid, signal.SIGKILL)

    def last_words(self, name: str) -> str:
        return podlogs.last_words(podlogs.path(self._state, name))

    def _watch(self, name: str, pid: int, report: Report) -> None:
        self.watches[pid] = processes.watch_exit(pid, functools.partial(self._ended, name, pid, report))

    def _ended(self, name: str, pid: int, report: Report) -> None:
        """A process is gone. What it left in its group goes too: before the number is given back, so that nobody else is hit."""
        processes.signal_group(pid, signal.SIGKILL)
        child = self.children.pop(pid, None)
        code = child.wait() if child is not None else None
        self.watches.pop(pid, None)
        words = self.last_words(name)
        report(Exited(how_it_ended(code) + (f"; last line of its log: {words}" if words else ""), code, self._clock.now()))
