"""Which reports are due, and that each is written once, whatever the number of control replicas.

Every replica looks at the same table and the same clockwork; the store gives each moment to one of them. Missed moments are caught
up once: after an absence the newest one is written, the others are counted. What is due is a pure function; the rest waits and asks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from backend.api.reports import ReportRun, Schedule
from backend.control import cron
from backend.control.reports import run_id
from backend.control.schedulestore import ScheduleStore
from backend.core.clock import Clock
from backend.core.errors import InvalidRequest, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")
LOOK_S = 5.0
"""Seconds between two looks: cron counts in minutes, and a look is two commands."""
LEASE_S = 30.0
"""A claim that nobody renews for so long is free again: how late a report is after its writer was killed."""
RENEW_S = 5.0
COUNTED = 1_000
"""Missed moments are counted up to here."""


@dataclass(frozen=True)
class Due:
    """A moment to deal with, and how many earlier ones were missed with it."""

    moment: float
    skipped: int = 0


def due(schedule: Schedule, last: float, now: float) -> Due | None:
    """The newest moment after `last` (the newest one dealt with) and not after `now`. Raises InvalidRequest for a broken expression."""
    moments = cron.parse(schedule.cron)
    newest = moments.at_or_before(now)
    if newest is None or newest <= last:
        return None
    skipped, at = 0, moments.after(last)
    while at is not None and at < newest and skipped < COUNTED:
        skipped, at = skipped + 1, moments.after(at)
    return Due(newest, skipped)


def scheduled_run(schedule: Schedule, moment: Due, fence: int) -> ReportRun:
    """The report of a moment: it covers the hours before it, however late it is written."""
    return ReportRun(
        id=run_id(schedule.report, moment.moment, schedule.id),
        report=schedule.report,
        state="running",
        schedule=schedule.id,
        due=moment.moment,
        skipped=moment.skipped,
        since=moment.moment - schedule.hours * 3600,
        until=moment.moment,
        fence=fence,
    )


class Writer(Protocol):
    """Where reports are written; see `reports.ReportFolder`."""

    async def write(self, run: ReportRun) -> ReportRun: ...

    async def publish(self, run: ReportRun) -> ReportRun: ...

    async def discard(self, run: ReportRun) -> None: ...

    async def keep(self) -> None: ...


class Scheduler:
    """One replica's clockwork. `problem` says why schedules cannot be looked at; `broken` names those that cannot be read."""

    def __init__(self, store: ScheduleStore, writer: Writer, clock: Clock) -> None:
        self.store = store
        self.writer = writer
        self.clock = clock
        self.problem = ""
        self.broken: dict[str, str] = {}
        self.lost_claims = 0

    async def always(self) -> None:
        """Look again and again. The server being away is told, not raised: missed moments are caught up when it is back."""
        while True:
            try:
                await self.look()
                self.problem = ""
            except Unavailable as error:
                if not self.problem:
                    log.warning("%s", error)
                self.problem = error.message
            await asyncio.sleep(LOOK_S)

    async def look(self) -> int:
        """Deal with everything that is due now and that no other replica has; gives the number of reports written."""
        schedules, done = await self.store.all(), await self.store.done()
        broken = dict(self.store.broken)
        written = 0
        for schedule in schedules.values():
            try:
                found = due(schedule, done.get(schedule.id, schedule.created_at), self.clock.now())
            except InvalidRequest as error:
                broken[schedule.id] = error.message
                continue
            if found is not None and (fence := await self.store.claim(schedule.id, found.moment, LEASE_S)):
                written += await self._deal_with(scheduled_run(schedule, found, fence))
        self.broken = broken
        if written:
            await self.writer.keep()
        return written

    async def _deal_with(self, run: ReportRun) -> bool:
        """Write the report while the claim is kept alive; it counts only if the claim is still ours at the end."""
        written = await self._written(run)
        if written is None or not await patiently(lambda: self.store.renew(run.schedule, run.fence, LEASE_S)):
            self.lost_claims += 1
            log.warning("the report %s took longer than its claim and is left to another replica", run.id)
            await self.writer.discard(run)
            return False
        shown = await self.writer.publish(written)
        if not await patiently(lambda: self.store.finish(run.schedule, run.due, run.fence)):
            self.lost_claims += 1
            await self.writer.discard(run)
            return False
        log.info("report %s: %s", shown.id, shown.error or f"{len(shown.files)} files")
        return True

    async def _written(self, run: ReportRun) -> ReportRun | None:
        """None when the claim was lost meanwhile."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        work = asyncio.ensure_future(self.writer.write(run))
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=RENEW_S)
                if work.done():
                    break
                try:
                    ours = await self.store.renew(run.schedule, run.fence, LEASE_S)
                except Unavailable:
                    # Nobody else can claim it either while the server is away.
                    ours = loop.time() - renewed < LEASE_S
                else:
                    renewed = loop.time()
                if not ours:
                    return None
            return work.result()
        finally:
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """The store's answer, waiting while it is away: whether a report counts must be known before it is shown."""
    delay = 0.5
    while True:
        try:
            return await ask()
        except Unavailable:
            await asyncio.sleep(delay)
            delay = min(2 * delay, LOOK_S)
