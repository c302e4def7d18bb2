"""One supervisor a process: no orphan task, no silent death.

A task that dies is logged once with its traceback and, by its policy, started again with back-off or taken as the end of the
process. Blocking work belongs to threads (`asyncio.to_thread`), never to a task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Literal

log = logging.getLogger(__name__)

OnDeath = Literal["restart", "stop"]
TaskBody = Callable[[], Awaitable[None]]

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0
HEALTHY_AFTER_S = 30.0
CANCEL_AGAIN_S = 1.0


class Supervisor:
    """Owns the background tasks of a process.

    >>> async def body() -> None: ...
    >>> async def process() -> None:
    ...     async with Supervisor("kvindex") as tasks:
    ...         tasks.start("sources", body)
    ...         await tasks.wait_stopped()
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.restarts: dict[str, int] = {}
        self.failure: BaseException | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopped = asyncio.Event()

    async def __aenter__(self) -> Supervisor:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def start(self, name: str, body: TaskBody, *, on_death: OnDeath = "restart") -> None:
        """Run `body()` until it returns. A name is used by one task at a time; a second start replaces nothing and raises."""
        running = self._tasks.get(name)
        if running is not None and not running.done():
            raise RuntimeError(f"task {name!r} of {self.name} runs already")
        self._tasks[name] = asyncio.create_task(self._keep(name, body, on_death), name=f"{self.name}:{name}")

    async def cancel(self, name: str) -> None:
        """End one task and wait for its clean-up; unknown names are fine."""
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def stop(self, failure: BaseException | None = None) -> None:
        """Ask the process to end; `wait_stopped` returns, or raises `failure`."""
        self.failure = self.failure or failure
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    async def wait_stopped(self) -> None:
        await self._stopped.wait()
        if self.failure is not None:
            raise self.failure

    async def close(self) -> None:
        """End every task and wait for its clean-up. A cancellation that a library swallowed (CPython 3.11's `wait_for`) is repeated."""
        pending = set(self._tasks.values())
        self._tasks.clear()
        while pending:
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)

    async def _keep(self, name: str, body: TaskBody, on_death: OnDeath) -> None:
        delay = FIRST_DELAY_S
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                await body()
                if self._tasks.get(name) is asyncio.current_task():
                    del self._tasks[name]  # or names that are used once would gather
                return
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if on_death == "stop":
                    log.exception("task %s of %s died, the process ends", name, self.name)
                    self.stop(error)
                    return
                if loop.time() - started > HEALTHY_AFTER_S:
                    delay = FIRST_DELAY_S
                self.restarts[name] = self.restarts.get(name, 0) + 1
                log.exception("task %s of %s died, next try in %.1f s", name, self.name, delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY_S)
