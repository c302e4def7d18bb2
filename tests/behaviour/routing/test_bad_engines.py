"""Engines that misbehave and clients that leave: every request ends once, nobody waits for ever, nothing wrong is passed on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backend.api.fleet import Pod
from tests.fakes.fleet import limits, pod, running_gateway
from tests.fakes.raw_http import RawClient, ask, completion, post
from tests.fakes.upstream import FakeEngine

STREAM = completion(stream=True)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("behaviour", "status", "message", "outcome"),
    [
        ("garbage", 502, "upstream answer cannot be read", "upstream_error"),
        ("both_lengths", 502, "both Content-Length and Transfer-Encoding", "upstream_error"),
        ("reset", 502, "upstream answer cannot be read", "upstream_reset"),
        ("close_middle", 502, "closed the connection", "upstream_reset"),
        ("reset_middle", 502, "upstream answer cannot be read", "upstream_reset"),
        ("stall", 504, "no answer from the pod", "timeout"),
        ("stall_middle", 504, "stopped in the middle", "timeout"),
        ("not_json", 500, "upstream response is not JSON", "refused"),
        ("holds_error", 429, "inside", "upstream_error"),
        ("status:400", 400, "engine says no", "upstream_error"),
        ("status:401", 401, "engine says no", "upstream_error"),
        ("status:404", 404, "engine says no", "upstream_error"),
        ("status:429", 429, "engine says no", "upstream_error"),
        ("status:500", 500, "engine says no", "upstream_error"),
        ("plain_error", 503, "busy", "upstream_error"),
    ],
)
async def test_the_only_pod_misbehaves(tmp_path: Path, behaviour: str, status: int, message: str, outcome: str) -> None:
    quick = limits(first_byte_timeout_s=0.2, idle_timeout_s=0.2)
    async with FakeEngine("a", behaviour=behaviour) as engine, running_gateway(tmp_path, [pod(engine)], limits=quick) as gateway:
        answer = await ask(gateway.port, completion())
        assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
        error = answer.json()["error"]
        assert message in error["message"]
        assert set(error) == {"message", "type", "code", "param"}
        assert answer.headers["target-pod"] == "a"
        if behaviour.startswith("status:"):
            assert answer.headers["retry-after"] == "7"
        record = await gateway.record()
        assert (record.outcome, record.status) == (outcome, status)


@pytest.mark.parametrize("behaviour", ["reset", "close_middle", "reset_middle", "abort"])
async def test_another_pod_answers_when_the_first_fails_before_its_first_byte(tmp_path: Path, behaviour: str) -> None:
    async with FakeEngine("a", behaviour=behaviour) as a, FakeEngine("b") as b:
        async with running_gateway(tmp_path, [pod(a), pod(b)]) as gateway:
            for _ in range(16):
                answer = await ask(gateway.port, completion())
                assert (answer.status, answer.headers["target-pod"]) == (200, "b")
            retried = [record for record in gateway.records if record.attempts]
            assert retried
            assert all(record.attempts == ["a"] and record.outcome == "ok" for record in retried)


async def test_a_pod_that_refuses_connections_is_replaced_and_then_avoided(tmp_path: Path) -> None:
    dead = Pod(name="dead", ip="127.0.0.1", port=1, model="m", ready=True)
    async with FakeEngine("b") as b, running_gateway(tmp_path, [dead, pod(b)]) as gateway:
        for _ in range(8):
            assert (await ask(gateway.port, completion())).headers["target-pod"] == "b"
        assert sum(len(record.attempts) for record in gateway.records) <= 1


async def test_when_no_pod_can_be_reached_the_last_failure_is_named(tmp_path: Path) -> None:
    dead = [Pod(name=name, ip="127.0.0.1", port=1, model="m", ready=True) for name in "abcd"]
    async with running_gateway(tmp_path, dead) as gateway:
        answer = await ask(gateway.port, completion())
        assert (answer.status, answer.headers["x-error-routing"]) == (503, "true")
        assert "error on selecting target pod" in answer.json()["error"]["message"]
        assert len((await gateway.record()).attempts) == 2


async def test_a_connection_that_the_engine_closed_while_idle_is_no_failure(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        assert (await ask(gateway.port, completion())).status == 200
        for connection in list(engine.connections):
            connection.end()
        assert (await ask(gateway.port, completion())).status == 200
        assert [record.attempts for record in gateway.records] == [[], []]


@pytest.mark.parametrize("behaviour", ["close_middle", "reset_middle", "bad_chunk", "stall_middle"])
async def test_a_stream_that_breaks_is_closed_without_a_false_end(tmp_path: Path, behaviour: str) -> None:
    quick = limits(idle_timeout_s=0.2)
    async with FakeEngine("a", behaviour=behaviour) as engine, running_gateway(tmp_path, [pod(engine)], limits=quick) as gateway:
        async with RawClient(gateway.port) as client:
            client.send(post(STREAM))
            assert (await client.head())[0] == 200
            rest = await client.ended()
            assert rest.count(b"data: ") == 2
            assert not rest.endswith(b"0\r\n\r\n")
        record = await gateway.record()
        assert record.outcome == ("timeout" if behaviour == "stall_middle" else "truncated")


async def test_bytes_behind_an_answer_never_reach_anybody(tmp_path: Path) -> None:
    async with FakeEngine("a", behaviour="surplus") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            for _ in range(3):
                client.send(post(completion()))
                answer = await client.answer()
                assert answer.json()["choices"][0]["text"] == "hello"
                assert b"evil" not in answer.body
        assert engine.accepted == 3


async def test_a_client_that_leaves_in_mid_stream_ends_the_engines_work_at_once(tmp_path: Path) -> None:
    async with FakeEngine("a", chunks=1000, gap_s=0.01) as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            client.send(post(STREAM))
            await client.reader.readuntil(b"token")
        left = time.monotonic()
        record = await gateway.record()
        assert (record.outcome, record.status) == ("client_gone", 200)
        await until(lambda: engine.closed_at)
        assert engine.closed_at[0] - left < 0.1


async def test_a_client_that_leaves_before_the_answer_ends_the_engines_work_at_once(tmp_path: Path) -> None:
    async with FakeEngine("a", behaviour="stall") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            client.send(post(completion()))
            await until(lambda: engine.requests)
        left = time.monotonic()
        record = await gateway.record()
        assert (record.outcome, record.status) == ("client_gone", 0)
        await until(lambda: engine.closed_at)
        assert engine.closed_at[0] - left < 0.1


async def test_a_slow_client_slows_the_engine_instead_of_filling_memory(tmp_path: Path) -> None:
    async with FakeEngine("a", chunks=80_000) as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(post(STREAM, extra="connection: close\r\n"))
            await until(lambda: any(accepted.write_paused for accepted in gateway.gateway.clients))
            (accepted,) = gateway.gateway.clients
            assert accepted._transport.get_write_buffer_size() < 2 * 2**20
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert (await client.ended(30)).count(b"data: ") == 80_001


async def test_two_hundred_streams_over_failing_pods_end_once_each(tmp_path: Path) -> None:
    behaviours = ["ok", "reset", "close_middle", "garbage", "trickle", "bad_chunk"]
    engines = [FakeEngine(f"e{at}", behaviour=how, gap_s=0.001) for at, how in enumerate(behaviours)]
    for engine in engines:
        await engine.start()

    async def one(port: int, number: int) -> None:
        async with RawClient(port) as client:
            client.send(post(STREAM if number % 2 else completion(), extra="connection: close\r\n"))
            if number % 7:
                await client.ended(20)

    async with running_gateway(tmp_path, map(pod, engines), limits=limits(idle_timeout_s=1.0, keepalive_s=1.0)) as gateway:
        await asyncio.gather(*(one(gateway.port, number) for number in range(200)))
        await gateway.record(150)
        assert len({record.id for record in gateway.records}) == len(gateway.records)
    for engine in engines:
        await engine.stop()
