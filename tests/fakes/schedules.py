"""Schedules in memory with leases on the loop's clock, for virtual time; and a writer that only notes what it would write.

`tests/behaviour/test_schedules_in_redis.py` holds this store and the real one to the same sentences.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from backend.api.reports import ReportRun, Schedule
from backend.core.errors import Unavailable


class MemorySchedules:
    """One server that any number of schedulers share; `away` makes it refuse."""

    def __init__(self) -> None:
        self.broken: dict[str, str] = {}
        self.away = False
        self.table: dict[str, Schedule] = {}
        self.handled: dict[str, float] = {}
        self._made: set[str] = set()
        self._claims: dict[str, tuple[int, float]] = {}
        self._fence = 0

    async def _answer(self) -> float:
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("The server of the schedules is away.")
        return asyncio.get_running_loop().time()

    async def all(self) -> dict[str, Schedule]:
        await self._answer()
        return dict(self.table)

    async def done(self) -> dict[str, float]:
        await self._answer()
        return dict(self.handled)

    async def add(self, schedule: Schedule) -> bool:
        await self._answer()
        if schedule.id in self.table:
            return False
        self.table[schedule.id] = schedule
        self.handled[schedule.id] = schedule.created_at
        return True

    async def add_once(self, schedule: Schedule) -> bool:
        await self._answer()
        if schedule.id in self._made:
            return False
        self._made.add(schedule.id)
        return await self.add(schedule)

    async def remove(self, schedule_id: str) -> bool:
        await self._answer()
        self.handled.pop(schedule_id, None)
        self._claims.pop(schedule_id, None)
        return self.table.pop(schedule_id, None) is not None

    async def claim(self, schedule_id: str, due: float, lease_s: float) -> int:
        now = await self._answer()
        if schedule_id not in self.table or self.handled.get(schedule_id, due - 1) >= due or self._holder(schedule_id, now):
            return 0
        self._fence += 1
        self._claims[schedule_id] = (self._fence, now + lease_s)
        return self._fence

    async def renew(self, schedule_id: str, fence: int, lease_s: float) -> bool:
        now = await self._answer()
        if self._holder(schedule_id, now) != fence:
            return False
        self._claims[schedule_id] = (fence, now + lease_s)
        return True

    async def finish(self, schedule_id: str, due: float, fence: int) -> bool:
        now = await self._answer()
        if self._holder(schedule_id, now) != fence:
            return False
        self.handled[schedule_id] = due
        del self._claims[schedule_id]
        return True

    async def close(self) -> None:
        return None

    def _holder(self, schedule_id: str, now: float) -> int:
        fence, until = self._claims.get(schedule_id, (0, 0.0))
        return fence if until > now else 0


class NotedReports:
    """Takes `takes_s` for a report and shows it by noting it in `shown`, which several writers may share as they share a disk."""

    def __init__(self, shown: dict[str, ReportRun], *, takes_s: float = 3.0, error: str = "") -> None:
        self.shown = shown
        self.takes_s = takes_s
        self.error = error
        self.begun: list[str] = []
        self.discarded: list[str] = []
        self.before_publish: Callable[[], None] = lambda: None

    async def write(self, run: ReportRun) -> ReportRun:
        self.begun.append(run.id)
        await asyncio.sleep(self.takes_s)
        return msgspec.structs.replace(run, state="failed" if self.error else "done", error=self.error)

    async def publish(self, run: ReportRun) -> ReportRun:
        self.before_publish()
        return self.shown.setdefault(run.id, run)

    async def discard(self, run: ReportRun) -> None:
        self.discarded.append(run.id)
        if (shown := self.shown.get(run.id)) is not None and shown.fence == run.fence:
            del self.shown[run.id]

    async def keep(self) -> None:
        return None
