"""Ways that the gateway takes only for speed: the same bytes and the same record as on the long way. Also the limits of waiting."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backend.api.decisions import DecisionRecord
from tests.fakes.fleet import limits, pod, running_gateway
from tests.fakes.raw_http import RawClient, ask, completion, post
from tests.fakes.upstream import FakeEngine

VARYING = ("id", "at", "decide_ms", "connect_ms", "ttft_ms", "itl_ms", "total_ms")


def without_times(record: DecisionRecord) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(record).items() if name not in VARYING}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_known_head_is_answered_and_recorded_like_a_new_one(tmp_path: Path, stream: bool) -> None:
    request = post(completion(stream=stream), extra="X-Mine: yes\r\nuser: u\r\n")
    half = len(request) // 2
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        bodies = []
        async with RawClient(gateway.port) as client:
            for parts in ((request,), (request,), (request[:half], request[half:]), (request,)):
                for part in parts:
                    client.send(part)
                    await asyncio.sleep(0.02)
                bodies.append((await client.answer()).raw_body)
        assert len(set(bodies)) == 1
        assert [without_times(record) for record in gateway.records] == [without_times(gateway.records[0])] * 4
        heads = [{name: value for name, value in seen.headers.items() if name != "x-request-id"} for seen in engine.requests]
        assert heads == [heads[0]] * 4
        assert len(gateway.gateway.known_heads) == 1


@pytest.mark.parametrize("extra", ["Connection: close\r\n", "Expect: 100-continue\r\n"], ids=["close", "expect"])
async def test_heads_that_say_what_comes_next_are_always_parsed(tmp_path: Path, extra: str) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        for _ in range(2):
            await ask(gateway.port, completion(), extra=extra)
        assert not gateway.gateway.known_heads


async def test_a_stream_may_wait_for_its_first_byte_longer_than_between_two(tmp_path: Path) -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        await asyncio.sleep(0.6)
        writer.write(b"9\r\ndata: x\n\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()  # until the gateway gives up
        writer.close()
        over.set()

    over = asyncio.Event()
    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    engine = FakeEngine("a", port=server.sockets[0].getsockname()[1])
    quick = limits(first_byte_timeout_s=5.0, idle_timeout_s=0.2)
    async with server, running_gateway(tmp_path, [pod(engine)], limits=quick) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(post(completion(stream=True)))
        received = await reader.read()
        assert b"data: x" in received
        record = await gateway.record()
        assert record.outcome == "timeout"
        assert "stopped in the middle of its answer for 0.2 s" in record.error
        writer.close()
        await over.wait()
