"""The `inprocess` host: programs as objects in this process' event loop, on real sockets. Hundreds of them in a test."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from backend.api.fleet import Pod
from backend.core.clock import Clock, SystemClock
from backend.core.errors import WorkbenchError
from backend.localkube.runtime import commands
from backend.localkube.runtime.addresses import Address
from backend.localkube.runtime.hosts import Report, how_it_ended
from backend.localkube.runtime.model import Exited, PodSpec, Started, Tracked

log = logging.getLogger(__name__)

KILLED, REFUSED, CRASHED = -9, 2, 1
"""Exit codes of what did not end by itself: killed, wrong options or no port, an error that nobody expected."""


class Program(Protocol):
    """What `python -m MODULE` would be, as an object. `backend.simulate.engine.server.EngineServer` is one."""

    async def start(self) -> None: ...

    async def run(self) -> None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


Build = Callable[[Sequence[str]], Awaitable[Program]]
"""Makes a program from the arguments behind `python -m MODULE`. Raises WorkbenchError for wrong ones."""


class InProcessHost:
    """`modules` says how each module of the command lines is built here; handed in, since a runtime knows no engine."""

    scheme = "inprocess"
    probed = True
    lasting = False

    def __init__(
        self, modules: Mapping[str, Build], engines: Mapping[str, Sequence[str]] | None = None, clock: Clock | None = None
    ) -> None:
        self._modules, self._engines = modules, engines or {}
        self._clock = clock or SystemClock()
        self._numbers = itertools.count(1)
        self._tasks: dict[int, asyncio.Task[int]] = {}
        self._programs: dict[int, Program] = {}

    def start(self, spec: PodSpec, address: Address, report: Report) -> Started:
        argv = commands.argv(spec, address, {})
        build = self._modules.get(argv[2]) if argv[1:2] == ["-m"] else None
        if build is None:
            raise OSError(f"{' '.join(argv[:3])} cannot run in this process, only {', '.join(sorted(self._modules))} can")
        number = next(self._numbers)
        task = asyncio.get_running_loop().create_task(self._run(number, build, argv[3:]), name=f"pod {spec.name}")
        self._tasks[number] = task
        task.add_done_callback(functools.partial(self._ended, number, report))
        return Started(number, self._clock.now())

    def adopt(self, pod: Pod, report: Report) -> bool:
        return False

    def terminate(self, pod: Tracked) -> None:
        program = self._programs.get(pod.pid)
        if program is not None:
            program.stop()
        else:
            self.kill(pod)

    def kill(self, pod: Tracked) -> None:
        task = self._tasks.get(pod.pid)
        if task is not None:
            task.cancel()

    def sweep(self, known: set[int]) -> None:
        """Nothing of it outlives this process."""

    def last_words(self, name: str) -> str:
        return ""

    async def _run(self, number: int, build: Build, arguments: Sequence[str]) -> int:
        try:
            program = await build(arguments)
            await program.start()
        except WorkbenchError as error:
            log.warning("a program in this process did not start: %s", error)
            return REFUSED
        self._programs[number] = program
        try:
            await program.run()
            return 0
        finally:
            program.close()

    def _ended(self, number: int, report: Report, task: asyncio.Task[int]) -> None:
        del self._tasks[number]
        self._programs.pop(number, None)
        if task.cancelled():
            code = KILLED
        elif (error := task.exception()) is not None:
            log.error("a program in this process crashed", exc_info=error)
            code = CRASHED
        else:
            code = task.result()
        report(Exited(how_it_ended(code), code, self._clock.now()))
