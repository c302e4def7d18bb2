"""The queue of decision records: a record that cannot be encoded, a full queue while a batch is on its way, doubtful hits.

Not here: a real server that goes and comes (tests/behaviour/routing/test_processes)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from backend.api.decisions import DecisionRecord
from backend.core.settings import RecordSettings
from backend.gateway.classify import Evidence
from backend.gateway.records import RecordPublisher
from backend.history.records import decode_batch
from tests.fakes.valkey import Valkey, valkey
from tests.fakes.waiting import eventually

__all__ = ["valkey"]


class Told:
    """What a publisher told its gateway."""

    def __init__(self) -> None:
        self.lost = 0
        self.classes: list[str] = []

    def lose(self, number: int) -> None:
        self.lost += number

    def settled(self, record: DecisionRecord) -> None:
        self.classes.append(record.hit_class)


def publisher(told: Told, url: str, *, kept: int = 100, stored: int = 0) -> RecordPublisher:
    settings = RecordSettings(redis_url=url, kept_records=kept)
    return RecordPublisher(settings, 0, lost=told.lose, counters=lambda pod: (stored, 0), settled=told.settled)


def record(name: str, **fields: object) -> DecisionRecord:
    return DecisionRecord(id=name, at=1.0, **fields)  # type: ignore[arg-type]


@pytest.fixture
async def stream(valkey: Valkey) -> AsyncIterator[_Stream]:
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(valkey.url)
    yield _Stream(client)
    await client.aclose()


class _Stream:
    def __init__(self, client: object) -> None:
        self.client = client

    async def ids(self) -> list[str]:
        entries = await self.client.xrange("workbench:decisions")  # type: ignore[attr-defined]
        return [each.id for _, fields in entries for each in decode_batch(fields)]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"completion_tokens": 2**70}, id="too_large_a_number"),
        pytest.param({"completion_tokens": object()}, id="no_number"),
        pytest.param({"error": "\ud800"}, id="no_text"),
    ],
)
async def test_a_record_that_cannot_be_encoded_is_dropped_and_the_others_go_out(
    valkey: Valkey, stream: _Stream, fields: dict[str, object]
) -> None:
    told = Told()
    records = publisher(told, valkey.url)
    running = asyncio.create_task(records.run())
    records.put(record("bad", **fields))
    records.put(record("good"))
    await eventually(lambda: not len(records))
    assert await stream.ids() == ["good"]
    assert told.lost == 1
    records.put(record("next"))
    await records.flush(2.0)
    assert await stream.ids() == ["good", "next"]
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_record_dropped_from_a_full_queue_while_it_is_sent_is_not_lost(valkey: Valkey, stream: _Stream) -> None:
    told = Told()
    records = publisher(told, valkey.url, kept=3)
    for name in "abc":
        records.put(record(name))
    sending = asyncio.create_task(records.flush(5.0))
    await asyncio.sleep(0)
    for name in "def":
        records.put(record(name))
    await sending
    assert await stream.ids() == list("abcdef")
    assert told.lost == 0


async def test_a_record_dropped_while_it_is_sent_is_lost_when_the_server_does_not_take_it() -> None:
    told = Told()
    records = publisher(told, "redis://127.0.0.1:1/0", kept=3)
    for name in "abc":
        records.put(record(name))
    sending = asyncio.create_task(records.flush(5.0))
    await asyncio.sleep(0)
    records.put(record("d"))
    await sending
    assert told.lost == 4


def doubtful(name: str) -> DecisionRecord:
    return record(name, predicted_tokens=0, cached_tokens=64, block_size=16, hit_class="unknown", chosen="a")


async def test_a_doubtful_hit_is_told_once_when_its_batch_is_sent(valkey: Valkey) -> None:
    told = Told()
    records = publisher(told, valkey.url, stored=4)
    records.put_doubtful(doubtful("a"), Evidence())
    assert told.classes == []
    await records.flush(2.0)
    assert told.classes == ["raced"]


async def test_a_doubtful_hit_without_a_stream_is_told_at_once() -> None:
    told = Told()
    publisher(told, "").put_doubtful(doubtful("a"), Evidence())
    assert told.classes == ["unknown"]


async def test_a_doubtful_hit_that_leaves_a_full_queue_is_told_as_it_stands() -> None:
    told = Told()
    records = publisher(told, "redis://127.0.0.1:1/0", kept=1)
    records.put_doubtful(doubtful("a"), Evidence())
    records.put(record("b"))
    assert told.classes == ["unknown"]


async def test_a_cancellation_that_the_client_library_swallows_still_ends_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    records = publisher(Told(), "redis://127.0.0.1:1/0")
    entered = asyncio.Event()

    async def swallowing(batch: list[DecisionRecord]) -> None:
        entered.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return

    monkeypatch.setattr(records, "_send", swallowing)
    records.put(record("a"))
    running = asyncio.create_task(records.run())
    await entered.wait()
    running.cancel()
    await asyncio.wait([running], timeout=2.0)
    assert running.cancelled()
