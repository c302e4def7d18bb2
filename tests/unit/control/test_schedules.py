"""What is due, and that each moment's report is written once by any number of replicas: hours of virtual time in milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from backend.api.reports import ReportRun, Schedule
from backend.control.schedules import LEASE_S, LOOK_S, Due, Scheduler, due, scheduled_run
from backend.core.errors import InvalidRequest
from tests.fakes.schedules import MemorySchedules, NotedReports

pytestmark = pytest.mark.looptime
BEGIN = datetime(2026, 11, 25, 5, 59, 30, tzinfo=UTC).timestamp()
SIX = datetime(2026, 11, 25, 6, tzinfo=UTC).timestamp()
HOUR = 3600.0
DAY = 86_400.0
DAILY = Schedule(id="daily", cron="0 6 * * *", created_at=BEGIN)


class LoopClock:
    """The loop's virtual time, beginning at BEGIN; `ahead` is how wrong a replica's clock is."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead

    def now(self) -> float:
        return BEGIN + self.ahead + asyncio.get_running_loop().time()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


DUE = [
    # id, cron, last, now, expected
    ("not_yet", "0 6 * * *", BEGIN, SIX - 1, None),
    ("at_the_moment", "0 6 * * *", BEGIN, SIX, Due(SIX)),
    ("once_only", "0 6 * * *", SIX, SIX + 100, None),
    ("a_day_late", "0 6 * * *", BEGIN, SIX + DAY - 1, Due(SIX)),
    ("three_missed_are_one", "0 6 * * *", BEGIN, SIX + 3 * DAY, Due(SIX + 3 * DAY, skipped=3)),
    ("minutes_of_a_year", "* * * * *", BEGIN, BEGIN + 365 * DAY, Due(BEGIN + 365 * DAY - 30, skipped=1000)),
    ("never", "0 0 30 2 *", BEGIN, SIX + DAY, None),
]


@pytest.mark.parametrize(("cron", "last", "now", "expected"), [case[1:] for case in DUE], ids=[case[0] for case in DUE])
async def test_what_is_due(cron, last, now, expected):
    assert due(Schedule(id="a", cron=cron), last, now) == expected


async def test_a_report_covers_the_hours_before_its_moment_however_late():
    run = scheduled_run(DAILY, Due(SIX, skipped=2), fence=7)
    assert (run.since, run.until, run.skipped, run.fence) == (SIX - DAY, SIX, 2, 7)
    assert run.id == "daily-20261125T060000Z-daily"
    with pytest.raises(InvalidRequest):
        due(Schedule(id="a", cron="nonsense"), 0.0, SIX)


@asynccontextmanager
async def running(*schedulers: Scheduler) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(one.always()) for one in schedulers]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def store_with(*schedules: Schedule) -> MemorySchedules:
    store = MemorySchedules()
    for schedule in schedules:
        await store.add(schedule)
    return store


@pytest.mark.parametrize("replicas", [1, 2, 3])
async def test_each_moment_is_written_once_whatever_the_number_of_replicas(replicas):
    store = await store_with(DAILY, Schedule(id="hourly", cron="0 * * * *", created_at=BEGIN))
    shown: dict[str, ReportRun] = {}
    writers = [NotedReports(shown) for _ in range(replicas)]
    clocks = [LoopClock(ahead=0.7 * number) for number in range(replicas)]
    async with running(*(Scheduler(store, writer, clock) for writer, clock in zip(writers, clocks, strict=True))):
        await asyncio.sleep(5 * HOUR)
    begun = [name for writer in writers for name in writer.begun]
    assert sorted(begun) == sorted(set(begun)) == sorted(shown)
    assert len([name for name in begun if name.endswith("-daily")]) == 1
    assert len([name for name in begun if name.endswith("-hourly")]) == 5


async def test_a_killed_replicas_report_is_written_by_the_other_after_its_lease():
    store = await store_with(DAILY)
    shown: dict[str, ReportRun] = {}
    first, second = NotedReports(shown, takes_s=1000), NotedReports(shown)
    async with running(Scheduler(store, first, LoopClock())) as (task,):
        await asyncio.sleep(40)
        assert first.begun
        task.cancel()
        async with running(Scheduler(store, second, LoopClock())):
            await asyncio.sleep(LEASE_S + 2 * LOOK_S)
    assert second.begun == first.begun == list(shown)
    assert shown[second.begun[0]].fence == 2


async def test_a_replica_that_slept_through_its_lease_shows_nothing():
    store = await store_with(DAILY)
    shown: dict[str, ReportRun] = {}
    sleeper = Scheduler(store, NotedReports(shown, takes_s=50), LoopClock())
    stolen = asyncio.Event()

    async def renew(*_: object) -> bool:
        await stolen.wait()
        return await MemorySchedules.renew(store, *_)

    store.renew = renew  # the sleeper's process stands still from here on
    async with running(sleeper):
        await asyncio.sleep(45 + LEASE_S)
        other = await store_with()
        other.__dict__ = {**store.__dict__}
        del other.__dict__["renew"]
        async with running(Scheduler(other, NotedReports(shown), LoopClock())):
            await asyncio.sleep(20)
        store._claims = other._claims
        stolen.set()
        await asyncio.sleep(120)
    assert [run.fence for run in shown.values()] == [2]
    assert sleeper.lost_claims == 1


async def test_a_claim_lost_between_publishing_and_finishing_takes_its_report_back():
    store = await store_with(DAILY)
    shown: dict[str, ReportRun] = {}
    writer = NotedReports(shown)
    writer.before_publish = store._claims.clear
    scheduler = Scheduler(store, writer, LoopClock(ahead=60))
    assert await scheduler.look() == 0
    assert (shown, store.handled["daily"], scheduler.lost_claims) == ({}, BEGIN, 1)


async def test_missed_moments_are_caught_up_once():
    store = await store_with(Schedule(id="hourly", cron="0 * * * *", created_at=BEGIN))
    shown: dict[str, ReportRun] = {}
    await asyncio.sleep(10 * HOUR)
    async with running(*(Scheduler(store, NotedReports(shown), LoopClock()) for _ in range(2))):
        await asyncio.sleep(20)
        (run,) = shown.values()
        assert (run.due, run.skipped) == (SIX + 9 * HOUR, 9)
        await asyncio.sleep(HOUR)
    assert [run.skipped for run in shown.values()] == [9, 0]


async def test_a_server_that_is_away_is_told_and_caught_up_with():
    store = await store_with(Schedule(id="often", cron="0 */6 * * *", created_at=BEGIN))
    shown: dict[str, ReportRun] = {}
    scheduler = Scheduler(store, NotedReports(shown), LoopClock())
    async with running(scheduler):
        await asyncio.sleep(10)
        store.away = True
        await asyncio.sleep(7 * HOUR)
        assert "away" in scheduler.problem
        assert shown == {}
        store.away = False
        await asyncio.sleep(20)
        assert scheduler.problem == ""
    assert [(run.due, run.skipped) for run in shown.values()] == [(SIX + 6 * HOUR, 1)]


async def test_a_server_that_goes_away_while_a_report_is_written_loses_nothing():
    store = await store_with(DAILY)
    shown: dict[str, ReportRun] = {}
    writer = NotedReports(shown, takes_s=8)
    async with running(Scheduler(store, writer, LoopClock())):
        await asyncio.sleep(32)
        assert writer.begun
        store.away = True
        await asyncio.sleep(15)
        assert shown == {}
        store.away = False
        await asyncio.sleep(15)
    assert len(writer.begun) == len(shown) == 1
    assert store.handled["daily"] == SIX


async def test_a_failed_report_is_not_tried_again_before_its_next_moment():
    store = await store_with(Schedule(id="hourly", cron="0 * * * *", created_at=BEGIN))
    shown: dict[str, ReportRun] = {}
    writer = NotedReports(shown, error="no room")
    async with running(Scheduler(store, writer, LoopClock())):
        await asyncio.sleep(HOUR - 60)
        assert [run.state for run in shown.values()] == ["failed"]
        writer.error = ""
        await asyncio.sleep(HOUR)
    assert [run.state for run in shown.values()] == ["failed", "done"]


async def test_a_schedule_that_cannot_be_read_does_not_stop_the_others():
    store = await store_with(DAILY, Schedule(id="bad", cron="61 * * * *", created_at=BEGIN))
    shown: dict[str, ReportRun] = {}
    scheduler = Scheduler(store, NotedReports(shown), LoopClock())
    async with running(scheduler):
        await asyncio.sleep(60)
    assert len(shown) == 1
    assert "minute" in scheduler.broken["bad"]
