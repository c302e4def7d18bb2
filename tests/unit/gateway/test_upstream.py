"""A connection to a pod when the one who receives the answer fails: it is told, and nobody else gets that connection."""

from __future__ import annotations

import asyncio

import pytest

from backend.gateway.framing import ResponseHead
from backend.gateway.upstream import PodPool
from tests.fakes.raw_http import completion, post
from tests.fakes.upstream import FakeEngine


class BrokenSink:
    """Raises where it is told to; remembers what it is told."""

    def __init__(self, breaks_at: str) -> None:
        self.breaks_at = breaks_at
        self.failures: list[str] = []
        self.told = asyncio.Event()

    def on_head(self, head: ResponseHead, data: bytes, ended: bool) -> None:
        if self.breaks_at == "head" or (self.breaks_at == "end" and ended):
            raise RuntimeError("broken sink")

    def on_data(self, data: bytes, ended: bool) -> None:
        if self.breaks_at == "data" or ended:
            raise RuntimeError("broken sink")

    def on_failure(self, kind: str, detail: str) -> None:
        self.failures.append(kind)
        self.told.set()


@pytest.mark.parametrize(
    ("behaviour", "breaks_at"),
    [("ok", "head"), ("ok", "end"), ("trickle", "data"), ("trickle", "end"), ("chunked", "end"), ("until_close", "end")],
)
async def test_a_sink_that_fails_is_told_and_its_connection_is_not_used_again(
    behaviour: str, breaks_at: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeEngine("a", behaviour=behaviour) as engine:
        pool = PodPool(engine.host, engine.port)
        connection = await pool.connect(1.0)
        head, _, body = post(completion()).partition(b"\r\n\r\n")
        sink = BrokenSink(breaks_at)
        connection.send((head, b"\r\n\r\n"), body, sink)
        async with asyncio.timeout(5):
            await sink.told.wait()
        assert sink.failures == ["internal"]
        assert "broken sink" in caplog.text
        assert pool.take() is None
        pool.close()


class Collected:
    """Notes whether the pool already had the connection while the last bytes were handed over."""

    def __init__(self, pool: PodPool) -> None:
        self.pool = pool
        self.pool_had_it: list[bool] = []
        self.ended = asyncio.Event()

    def on_head(self, head: ResponseHead, data: bytes, ended: bool) -> None:
        self.on_data(data, ended)

    def on_data(self, data: bytes, ended: bool) -> None:
        if ended:
            self.pool_had_it.append(bool(self.pool._idle))
            self.ended.set()

    def on_failure(self, kind: str, detail: str) -> None:
        raise AssertionError(f"{kind}: {detail}")


async def test_a_connection_is_given_back_once_its_answer_was_taken() -> None:
    async with FakeEngine("a") as engine:
        pool = PodPool(engine.host, engine.port)
        connection = await pool.connect(1.0)
        head, _, body = post(completion()).partition(b"\r\n\r\n")
        sink = Collected(pool)
        connection.send((head, b"\r\n\r\n"), body, sink)
        async with asyncio.timeout(5):
            await sink.ended.wait()
        assert sink.pool_had_it == [False]
        assert pool.take() is connection
        connection.cancel()
