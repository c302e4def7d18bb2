"""What the gateway answers itself: AIBrix's table of errors in the OpenAI shape, and HTTP that it does not trust."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fleet import limits, pod, running_gateway
from tests.fakes.raw_http import RawClient, ask, completion, get, post
from tests.fakes.upstream import FakeEngine

PATH = "/v1/completions"
CHAT = "/v1/chat/completions"
BODY = "x-error-request-body-processing"
MODEL = "x-error-no-model-backends"

TABLE: list[tuple[str, bytes, int, str, str, str | None, str | None]] = [
    # id, request, status, header, part of the message, code, param
    ("unknown_path", post(completion(), path="/v1/nothing"), 501, BODY, "unknown request path", None, None),
    ("trailing_slash", post(completion(), path=PATH + "/"), 501, BODY, "unknown request path", None, None),
    ("path_for_later", post(completion(), path="/v1/embeddings"), 501, BODY, "unknown request path", None, None),
    ("get_on_inference", get(PATH), 405, "allow", "method GET is not allowed", None, None),
    ("post_on_models", post({}, path="/v1/models"), 405, "allow", "use GET", None, None),
    ("empty_body", post(b""), 400, BODY, "request body is empty", None, None),
    ("not_json", post(b"{"), 400, BODY, "error processing request body", None, None),
    ("not_an_object", post(b"[]"), 400, BODY, "error processing request body", None, None),
    ("null_body", post(b"null", path=CHAT), 400, BODY, "no messages in the request body", None, "messages"),
    ("no_messages", post({"model": "m"}, path=CHAT), 400, BODY, "no messages in the request body", None, "messages"),
    ("empty_messages", post({"model": "m", "messages": []}, path=CHAT), 400, BODY, "no messages in the request body", None, "messages"),
    ("messages_text", post({"model": "m", "messages": "x"}, path=CHAT), 400, BODY, "error processing request body", None, "messages"),
    ("model_number", post(completion(model=1)), 400, BODY, "error processing request body", None, "model"),
    ("stream_text", post(completion(stream="yes")), 400, BODY, "error processing request body", None, "stream"),
    ("prompt_object", post(completion(prompt={})), 400, BODY, "error processing request body", None, "prompt"),
    ("negative_token", post(completion(prompt=[1, -2])), 400, BODY, "token ids", None, "prompt"),
    ("unknown_model", post(completion(model="x")), 400, MODEL, "model x does not exist", "model_not_found", "model"),
    ("no_model", post({"prompt": "x"}), 400, MODEL, "model  does not exist", "model_not_found", "model"),
    ("no_ready_pod", post(completion(model="sleepy")), 503, MODEL, "error on getting pods for model sleepy", "service_unavailable", None),
    ("bad_strategy", post(completion(), extra="routing-strategy: Random\r\n"), 400, "x-error-routing", "incorrect routing strategy Random",
     None, None),
]  # fmt: skip
TYPES = {400: "invalid_request_error", 405: "invalid_request_error", 501: "api_error", 503: "overloaded_error"}


@pytest.mark.parametrize(("raw", "status", "header", "message", "code", "param"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
async def test_an_error_has_its_status_header_and_body(
    tmp_path: Path, raw: bytes, status: int, header: str, message: str, code: str | None, param: str | None
) -> None:
    async with FakeEngine("a") as engine:
        async with running_gateway(tmp_path, [pod(engine), pod(FakeEngine("b"), ready=False, model="sleepy")]) as gateway:
            async with RawClient(gateway.port) as client:
                client.send(raw)
                answer = await client.answer()
                assert answer.status == status
                assert answer.headers["content-type"] == "application/json"
                assert header in answer.headers
                error = answer.json()["error"]
                assert message in error["message"]
                assert (error["type"], error["code"], error["param"]) == (TYPES[status], code, param)
                # An error of one request is no reason to lose the connection.
                client.send(get("/healthz"))
                assert (await client.answer()).status == 200
        assert engine.requests == []


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"model": "m"}, id="no_prompt"),
        pytest.param(completion(stream=None), id="stream_null"),
        pytest.param(completion(prompt=["a", "b"]), id="batch_of_texts"),
        pytest.param(completion(prompt=[[1, 2], [3]]), id="batch_of_token_lists"),
        pytest.param(completion(prompt=[]), id="empty_list"),
    ],
)
async def test_bodies_that_aibrix_accepts_pass(tmp_path: Path, body: Any) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        assert (await ask(gateway.port, body)).status == 200


async def test_a_message_without_content_passes(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        body = {"model": "m", "messages": [{"role": "user", "content": None}, {"role": "user"}]}
        assert (await ask(gateway.port, body, path=CHAT)).status == 200


async def test_with_a_key_only_its_bearer_is_served(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine:
        async with running_gateway(tmp_path, [pod(engine)], change=lambda settings: replace(settings, auth_token="secret")) as gateway:
            refused = await ask(gateway.port, completion(), extra="authorization: Bearer wrong\r\n")
            assert (refused.status, refused.json()["error"]["code"]) == (401, "invalid_api_key")
            assert (await ask(gateway.port, completion(), extra="authorization: Bearer secret\r\n")).status == 200


HOST = b"host: g\r\n"
SMUGGLING = [
    ("two_equal_lengths", b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc"),
    ("two_lengths", b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd"),
    ("list_of_lengths", b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 3, 3\r\n\r\nabc"),
    ("length_and_chunked", b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("chunked_and_length", b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n"),
    ("signed_length", b"POST / HTTP/1.1\r\n" + HOST + b"content-length: +3\r\n\r\nabc"),
    ("unknown_coding", b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("gzip_chunked", b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("chunked_not_last", b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    ("chunked_twice", b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("hidden_tab_coding", b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    ("blank_before_colon", b"POST / HTTP/1.1\r\n" + HOST + b"content-length : 3\r\n\r\nabc"),
    ("folded_header", b"GET / HTTP/1.1\r\n" + HOST + b"a: b\r\n c\r\n\r\n"),
    ("bare_line_feeds", b"GET / HTTP/1.1\nhost: g\n\n"),
    ("bare_return", b"GET / HTTP/1.1\r\n" + HOST + b"a: b\rc\r\n\r\n"),
    ("nul_in_value", b"GET / HTTP/1.1\r\n" + HOST + b"a: \x00\r\n\r\n"),
    ("chunk_size_blank", b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n"),
    ("chunk_line_feed", b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n"),
    ("chunk_size_overflow", b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff1\r\n"),
    ("two_hosts", b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n"),
    ("no_host", b"GET / HTTP/1.1\r\n\r\n"),
    ("chunks_in_http_1_0", b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("blank_in_target", b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("http_2_preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("unknown_method", b"FOO / HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("tls_hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
]


@pytest.mark.parametrize("raw", [each[1] for each in SMUGGLING], ids=[each[0] for each in SMUGGLING])
async def test_what_two_readers_could_read_differently_is_refused_and_closed(tmp_path: Path, raw: bytes) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            client.send(raw + post(completion()))
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (400, "close")
            assert answer.json()["error"]["type"] == "invalid_request_error"
            assert await client.ended() == b""
        assert engine.requests == []


async def test_what_came_before_a_malformed_request_is_still_answered(tmp_path: Path) -> None:
    async with FakeEngine("a", delay_s=0.02) as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            client.send(post(completion()) + SMUGGLING[0][1])
            assert (await client.answer()).status == 200
            assert (await client.answer()).status == 400


async def test_an_upgrade_is_not_taken(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            client.send(get("/healthz", extra="connection: upgrade\r\nupgrade: h2c\r\n") + b"whatever")
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await client.ended() == b""


@pytest.mark.parametrize(("version", "status"), [("0.9", 400), ("2.0", 505), ("1.2", 400)])
async def test_other_versions_are_refused(tmp_path: Path, version: str, status: int) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            client.send(f"GET /healthz HTTP/{version}\r\nhost: g\r\n\r\n".encode())
            assert (await client.answer()).status in (status, 400, 505)


@pytest.mark.parametrize("size", [1, 100_000])
async def test_a_head_that_is_too_large_is_431(tmp_path: Path, size: int) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)], limits=limits(header_bytes=8192)) as gateway:
        async with RawClient(gateway.port) as client:
            head = get("/healthz", extra="a: " + "x" * 20_000 + "\r\n")
            for at in range(0, len(head), max(size, 512)):
                client.send(head[at : at + max(size, 512)])
                await asyncio.sleep(0)
            assert (await client.answer()).status == 431


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_that_is_too_large_is_413(tmp_path: Path, chunked: bool) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)], limits=limits(body_bytes=10_000)) as gateway:
        async with RawClient(gateway.port) as client:
            if chunked:
                client.send(b"POST /v1/completions HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n")
                client.send(b"1000\r\n" + b"x" * 4096 + b"\r\n" + b"2000\r\n" + b"x" * 8192 + b"\r\n")
            else:
                client.send(post(b"x" * 1_000_000))
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (413, "close")


async def test_a_client_that_does_not_finish_its_request_is_408(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)], limits=limits(header_timeout_s=0.1)) as gateway:
        async with RawClient(gateway.port) as client:
            began = time.monotonic()
            client.send(b"POST /v1/completions HTTP/1.1\r\nhost: g\r\n")
            assert (await client.answer()).status == 408
            assert 0.09 < time.monotonic() - began < 1.5


async def test_an_idle_connection_is_closed_in_time(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)], limits=limits(keepalive_s=0.1)) as gateway:
        async with RawClient(gateway.port) as client:
            client.send(get("/healthz"))
            await client.answer()
            assert await client.ended(2.0) == b""


async def test_an_unmet_expectation_is_417(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        assert (await ask(gateway.port, completion(), extra="expect: magic\r\n")).status == 417


async def test_a_request_may_be_split_at_any_byte(tmp_path: Path) -> None:
    raw = post({"model": "m", "prompt": [1]}, extra="routing-strategy: random\r\n")
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            for cut in range(1, len(raw)):
                client.send(raw[:cut])
                await asyncio.sleep(0.0005)
                client.send(raw[cut:])
                assert (await client.answer()).status == 200
        assert all(seen.body == engine.requests[0].body for seen in engine.requests)
