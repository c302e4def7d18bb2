"""Requests that go well: what reaches the engine, what comes back, what is recorded. Not here: refusals (test_refusals), engines that
misbehave (test_bad_engines), how policies choose (tests/unit/gateway)."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tests.fakes.fleet import FakeIndex, pod, running_gateway
from tests.fakes.raw_http import RawClient, ask, completion, get, post
from tests.fakes.upstream import FakeEngine


async def test_a_plain_answer_passes_unchanged_with_the_gateways_headers(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        answer = await ask(gateway.port, completion(), extra="X-Mine: yes\r\nConnection: x-hop\r\nX-Hop: no\r\ntarget-pod: evil:1\r\n")
        assert answer.status == 200
        assert answer.json()["choices"][0]["text"] == "hello"
        assert answer.headers["routing-strategy"] == "least-request"
        assert answer.headers["target-pod"] == "a"
        assert answer.headers["target-pod-ip"] == engine.address
        seen = engine.requests[0]
        assert seen.headers["x-mine"] == "yes"
        assert "x-hop" not in seen.headers
        assert seen.headers["target-pod"] == engine.address
        assert seen.headers["x-request-id"] == answer.headers["request-id"]
        record = await gateway.record()
        assert (record.outcome, record.status, record.chosen, record.id) == ("ok", 200, "a", answer.headers["request-id"])
        assert (record.cached_tokens, record.usage_prompt_tokens, record.completion_tokens) == (0, 100, 4)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("behaviour", ["ok", "trickle"])
async def test_a_stream_passes_byte_for_byte_and_its_usage_is_read(tmp_path: Path, path: str, behaviour: str) -> None:
    body = completion(stream=True, stream_options={"include_usage": True}, messages=[{"role": "user", "content": "x"}])
    async with FakeEngine("a", cached_tokens=64, gap_s=0.01, behaviour=behaviour) as engine:
        direct = await ask(engine.port, body, path=path)
        async with running_gateway(tmp_path, [pod(engine)]) as gateway:
            answer = await ask(gateway.port, body, path=path)
            record = await gateway.record()
    assert answer.raw_body == direct.raw_body
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (record.cached_tokens, record.completion_tokens, record.outcome) == (64, 4, "ok")
    assert record.ttft_ms is not None
    assert record.itl_ms is not None
    # The role event comes one gap before the first token.
    assert record.ttft_ms >= (9 if "chat" in path else 0)
    assert record.itl_ms >= 5


async def test_a_stream_without_usage_is_not_changed_to_have_one(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        body = b'{"stream":true,  "model":"m","prompt":[1,2],"x":1}'
        answer = await ask(gateway.port, body)
        assert b"usage" not in answer.body
        assert engine.requests[0].body == body
        record = await gateway.record()
        assert (record.cached_tokens, record.hit_class) == (None, "unpredicted")


async def test_sixteen_requests_at_once_go_four_to_each_of_four_idle_pods(tmp_path: Path) -> None:
    engines = [FakeEngine(name, delay_s=0.05) for name in "abcd"]
    for engine in engines:
        await engine.start()
    async with running_gateway(tmp_path, map(pod, engines)) as gateway:
        await asyncio.gather(*(ask(gateway.port, completion()) for _ in range(16)))
        assert [len(engine.requests) for engine in engines] == [4, 4, 4, 4]
    for engine in engines:
        await engine.stop()


async def test_the_pod_that_holds_the_prefix_is_chosen_and_the_prediction_is_compared(tmp_path: Path) -> None:
    index = FakeIndex({"a": 0, "b": 64})
    async with FakeEngine("a") as a, FakeEngine("b", cached_tokens=64) as b:
        async with running_gateway(tmp_path, [pod(a), pod(b)], policy="prefix-cache", index=index) as gateway:
            answer = await ask(gateway.port, completion(prompt=list(range(100))))
            record = await gateway.record()
    assert answer.headers["target-pod"] == "b"
    assert index.asked == [list(range(100))]
    assert record.terms["matched_tokens"] == [0, 64]
    assert (record.candidates, record.reason, record.predicted_tokens) == (["a", "b"], "prefix_match", 64)
    assert (record.cached_tokens, record.hit_class, record.block_size, record.prompt_tokens) == (64, "exact", 16, 100)
    assert record.index_state == "live"


@pytest.mark.parametrize(("state", "reason"), [("stale", "index_stale"), ("absent", "index_absent")])
async def test_without_a_live_index_the_decision_degrades_and_says_so(tmp_path: Path, state: str, reason: str) -> None:
    index = FakeIndex({"a": 64})
    index.now = state
    async with FakeEngine("a") as engine:
        async with running_gateway(tmp_path, [pod(engine)], policy="prefix-cache", index=index if state == "stale" else None) as gateway:
            await ask(gateway.port, completion())
            record = await gateway.record()
    assert (record.reason, record.index_state, record.predicted_tokens) == (reason, state, None)


async def test_text_is_tokenized_by_an_engine_once_and_remembered(tmp_path: Path) -> None:
    index = FakeIndex({"a": 3})
    async with FakeEngine("a") as engine:
        async with running_gateway(tmp_path, [pod(engine)], policy="prefix-cache", index=index) as gateway:
            for _ in range(2):
                assert (await ask(gateway.port, completion(prompt="abc"))).status == 200
            record = await gateway.record()
    assert index.asked == [[97, 98, 99]] * 2
    assert [seen.path for seen in engine.requests] == ["/tokenize", "/v1/completions", "/v1/completions"]
    assert (record.prompt_tokens, record.reason) == (3, "prefix_match")


async def test_a_chat_is_tokenized_with_its_template(tmp_path: Path) -> None:
    index = FakeIndex({"a": 3})
    async with FakeEngine("a") as engine:
        async with running_gateway(tmp_path, [pod(engine)], policy="prefix-cache", index=index) as gateway:
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
            await ask(gateway.port, body, path="/v1/chat/completions")
    assert b'"messages"' in engine.requests[0].body
    assert b"temperature" not in engine.requests[0].body
    assert len(index.asked) == 1


@pytest.mark.parametrize(("how", "reason"), [("fails", "tokenize_failed"), ("stall", "tokenize_timeout")])
async def test_a_broken_tokenizer_degrades_the_decision_but_never_the_request(tmp_path: Path, how: str, reason: str) -> None:
    from dataclasses import replace

    def quick(settings):  # type: ignore[no-untyped-def]
        return replace(settings, routing=replace(settings.routing, tokenize_timeout_s=0.1))

    async with FakeEngine("a", tokenize_behaviour=how) as engine:
        async with running_gateway(tmp_path, [pod(engine)], policy="prefix-cache", index=FakeIndex({"a": 3}), change=quick) as gateway:
            assert (await ask(gateway.port, completion(prompt="abc"))).status == 200
            record = await gateway.record()
    assert (record.reason, record.predicted_tokens) == (reason, None)


async def test_a_trace_id_becomes_the_request_id_and_records_stay_apart(tmp_path: Path) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        extra = f"traceparent: 00-{trace}-b7ad6b7169203331-01\r\nx-request-id: mine\r\n"
        for _ in range(2):
            answer = await ask(gateway.port, completion(), extra=extra)
            assert answer.headers["request-id"] == trace
        assert engine.requests[0].headers["x-request-id"] == trace
        assert engine.requests[0].headers["traceparent"].split("-")[1] == trace
        first, second = await gateway.record(0), await gateway.record(1)
        assert first.id != second.id
        assert first.id.startswith(trace)


async def test_connections_to_a_pod_are_kept_and_used_again(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        for _ in range(5):
            await ask(gateway.port, completion())
        assert engine.accepted == 1


async def test_small_packets_are_not_held_back_on_either_side(tmp_path: Path) -> None:
    async with FakeEngine("a", gap_s=0.05) as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            client.send(post(completion(stream=True)))
            await client.head()
            (accepted,) = gateway.gateway.clients
            (connection,) = gateway.gateway.targets.models["m"].pods[0].pool.open
            for transport in (accepted._transport, connection.transport):
                sock = transport.get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_pipelined_requests_are_answered_in_their_order(tmp_path: Path) -> None:
    async with FakeEngine("a", delay_s=0.02) as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            client.send(post(completion(user="1")) + get("/healthz") + post(completion(stream=True)) + get("/v1/models"))
            kinds = [(await client.answer()).headers["content-type"] for _ in range(4)]
            assert kinds == ["application/json", "application/json", "text/event-stream; charset=utf-8", "application/json"]


async def test_more_pipelined_requests_than_are_read_ahead_are_all_answered(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            client.send(post(completion()) * 100)
            for _ in range(100):
                assert (await client.answer()).status == 200


async def test_chunked_request_bodies_and_trailers_are_taken(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            client.send(b"POST /v1/completions?x=1 HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n")
            client.send(b'b;a=b\r\n{"model":"m\r\n11\r\n","prompt":[1,2]}\r\n0\r\nx-trailer: y\r\n\r\n')
            assert (await client.answer()).status == 200
        assert engine.requests[0].body == b'{"model":"m","prompt":[1,2]}'
        assert engine.requests[0].line == "POST /v1/completions?x=1 HTTP/1.1"


async def test_a_client_that_expects_it_is_asked_for_its_body(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            head, _, body = post(completion(), extra="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
            client.send(head + b"\r\n\r\n")
            assert (await client.answer()).status == 100
            client.send(body)
            assert (await client.answer()).status == 200


@pytest.mark.parametrize("behaviour", ["chunked", "until_close", "trickle"])
async def test_every_framing_of_an_answer_reaches_the_client_whole(tmp_path: Path, behaviour: str) -> None:
    async with FakeEngine("a", behaviour=behaviour, cached_tokens=5) as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        answer = await ask(gateway.port, completion())
        assert answer.json()["choices"][0]["text"] == "hello"
        assert (await gateway.record()).cached_tokens == 5


async def test_an_http_1_0_client_gets_a_stream_without_chunks(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        answer = await ask(gateway.port, completion(stream=True), version="1.0")
        assert "transfer-encoding" not in answer.headers
        assert answer.body.startswith(b"data: {")
        assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_an_http_1_0_client_may_keep_its_connection(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            for _ in range(2):
                client.send(post(completion(), version="1.0", extra="connection: keep-alive\r\n"))
                assert (await client.answer()).headers["connection"] == "keep-alive"


async def test_the_strategy_of_a_request_wins(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)], policy="prefix-cache") as gateway:
        answer = await ask(gateway.port, completion(), extra="routing-strategy:  random  \r\n")
        assert answer.headers["routing-strategy"] == "random"
        assert (await gateway.record()).policy == "random"


async def test_models_health_and_metrics_need_no_pod(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine), pod(engine, model="")]) as gateway:
        await ask(gateway.port, completion())
        async with RawClient(gateway.port) as client:
            client.send(get("/v1/models") + get("/healthz") + get("/metrics") + get("/healthz", method="HEAD"))
            models = (await client.answer()).json()
            assert models == {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "aibrix"}]}
            assert (await client.answer()).json() == {"status": "ok"}
            text = (await client.answer()).body.decode()
            assert 'gateway_requests_total{model="m",outcome="ok",policy="least-request",reason="least_request",status="200"} 1.0' in text
            assert 'gateway_request_model_success_total{model="m",status="gateway_ok",status_code="200"} 1.0' in text
            assert "gateway_in_flight_requests 0.0" in text
            head = await client.answer(head_only=True)
            assert (head.status, head.headers["content-length"]) == (200, "15")
