"""Keys that want work: each at most once in the queue and never with two workers at a time.

The rules are those of client-go's work queue. A key that is added while it is worked on waits until its worker is done, then comes
again: the worker may have read the state before the change. Adds within the coalescing window become one.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from backend.kube.backoff import Backoff
from backend.kube.figures import KubeFigures

KeyT = TypeVar("KeyT", bound=Hashable)

COALESCE_S = 0.05
RETRY = Backoff(first_s=0.05, longest_s=60.0)


class WorkQueue(Generic[KeyT]):
    """For one event loop; nothing here may be called from another thread.

    >>> async def worker(queue: "WorkQueue[str]") -> None:
    ...     while True:
    ...         key = await queue.get()
    ...         try:
    ...             ...  # work, then
    ...             queue.forget(key)
    ...         finally:
    ...             queue.done(key)
    """

    def __init__(
        self, name: str = "queue", *, coalesce_s: float = COALESCE_S, backoff: Backoff = RETRY, figures: KubeFigures | None = None
    ) -> None:
        self.name, self.coalesce_s, self.backoff = name, coalesce_s, backoff
        figures = figures or KubeFigures()
        self._depth = figures.queue_depth.labels(name)
        self._wait = figures.queue_wait.labels(name)
        self._work = figures.queue_work.labels(name)
        self._retries = figures.queue_retries.labels(name)
        self._due: dict[KeyT, float] = {}
        """When a waiting key is due, by the loop's clock. Entries of the heap that say otherwise are stale."""
        self._heap: list[tuple[float, int, KeyT]] = []
        self._sequence = 0
        self._working: dict[KeyT, float] = {}
        self._failures: dict[KeyT, int] = {}
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Keys that wait, due or not, those added during work included."""
        return len(self._due)

    def add(self, key: KeyT) -> None:
        """Ask for work on `key` after the coalescing window."""
        self.add_after(key, self.coalesce_s)

    def add_after(self, key: KeyT, seconds: float) -> None:
        """Ask for work on `key` in `seconds`; an earlier date that already stands is kept."""
        due = asyncio.get_running_loop().time() + max(seconds, 0.0)
        known = self._due.get(key)
        if known is not None and known <= due:
            return
        self._due[key] = due
        self._depth.set(len(self._due))
        if key not in self._working:
            self._push(key, due)

    def retry(self, key: KeyT) -> None:
        """Work on `key` failed: ask again after its own back-off, which doubles until `forget`."""
        self._failures[key] = self._failures.get(key, 0) + 1
        self._retries.inc()
        self.add_after(key, self.backoff.delay(self._failures[key]))

    def forget(self, key: KeyT) -> None:
        """Work on `key` succeeded: the next failure is the first again."""
        self._failures.pop(key, None)

    def failures(self, key: KeyT) -> int:
        """Failures in a row, for log lines and statuses."""
        return self._failures.get(key, 0)

    async def get(self) -> KeyT:
        """The key that has been due for longest. Every get is answered by one `done`."""
        loop = asyncio.get_running_loop()
        while True:
            key = self._take(loop.time())
            if key is not None:
                return key[0]
            waiter = loop.create_future()
            self._waiters.append(waiter)
            self._arm()
            try:
                await waiter
            except asyncio.CancelledError:
                # A wake-up that came together with the cancellation belongs to the next worker.
                if waiter.done() and not waiter.cancelled():
                    self._wake()
                elif waiter in self._waiters:
                    self._waiters.remove(waiter)
                raise

    def done(self, key: KeyT) -> None:
        """The worker has finished with `key`, well or not. What was added meanwhile becomes available."""
        started = self._working.pop(key, None)
        if started is None:
            raise RuntimeError(f"{key!r} of queue {self.name} is not being worked on")
        self._work.observe(asyncio.get_running_loop().time() - started)
        due = self._due.get(key)
        if due is not None:
            self._push(key, due)

    def _push(self, key: KeyT, due: float) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (due, self._sequence, key))
        if self._heap[0][1] == self._sequence:
            self._arm()

    def _take(self, now: float) -> tuple[KeyT] | None:
        """The first due key, now being worked on; in a tuple, since None may be a key."""
        self._drop_stale()
        if not self._heap or self._heap[0][0] > now:
            return None
        due, _, key = heapq.heappop(self._heap)
        del self._due[key]
        self._working[key] = now
        self._depth.set(len(self._due))
        self._wait.observe(max(now - due, 0.0))
        if self._waiters:
            self._arm()
        return (key,)

    def _drop_stale(self) -> None:
        while self._heap and (self._heap[0][2] in self._working or self._due.get(self._heap[0][2]) != self._heap[0][0]):
            heapq.heappop(self._heap)

    def _arm(self) -> None:
        """Wake a waiting worker when the first key is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._drop_stale()
        if self._heap and self._waiters:
            self._timer = asyncio.get_running_loop().call_at(self._heap[0][0], self._wake)

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
