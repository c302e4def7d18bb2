"""Streams of pods that drain or fail: what comes before the first token can still be replaced, what comes after is told as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.fleet import limits, pod, running_gateway
from tests.fakes.raw_http import RawClient, ask, completion, post
from tests.fakes.upstream import DELTA, DONE, ROLE, TOKEN, FakeEngine
from tests.fakes.waiting import eventually

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
STREAM = completion(stream=True, messages=[{"role": "user", "content": "x"}])
ABORT_TEXT = 'data: {"choices":[{"index":0,"text":"","finish_reason":"abort"}]}\n\n'
ABORT_CHAT = 'data: {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "abort"}]}\n\n'
ERROR = 'data: {"error": {"message": "engine died", "type": "InternalServerError", "code": 500}}\n\n'


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("behaviour", ["ok", "trickle"])
@pytest.mark.parametrize(("path", "events"), [(TEXT, [ABORT_TEXT]), (CHAT, [ROLE, ABORT_CHAT]), (CHAT, [ABORT_CHAT])])
async def test_a_stream_of_a_draining_pod_is_given_to_another(
    tmp_path: Path, path: str, events: list[str], behaviour: str, version: str
) -> None:
    async with FakeEngine("a", events=events, behaviour=behaviour) as a, FakeEngine("b") as b:
        async with running_gateway(tmp_path, [pod(a), pod(b)]) as gateway:
            for _ in range(12):
                answer = await ask(gateway.port, STREAM, path=path, version=version)
                assert (answer.status, answer.headers["target-pod"]) == (200, "b")
                assert b"abort" not in answer.body
                assert answer.body.count(b" token") == 4
            await gateway.record(11)
            retried = [record for record in gateway.records if record.attempts]
            assert retried
            assert all(list(record.attempts) == ["a"] and (record.outcome, record.chosen) == ("ok", "b") for record in retried)


@pytest.mark.parametrize(
    ("path", "events"),
    [
        pytest.param(TEXT, [ABORT_TEXT], id="at_once"),
        pytest.param(CHAT, [ROLE, ABORT_CHAT], id="behind_the_role"),
        pytest.param(TEXT, [TOKEN, TOKEN, ABORT_TEXT], id="in_the_middle"),
    ],
)
@pytest.mark.parametrize("behaviour", ["ok", "trickle"])
async def test_when_no_other_pod_can_help_the_client_sees_what_the_engine_said(
    tmp_path: Path, path: str, events: list[str], behaviour: str
) -> None:
    async with FakeEngine("a", events=events, behaviour=behaviour) as engine:
        direct = await ask(engine.port, STREAM, path=path)
        async with running_gateway(tmp_path, [pod(engine)]) as gateway:
            answer = await ask(gateway.port, STREAM, path=path)
            record = await gateway.record()
    assert answer.raw_body == direct.raw_body
    assert (record.outcome, record.status) == ("aborted", 200)


async def test_a_stream_that_is_aborted_behind_its_first_token_is_not_begun_anew(tmp_path: Path) -> None:
    async with FakeEngine("a", events=[TOKEN, ABORT_TEXT]) as a, FakeEngine("b", events=[TOKEN, ABORT_TEXT]) as b:
        async with running_gateway(tmp_path, [pod(a), pod(b)]) as gateway:
            assert b"abort" in (await ask(gateway.port, STREAM)).body
            record = await gateway.record()
    assert (record.outcome, list(record.attempts)) == ("aborted", [])
    assert len(a.requests) + len(b.requests) == 1


@pytest.mark.parametrize("events", [[ERROR], [TOKEN, TOKEN, ERROR]], ids=["at_once", "in_the_middle"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_an_error_event_is_passed_on_and_recorded_with_its_text(tmp_path: Path, events: list[str], version: str) -> None:
    async with FakeEngine("a", events=events) as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        answer = await ask(gateway.port, STREAM, version=version)
        assert answer.body == "".join([*events, DONE]).encode()
        record = await gateway.record()
    assert (record.outcome, record.status) == ("upstream_error", 200)
    assert "engine died" in record.error


@pytest.mark.parametrize("behaviour", ["close_middle", "reset_middle"])
async def test_a_pod_that_goes_away_before_the_first_token_is_replaced(tmp_path: Path, behaviour: str) -> None:
    async with FakeEngine("a", events=[ROLE], behaviour=behaviour) as a, FakeEngine("b") as b:
        async with running_gateway(tmp_path, [pod(a), pod(b)]) as gateway:
            for _ in range(8):
                answer = await ask(gateway.port, STREAM, path=CHAT)
                assert answer.headers["target-pod"] == "b"
                assert answer.body.count(b'"role"') == 1
            await gateway.record(7)
            assert any(list(record.attempts) == ["a"] for record in gateway.records)
            assert {record.outcome for record in gateway.records} == {"ok"}


async def test_a_pod_that_stalls_before_the_first_token_is_a_time_out_with_an_answer(tmp_path: Path) -> None:
    quick = limits(first_byte_timeout_s=0.2, idle_timeout_s=0.2)
    async with FakeEngine("a", events=[ROLE], gap_s=30) as engine, running_gateway(tmp_path, [pod(engine)], limits=quick) as gateway:
        answer = await ask(gateway.port, STREAM, path=CHAT)
        assert answer.status == 504
        assert (await gateway.record()).outcome == "timeout"


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(": still here\n\n", id="a_comment_that_keeps_the_connection_alive"),
        pytest.param(ROLE.replace("assistant", "assistant" + "x" * 5000), id="more_than_is_held"),
        pytest.param(DELTA, id="a_token"),
    ],
)
async def test_what_is_for_the_client_now_is_not_held_back(tmp_path: Path, first: str) -> None:
    async with FakeEngine("a", events=[first, TOKEN], gap_s=30) as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            client.send(post(STREAM, path=CHAT))
            assert (await client.head())[0] == 200
            await client.reader.readuntil(first[:9].encode())
        assert (await gateway.record()).outcome == "client_gone"


async def test_a_client_that_leaves_while_the_stream_is_held_is_recorded_as_gone(tmp_path: Path) -> None:
    async with FakeEngine("a", events=[ROLE], gap_s=30) as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        async with RawClient(gateway.port) as client:
            client.send(post(STREAM, path=CHAT))
            await eventually(lambda: bool(engine.requests))
        record = await gateway.record()
        assert (record.outcome, record.status) == ("client_gone", 0)
