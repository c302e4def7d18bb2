"""The load generator against a server on a real socket: times, bounds, and a class for everything that can go wrong."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import msgspec
import pytest

from backend.core.errors import ConfigError, UsageError
from backend.simulate import loadgen, traces
from backend.simulate.loadgen import LoadOptions, RequestResult, StreamReader
from backend.simulate.traces import TraceRequest
from tests.fakes.completions import completions


@pytest.fixture
def server():
    with completions() as fake:
        yield fake


def trace(count: int, *, every_ms: float = 0.0, tokens: int = 4) -> list[TraceRequest]:
    return [TraceRequest(every_ms * at, 700, tokens, (0, at + 1)) for at in range(count)]


async def send(requests, **options) -> list[RequestResult]:
    results: list[RequestResult] = []
    await loadgen.run(requests, LoadOptions(model="qwen3-8b", **options), results.append)
    return sorted(results, key=lambda result: result.index)


async def until(true: Callable[[], bool]) -> None:
    """The server counts in a thread of its own: nothing to wait for but the count."""
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_request_carries_the_prompt_and_asks_for_usage(server):
    requests = trace(1, tokens=500)
    await send(requests, url=server.url, policy="random", user="ann", output_tokens=3, token="secret")
    body = server.requests[0]
    assert body == {
        "model": "qwen3-8b",
        "prompt": traces.prompt_tokens(requests[0]),
        "max_tokens": 3,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = server.headers[0]
    assert (headers["routing-strategy"], headers["user"], headers["Authorization"]) == ("random", "ann", "Bearer secret")


async def test_a_result_tells_times_tokens_and_pod(server):
    server.pause_s = 0.02
    (result,) = await send(trace(1, tokens=5), url=server.url)
    assert (result.status, result.error, result.id, result.pod) == (200, "", "r0", "vllm-0")
    assert (result.prompt_tokens, result.cached_tokens, result.completion_tokens) == (700, 350, 5)
    assert 0 < result.ttft_s < result.e2e_s
    assert result.itl_s == pytest.approx(0.02, rel=0.8)


FAILURES = [
    ("http_503", "http_503", "no pod is ready"),
    ("cut", "truncated", ""),
    ("abort", "aborted", "the engine stopped"),
    ("stream_error", "stream_error", "engine died"),
    ("garbage", "bad_response", "not HTTP"),
    ("no_done", "truncated", "without [DONE]"),
]


@pytest.mark.parametrize(("behaviour", "error", "message"), FAILURES, ids=[case[0] for case in FAILURES])
async def test_what_goes_wrong_has_a_class_and_harms_no_other_request(server, behaviour, error, message):
    server.behaviour = {1: behaviour}
    results = await send(trace(3, every_ms=60), url=server.url)
    assert [result.error for result in results] == ["", error, ""]
    assert message in results[1].message
    if error in ("truncated", "aborted", "stream_error"):
        assert (results[1].status, results[1].id, results[1].pod) == (200, "r1", "vllm-1"), "an answer that began can be looked up"


async def test_an_engine_that_says_nothing_is_a_timeout(server):
    server.behaviour = {0: "silent"}
    (result,) = await send(trace(1), url=server.url, timeout_s=0.2)
    assert (result.error, result.status) == ("timeout", 0)


async def test_nobody_listening_is_a_connect_error(server):
    (result,) = await send(trace(1), url="http://127.0.0.1:9")
    assert result.error == "connect"


async def test_no_more_requests_are_under_way_than_allowed(server):
    server.pause_s = 0.01
    results = await send(trace(12), url=server.url, max_in_flight=3)
    assert server.most_in_flight == 3
    assert results[-1].late_s > 0.05, "held-back requests say how late they left"


async def test_connections_are_kept_alive(server):
    results = await send(trace(20, every_ms=5), url=server.url)
    assert {result.error for result in results} == {""}


async def test_cancelling_ends_every_exchange(server):
    server.pause_s = 5.0
    task = asyncio.create_task(send(trace(4), url=server.url))
    await until(lambda: server.in_flight == 4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not server.in_flight)
    assert [other for other in asyncio.all_tasks() if other is not asyncio.current_task()] == []


async def test_a_broken_trace_is_one_error_and_not_a_group(server):
    def broken():
        yield from trace(1)
        raise ConfigError("is broken", file="t.jsonl", line=2)

    with pytest.raises(ConfigError, match="is broken"):
        await send(broken(), url=server.url)


async def test_memory_does_not_grow_with_the_trace(server):
    held = 0
    lazily = (TraceRequest(2.0 * at, 700, 4, (0, at + 1)) for at in range(60))

    def counting(result: RequestResult) -> None:
        nonlocal held
        held = max(held, sum(isinstance(thing, TraceRequest) for thing in gc.get_objects()))

    await loadgen.run(lazily, LoadOptions(url=server.url, model="m", max_in_flight=4), counting)
    assert held < 15


@pytest.mark.parametrize("options", [{"speed": 0}, {"max_in_flight": 0}, {"rate": -1}, {"timeout_s": 0}], ids=str)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError):
        LoadOptions(url="http://x", model="m", **options)


async def test_an_address_that_is_no_http_is_refused():
    with pytest.raises(UsageError, match="plain http"):
        await send(trace(1), url="https://127.0.0.1:1")


class TestArrivals:
    """In virtual time: when requests leave."""

    pytestmark = pytest.mark.looptime

    @staticmethod
    async def times(requests, **options) -> list[tuple[float, float]]:
        loop = asyncio.get_running_loop()
        start = loop.time()
        chosen = LoadOptions(url="http://x", model="m", **options)
        return [(loop.time() - start, due - start) async for _, due in loadgen._arrivals(requests, chosen)]

    async def test_requests_leave_at_the_traces_times(self):
        assert await self.times(trace(3, every_ms=3000)) == [(0, 0), (3, 3), (6, 6)]

    async def test_speed_divides_time(self):
        assert await self.times(trace(3, every_ms=3000), speed=10) == [(0, 0), (pytest.approx(0.3),) * 2, (pytest.approx(0.6),) * 2]

    async def test_a_rate_spreads_a_burst_and_keeps_the_due_times(self):
        left = await self.times(trace(4), rate=2)
        assert [when for when, _ in left] == pytest.approx([0, 0.5, 1.0, 1.5])
        assert [due for _, due in left] == [0, 0, 0, 0]

    async def test_a_rate_above_the_traces_own_changes_nothing(self):
        assert [when for when, _ in await self.times(trace(3, every_ms=1000), rate=50)] == pytest.approx([0, 1, 2])

    async def test_a_trace_that_begins_late_begins_at_once(self):
        requests = [msgspec.structs.replace(request, timestamp=request.timestamp + 5e6) for request in trace(2, every_ms=1000)]
        assert [when for when, _ in await self.times(requests)] == [0, 1]


def test_events_may_be_cut_anywhere():
    stream = (
        b'data: {"choices":[{"text":"a","finish_reason":null}]}\n\n'
        b'data: {"choices":[{"text":"b","finish_reason":"length"}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
        b"data: [DONE]\n\n"
    )
    for size in range(1, len(stream)):
        reader = StreamReader(lambda: 1.0)
        for at in range(0, len(stream), size):
            reader.feed(stream[at : at + size])
        result = RequestResult(index=0)
        reader.complete(result, 0.0)
        assert (result.error, result.cached_tokens, result.completion_tokens, result.ttft_s) == ("", 4, 2, 1.0)


def test_a_token_whose_text_contains_error_is_still_a_token():
    reader = StreamReader(lambda: 1.0)
    reader.feed(b'data: {"choices":[{"text":"an \\"error\\" here","finish_reason":null}]}\n\ndata: [DONE]\n\n')
    result = RequestResult(index=0)
    reader.complete(result, 0.0)
    assert (result.error, result.ttft_s) == ("", 1.0)
