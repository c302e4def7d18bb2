"""Nothing that reached the stream is lost when a part dies, and nothing is kept twice. Real server, real processes, `kill -9`."""

from __future__ import annotations

import asyncio
import errno
import os
import time

import pytest
import redis.asyncio
from redis.exceptions import RedisError

from backend.history.cold import read_decisions
from backend.history.records import FIELD, encode_batch
from backend.history.service import History
from tests.behaviour.test_history_of_decisions import STREAM, make, pending, send, tasks
from tests.fakes.control import ControlProcess
from tests.fakes.records import records
from tests.fakes.valkey import Valkey, valkey
from tests.fakes.waiting import eventually

__all__ = ["tasks", "valkey"]


async def publish(server: Valkey, batches: int, size: int) -> int:
    """As a gateway worker does it: one batch after the other, each repeated until the server has taken it."""
    client = redis.asyncio.Redis.from_url(server.url, socket_timeout=1)
    for number in range(batches):
        batch = encode_batch(records(size, first=number * size))
        while True:
            try:
                await client.xadd(STREAM, {FIELD: batch})
                break
            except (RedisError, OSError):
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.01)
    await client.aclose()
    return batches * size


def written_ids(folder) -> list[str]:
    return read_decisions(folder)["id"].to_list()


async def test_a_killed_stream_server_is_waited_for_and_nothing_is_lost(tmp_path, valkey, tasks):
    history: History = make(tmp_path, valkey, write_s=0.1)
    history.start(tasks)
    sending = asyncio.create_task(publish(valkey, batches=120, size=10))
    await eventually(lambda: history.counters.received >= 200)
    # The append-only file is synced every second; what the server acknowledged within the last one can be gone with the machine,
    # not with the process: the kernel has it.
    valkey.kill()
    await eventually(lambda: bool(history.trouble.redis))
    assert "does not serve" in history.trouble.redis
    await asyncio.to_thread(valkey.start)
    total = await asyncio.wait_for(sending, 20)
    await eventually(lambda: history.counters.written == total, 15)
    assert not history.trouble.redis
    assert written_ids(tmp_path / "history") == [one.id for one in records(total)]


async def test_a_server_that_is_away_at_the_start_is_found_later(tmp_path, valkey, tasks):
    valkey.kill()
    history = make(tmp_path, valkey)
    history.start(tasks)
    await eventually(lambda: bool(history.trouble.redis))
    await asyncio.to_thread(valkey.start)
    await send(valkey, records(2))
    await eventually(lambda: history.counters.written == 2)
    assert not history.trouble.redis


async def test_a_lost_group_is_made_again_and_its_records_are_not_doubled(tmp_path, valkey, tasks):
    history = make(tmp_path, valkey)
    history.start(tasks)
    await send(valkey, records(5))
    await eventually(lambda: history.counters.written == 5 and not history.unacknowledged)
    client = redis.asyncio.Redis.from_url(valkey.url)
    await client.xgroup_destroy(STREAM, "history")
    await client.aclose()
    await send(valkey, records(5), records(5, first=5))
    await eventually(lambda: history.counters.written == 10)
    assert read_decisions(tmp_path / "history").height == 10


async def test_a_full_disk_keeps_everything_in_the_stream(tmp_path, valkey, tasks, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        history = make(tmp_path, valkey)
        history.start(tasks)
        await send(valkey, records(5))
        await eventually(lambda: history.trouble.disk_full)
        assert await pending(valkey) == 1
        assert "No room left" in history.trouble.disk
        assert len(history.hot) == 5
    await eventually(lambda: history.counters.written == 5)
    assert not history.trouble.disk
    await eventually(lambda: not history.unacknowledged)
    assert await pending(valkey) == 0


async def test_a_disk_that_stays_full_stops_the_reading_not_the_memory(tmp_path, valkey, tasks, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        history = make(tmp_path, valkey, write_rows=100)
        history.start(tasks)
        await publish(valkey, batches=150, size=10)
        await eventually(lambda: history.counters.received >= 200)
        await asyncio.sleep(0.3)
        held = len(history.hot)
        assert held < 1500
    await eventually(lambda: history.counters.written == 1500, 20)
    assert len(written_ids(tmp_path / "history")) == 1500


@pytest.mark.parametrize("written_before", [False, True], ids=["nothing_written", "some_written"])
async def test_a_killed_control_takes_up_what_it_had_not_written(tmp_path, valkey, written_before):
    control = ControlProcess(
        tmp_path / "state", redis_url=valkey.url, more=f'[history]\nwrite_s = "{"0.3s" if written_before else "60s"}"\nrecent_rows = 50\n'
    )
    try:
        await asyncio.to_thread(control.start)
        sending = asyncio.create_task(publish(valkey, batches=100, size=5))
        async with asyncio.timeout(15):
            while not (written_ids(tmp_path / "state" / "history") if written_before else await everything(control)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert not sending.done()
        control.kill()
        total = await asyncio.wait_for(sending, 20)
        await asyncio.to_thread(control.start)
        deadline = time.monotonic() + 15
        while (seen := await everything(control)) != [one.id for one in records(total)][::-1]:
            assert time.monotonic() < deadline, f"{len(seen)} of {total} decisions"
            await asyncio.sleep(0.2)
        assert await asyncio.to_thread(control.stop) == 0
        assert sorted(written_ids(tmp_path / "state" / "history")) == [one.id for one in records(total)]
    finally:
        control.kill()


async def everything(control: ControlProcess) -> list[str]:
    """Ids of all pages, in order."""
    ids: list[str] = []
    before = ""
    while True:
        page = (await asyncio.to_thread(control.get, "/api/v1/decisions", limit=70, before=before)).json()
        ids += [item["id"] for item in page["items"]]
        if page["next"] is None:
            return ids
        before = page["next"]
