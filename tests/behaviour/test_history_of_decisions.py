"""From stream to file and back, with a real Valkey server. Not here: killing the processes (test_history_survives_kills)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from backend.core.settings import HistorySettings, RecordSettings
from backend.core.supervise import Supervisor
from backend.history.cold import read_decisions
from backend.history.model import Filter
from backend.history.records import FIELD, encode_batch
from backend.history.service import History
from tests.fakes.records import record, records
from tests.fakes.valkey import Valkey, valkey
from tests.fakes.waiting import eventually

__all__ = ["valkey"]

STREAM = "workbench:decisions"


async def send(server: Valkey, *batches: list) -> None:
    client = redis.asyncio.Redis.from_url(server.url)
    for batch in batches:
        await client.xadd(STREAM, {FIELD: encode_batch(batch)})
    await client.aclose()


@pytest.fixture
async def tasks() -> AsyncIterator[Supervisor]:
    async with Supervisor("test") as supervisor:
        yield supervisor


def make(tmp_path, server: Valkey, **settings) -> History:
    values = {"write_s": 0.05, **settings}
    return History(tmp_path / "history", HistorySettings(**values), RecordSettings(redis_url=server.url, stream=STREAM))


async def pending(server: Valkey) -> int:
    client = redis.asyncio.Redis.from_url(server.url)
    summary = await client.xpending(STREAM, "history")
    await client.aclose()
    return int(summary["pending"])


async def test_records_reach_a_file_and_are_acknowledged(tmp_path, valkey, tasks):
    await send(valkey, records(3), records(2, first=3))
    history = make(tmp_path, valkey)
    history.start(tasks)
    await eventually(lambda: history.counters.written == 5)
    await eventually(lambda: not history.unacknowledged)
    assert await pending(valkey) == 0
    table = read_decisions(tmp_path / "history")
    assert table["id"].to_list() == [one.id for one in records(5)]
    assert (await history.page(Filter(), 10))[0] == records(5)[::-1]


async def test_a_batch_sent_twice_is_kept_once(tmp_path, valkey, tasks):
    await send(valkey, records(3), records(3), [record(2), record(3)])
    history = make(tmp_path, valkey)
    history.start(tasks)
    await eventually(lambda: history.counters.duplicates == 4 and history.counters.written == 4)
    assert read_decisions(tmp_path / "history").height == 4


async def test_garbage_in_the_stream_is_counted_and_passed_over(tmp_path, valkey, tasks):
    client = redis.asyncio.Redis.from_url(valkey.url)
    await client.xadd(STREAM, {"records": b"\xc1 nonsense"})
    await client.xadd(STREAM, {"other": b""})
    await client.aclose()
    await send(valkey, records(1))
    history = make(tmp_path, valkey)
    history.start(tasks)
    await eventually(lambda: history.counters.written == 1)
    assert history.counters.unreadable == 2
    await eventually(lambda: not history.unacknowledged)
    assert await pending(valkey) == 0


BAD_RECORDS = [
    ("an_integer_no_column_holds", {"usage_prompt_tokens": 2**63}),
    ("a_count_from_nowhere", {"completion_tokens": 2**64 - 1}),
    ("no_time", {"at": float("nan")}),
    ("a_time_beyond_all_calendars", {"at": 1e300}),
    ("a_field_of_another_type", {"terms": "none"}),
]


@pytest.mark.parametrize("fields", [case[1] for case in BAD_RECORDS], ids=[case[0] for case in BAD_RECORDS])
async def test_a_bad_record_among_good_ones_is_left_out_and_counted(tmp_path, valkey, tasks, fields):
    await send(valkey, [record(0), record(1, **fields), record(2)])
    history = make(tmp_path, valkey)
    history.start(tasks)
    await eventually(lambda: history.counters.written == 2)
    await send(valkey, [record(3)])
    await eventually(lambda: history.counters.written == 3)
    assert history.counters.unreadable == 1
    await eventually(lambda: not history.unacknowledged)
    assert await pending(valkey) == 0
    assert read_decisions(tmp_path / "history")["id"].to_list() == [record(number).id for number in (0, 2, 3)]
    assert [one.id for one in (await history.page(Filter(), 10))[0]] == [record(number).id for number in (3, 2, 0)]
