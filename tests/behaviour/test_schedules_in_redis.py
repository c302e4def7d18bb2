"""The store of schedules, real and in memory, by the same sentences; and two schedulers that share a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from backend.api.reports import ReportRun, Schedule
from backend.control.schedules import Scheduler
from backend.control.schedulestore import RedisSchedules, ScheduleStore
from backend.core.clock import ManualClock
from backend.core.errors import Unavailable
from tests.fakes.schedules import MemorySchedules, NotedReports
from tests.fakes.valkey import Valkey, valkey

__all__ = ["valkey"]

KEYS = "test:schedules"
AT = 1_790_000_000.25
DAILY = Schedule(id="daily", cron="0 6 * * *", created_at=AT, hours=6)


@pytest.fixture(params=["redis", "memory"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[ScheduleStore]:
    if request.param == "memory":
        yield MemorySchedules()
        return
    real = RedisSchedules(request.getfixturevalue("valkey").url, KEYS)
    yield real
    await real.close()


async def test_schedules_come_back_as_they_were_and_begin_when_they_are_made(store):
    assert await store.add(DAILY)
    assert not await store.add(Schedule(id="daily", cron="1 1 1 1 1"))
    assert await store.all() == {"daily": DAILY}
    assert await store.done() == {"daily": AT}
    assert await store.remove("daily")
    assert not await store.remove("daily")
    assert (await store.all(), await store.done()) == ({}, {})


async def test_the_first_schedule_is_made_once_and_stays_deleted(store):
    assert await store.add_once(DAILY)
    assert not await store.add_once(DAILY)
    await store.remove("daily")
    assert not await store.add_once(DAILY)
    assert await store.all() == {}


async def test_a_moment_is_claimed_by_one(store):
    await store.add(DAILY)
    fences = await asyncio.gather(*(store.claim("daily", AT + 60, 10.0) for _ in range(8)))
    assert sorted(fences) == [0] * 7 + [1]
    assert await store.claim("nobody", AT + 60, 10.0) == 0


async def test_a_finished_moment_is_not_claimed_again_but_the_next_one_is(store):
    await store.add(DAILY)
    fence = await store.claim("daily", AT + 60, 10.0)
    assert await store.finish("daily", AT + 60, fence)
    assert await store.claim("daily", AT + 60, 10.0) == 0
    assert await store.claim("daily", AT + 30, 10.0) == 0
    assert await store.done() == {"daily": AT + 60}
    assert await store.claim("daily", AT + 120, 10.0) == fence + 1


async def test_a_lease_ends_by_itself_and_the_late_holder_is_fenced_off(store):
    await store.add(DAILY)
    late = await store.claim("daily", AT + 60, 0.05)
    await asyncio.sleep(0.12)
    current = await store.claim("daily", AT + 60, 10.0)
    assert current > late
    assert not await store.renew("daily", late, 10.0)
    assert not await store.finish("daily", AT + 60, late)
    assert await store.done() == {"daily": AT}
    assert await store.renew("daily", current, 10.0)
    assert await store.finish("daily", AT + 60, current)


async def test_a_renewed_lease_lasts(store):
    await store.add(DAILY)
    fence = await store.claim("daily", AT + 60, 0.15)
    for _ in range(4):
        await asyncio.sleep(0.08)
        assert await store.renew("daily", fence, 0.15)
    assert await store.claim("daily", AT + 60, 1.0) == 0


async def test_a_deleted_schedule_is_neither_claimed_nor_finished(store):
    await store.add(DAILY)
    fence = await store.claim("daily", AT + 60, 10.0)
    await store.remove("daily")
    assert not await store.finish("daily", AT + 60, fence)
    assert await store.claim("daily", AT + 60, 10.0) == 0


async def test_what_another_version_wrote_is_named_and_left_alone(valkey: Valkey):
    store = RedisSchedules(valkey.url, KEYS)
    await store.add(DAILY)
    await store._redis.hset(KEYS, "newer", '{"id": "newer", "cron": 7}')
    assert set(await store.all()) == {"daily"}
    assert "cron" in store.broken["newer"]
    await store.close()


async def test_schedules_survive_the_servers_kill_and_its_absence_is_told(valkey: Valkey):
    store = RedisSchedules(valkey.url, KEYS)
    await store.add(DAILY)
    fence = await store.claim("daily", AT + 60, 60.0)
    valkey.kill()
    with pytest.raises(Unavailable) as raised:
        await store.all()
    assert "valkey-server" in raised.value.fix
    valkey.start()
    assert await store.all() == {"daily": DAILY}
    assert await store.finish("daily", AT + 60, fence)
    await store.close()


async def test_two_schedulers_on_one_server_write_each_moment_once(valkey: Valkey):
    stores = [RedisSchedules(valkey.url, KEYS) for _ in range(2)]
    shown: dict[str, ReportRun] = {}
    writers = [NotedReports(shown, takes_s=0.01) for _ in stores]
    clock = ManualClock(AT)
    schedulers = [Scheduler(store, writer, clock) for store, writer in zip(stores, writers, strict=True)]
    await stores[0].add(Schedule(id="often", cron="* * * * *", created_at=AT))
    for _ in range(20):
        clock.advance(60)
        await asyncio.gather(*(scheduler.look() for scheduler in schedulers))
    begun = [name for writer in writers for name in writer.begun]
    assert len(begun) == len(set(begun)) == len(shown) == 20
    for store in stores:
        await store.close()
