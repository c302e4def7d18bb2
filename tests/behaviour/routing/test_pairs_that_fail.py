"""Prefill pods, decode pods and clients that go wrong in either leg: who is tried next, what the client is told, what is cancelled.

Whatever happens, no request stays counted (the fake gateway checks that at its end) and blocks are taken over at most once (the fake
engines do)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend.core.settings import GatewaySettings
from backend.gateway import pair_exchange
from tests.fakes.fleet import FakeIndex, limits
from tests.fakes.pairs import disaggregated
from tests.fakes.raw_http import RawClient, ask, completion, post
from tests.fakes.upstream import TOKEN, FakeEngine
from tests.fakes.waiting import eventually

both_families = pytest.mark.parametrize("engine", ["vllm", "sglang"])
PAIR = ("p1", "d1")
STREAM = completion(stream=True)


def with_prefill_timeout(seconds: float) -> Callable[[GatewaySettings], GatewaySettings]:
    def change(settings: GatewaySettings) -> GatewaySettings:
        routing = replace(settings.routing, pd=replace(settings.routing.pd, prefill_timeout_s=seconds))
        return replace(settings, routing=routing)

    return change


@both_families
@pytest.mark.parametrize("behaviour", ["reset", "close_middle", "abort", "status:503"])
async def test_a_prefill_pod_that_fails_is_replaced_by_another(tmp_path: Path, engine: str, behaviour: str) -> None:
    layout = ("p1", "p2", "d1")
    async with disaggregated(tmp_path, engine, layout, [FakeEngine("p1", behaviour=behaviour)]) as fleet:
        for _ in range(12):
            answer = await ask(fleet.gateway.port, completion())
            assert (answer.status, answer.headers["prefill-target-pod"]) == (200, "p2")
        await fleet.gateway.record(11)
    retried = [record for record in fleet.gateway.records if record.prefill is not None and record.prefill.attempts]
    assert retried
    for record in retried:
        assert record.prefill is not None
        assert (record.outcome, record.attempts, record.prefill.attempts) == ("ok", [], ["p1"])
        assert record.prefill.error.startswith("p1: ")


@both_families
async def test_a_prefill_pod_that_refuses_connections_is_replaced_and_then_avoided(tmp_path: Path, engine: str) -> None:
    async with disaggregated(tmp_path, engine, ("p1", "p2", "d1")) as fleet:
        await fleet["p1"].stop()
        for _ in range(8):
            assert (await ask(fleet.gateway.port, completion())).headers["prefill-target-pod"] == "p2"
        await fleet.gateway.record(7)
        assert sum(len(record.prefill.attempts) for record in fleet.gateway.records if record.prefill is not None) <= 1


@both_families
@pytest.mark.parametrize(
    ("behaviour", "said", "outcome"),
    [
        ("reset", "from the pod", "upstream_reset"),
        ("garbage", "does not begin with an HTTP/1.1", "upstream_error"),
        ("stall", "no answer to the prefill for 0.2 s", "timeout"),
        ("stall_middle", "no answer to the prefill for 0.2 s", "timeout"),
        ("not_json", "is not JSON", "upstream_error"),
        ("status:500", "answered 500: engine says no", "upstream_error"),
        ("plain_error", "answered 503", "upstream_error"),
        ("abort", "draining", "upstream_error"),
    ],
)
async def test_the_only_prefill_pod_fails(tmp_path: Path, engine: str, behaviour: str, said: str, outcome: str) -> None:
    quick = limits(idle_timeout_s=0.2)  # its clock ticks faster
    async with disaggregated(
        tmp_path, engine, PAIR, [FakeEngine("p1", behaviour=behaviour)], limits=quick, change=with_prefill_timeout(0.2)
    ) as fleet:
        fleet["d1"].answer_delay_s = 5.0
        answer = await ask(fleet.gateway.port, STREAM)
        assert (answer.status, answer.headers["x-error-routing"]) == (503, "true")
        message = answer.json()["error"]["message"]
        assert message.startswith("error on selecting target pod: prefill pod p1: ")
        assert said in message
        record = await fleet.gateway.record()
        assert (record.outcome, record.status) == (outcome, 503)
        if engine == "vllm":
            assert not fleet["d1"].answered
        else:
            await eventually(lambda: not fleet["d1"].connections)


@both_families
@pytest.mark.parametrize(("behaviour", "status"), [("status:400", 400), ("status:404", 404), ("status:429", 429), ("holds_error", 429)])
async def test_a_request_that_the_prefill_pod_calls_wrong_is_not_tried_elsewhere(
    tmp_path: Path, engine: str, behaviour: str, status: int
) -> None:
    layout = ("p1", "p2", "d1")
    engines = [FakeEngine("p1", behaviour=behaviour), FakeEngine("p2", behaviour=behaviour)]
    async with disaggregated(tmp_path, engine, layout, engines) as fleet:
        fleet["d1"].answer_delay_s = 5.0
        answer = await ask(fleet.gateway.port, completion())
        assert answer.status == status
        assert answer.json()["error"]["message"] in ("engine says no", "inside")
        assert answer.headers.get("retry-after") == (None if behaviour == "holds_error" else "7")
        record = await fleet.gateway.record()
        assert (record.outcome, len(fleet["p1"].answered) + len(fleet["p2"].answered)) == ("upstream_error", 1)


@both_families
@pytest.mark.parametrize("behaviour", ["reset", "close_middle", "reset_middle", "abort", "status:503"])
async def test_a_decode_pod_that_fails_before_its_first_byte_is_replaced_with_both_legs_new(
    tmp_path: Path, engine: str, behaviour: str
) -> None:
    async with disaggregated(tmp_path, engine, ("p1", "d1", "d2"), [FakeEngine("d1", behaviour=behaviour)]) as fleet:
        for _ in range(8):
            answer = await ask(fleet.gateway.port, completion())
            assert (answer.status, answer.headers["target-pod"]) == (200, "d2")
        await fleet.gateway.record(7)
        failed = [record for record in fleet.gateway.records if record.attempts]
        assert failed
        assert all((record.attempts, record.outcome) == (["d1"], "ok") for record in failed)
        names = [seen.headers["x-request-id"] for seen in fleet["p1"].answered]
        assert len(names) == len(set(names)) == 8 + len(failed), "blocks of two tries have two names"


async def test_a_decode_pod_that_was_never_reached_is_replaced_without_a_second_prefill(tmp_path: Path) -> None:
    async with disaggregated(tmp_path, "vllm", ("p1", "d1", "d2")) as fleet:
        await fleet["d1"].stop()
        for _ in range(6):
            assert (await ask(fleet.gateway.port, completion())).headers["target-pod"] == "d2"
        await fleet.gateway.record(5)
        assert any(record.attempts for record in fleet.gateway.records)
        assert len(fleet["p1"].answered) == 6


@both_families
async def test_blocks_that_cannot_be_loaded_are_computed_by_another_prefill_pod(tmp_path: Path, engine: str) -> None:
    async with disaggregated(tmp_path, engine, ("p1", "p2", "d1")) as fleet:
        fleet["d1"].behaviour = "status:500"
        asked = asyncio.create_task(ask(fleet.gateway.port, completion()))
        fleet["d1"].answer_delay_s = 0.05
        await eventually(lambda: bool(fleet["d1"].answered))
        await eventually(lambda: len(fleet["p1"].answered) + len(fleet["p2"].answered) == 2)
        fleet["d1"].behaviour = "ok"
        assert (await asked).status == 200
        record = await fleet.gateway.record()
    assert record.prefill is not None
    assert {*record.prefill.attempts, record.prefill.chosen} == {"p1", "p2"}


@both_families
async def test_an_error_of_every_decode_is_told_once_another_pair_was_tried(tmp_path: Path, engine: str) -> None:
    async with disaggregated(tmp_path, engine, ("p1", "p2", "p3", "d1"), [FakeEngine("d1", behaviour="status:500")]) as fleet:
        answer = await ask(fleet.gateway.port, completion())
        assert (answer.status, answer.json()["error"]["message"]) == (500, "engine says no")
        assert len(fleet["d1"].answered) == 2


@both_families
@pytest.mark.parametrize(
    ("behaviour", "status"), [("garbage", 502), ("reset", 502), ("stall", 504), ("status:400", 400), ("not_json", 500)]
)
async def test_the_only_decode_pod_fails_as_the_only_pod_of_a_plain_model_does(
    tmp_path: Path, engine: str, behaviour: str, status: int
) -> None:
    quick = limits(first_byte_timeout_s=0.2, idle_timeout_s=0.2)
    async with disaggregated(tmp_path, engine, PAIR, [FakeEngine("d1", behaviour=behaviour)], limits=quick) as fleet:
        answer = await ask(fleet.gateway.port, completion())
        assert (answer.status, answer.headers["target-pod"], answer.headers["prefill-target-pod"]) == (status, "d1", "p1")
        assert (await fleet.gateway.record()).status == status


@both_families
async def test_three_tries_are_enough(tmp_path: Path, engine: str) -> None:
    layout = [f"p{at}" for at in range(5)] + ["d1"]
    async with disaggregated(tmp_path, engine, layout, [FakeEngine(name, behaviour="reset") for name in layout[:5]]) as fleet:
        assert (await ask(fleet.gateway.port, completion())).status == 503
        assert sum(len(fleet[name].answered) for name in layout[:5]) == 3


@both_families
@pytest.mark.parametrize("behaviour", ["close_middle", "reset_middle", "bad_chunk"])
async def test_a_stream_that_breaks_is_closed_without_a_false_end(tmp_path: Path, engine: str, behaviour: str) -> None:
    async with disaggregated(
        tmp_path, engine, ("p1", "d1", "d2"), [FakeEngine(name, behaviour=behaviour) for name in ("d1", "d2")]
    ) as fleet:
        async with RawClient(fleet.gateway.port) as client:
            client.send(post(STREAM))
            assert (await client.head())[0] == 200
            assert not (await client.ended()).endswith(b"0\r\n\r\n")
        record = await fleet.gateway.record()
        assert (record.outcome, len(fleet["p1"].answered)) == ("truncated", 1)


async def test_a_prefill_leg_that_fails_behind_the_first_token_is_only_noted(tmp_path: Path) -> None:
    async with disaggregated(tmp_path, "sglang", PAIR, [FakeEngine("d1", gap_s=0.05)]) as fleet:
        fleet["p1"].behaviour, fleet["p1"].answer_delay_s = "reset", 0.1
        answer = await ask(fleet.gateway.port, STREAM)
        assert answer.body.count(b" token") == 4
        record = await fleet.gateway.record()
    assert (record.outcome, record.error, record.hit_class) == ("ok", "", "unpredicted")
    assert record.prefill is not None
    assert record.prefill.error.startswith("p1: ")


@both_families
@pytest.mark.parametrize("where", ["p1", "d1"])
async def test_a_client_that_leaves_cancels_both_legs(tmp_path: Path, engine: str, where: str) -> None:
    async with disaggregated(tmp_path, engine, PAIR) as fleet:
        fleet[where].delay_s = 30.0
        async with RawClient(fleet.gateway.port) as client:
            client.send(post(STREAM))
            await eventually(lambda: bool(fleet[where].answered))
            assert fleet.gateway.in_flight() >= 1
        record = await fleet.gateway.record()
        assert (record.outcome, record.status) == ("client_gone", 0)
        assert fleet.gateway.in_flight() == 0
        await eventually(lambda: not fleet[where].connections)
        if engine == "sglang":
            await eventually(lambda: not fleet["p1"].connections and not fleet["d1"].connections)


async def test_a_client_that_leaves_in_mid_answer_cancels_the_decode(tmp_path: Path) -> None:
    async with disaggregated(tmp_path, "vllm", PAIR, [FakeEngine("d1", events=[TOKEN] * 100, gap_s=0.05)]) as fleet:
        async with RawClient(fleet.gateway.port) as client:
            client.send(post(STREAM))
            await client.head()
        assert (await fleet.gateway.record()).outcome == "client_gone"
        await eventually(lambda: not fleet["d1"].connections)


@both_families
@pytest.mark.parametrize("which", ["p1", "d1"])
async def test_a_connection_that_was_closed_while_idle_is_nobodys_failure(tmp_path: Path, engine: str, which: str) -> None:
    async with disaggregated(tmp_path, engine, PAIR) as fleet:
        assert (await ask(fleet.gateway.port, completion())).status == 200
        for connection in list(fleet[which].connections):
            connection.end()
        assert (await ask(fleet.gateway.port, completion())).status == 200
        await fleet.gateway.record(1)
        assert [record.attempts for record in fleet.gateway.records] == [[], []]
        assert [record.prefill.attempts for record in fleet.gateway.records if record.prefill is not None] == [[], []]


async def test_without_a_ready_pair_the_client_is_told_what_is_missing(tmp_path: Path) -> None:
    async with disaggregated(tmp_path, "vllm", ("p1", "p2", "d1")) as fleet:
        fleet.change(d1=False)
        answer = await ask(fleet.gateway.port, completion())
        assert (answer.status, answer.headers["x-error-routing"]) == (503, "true")
        assert "prefill=2, decode=0" in answer.json()["error"]["message"]
        assert not fleet["p1"].requests
        record = await fleet.gateway.record()
        assert (record.outcome, record.policy, record.prefill) == ("refused", "pd", None)


@pytest.mark.parametrize(
    ("asked", "extra", "param"),
    [
        pytest.param(completion(prompt=[1, 2.5]), "", "prompt", id="token_ids_that_are_none"),
        pytest.param(completion(), "routing-strategy: Random\r\n", None, id="a_strategy_that_is_none"),
    ],
)
async def test_a_clients_mistake_reaches_no_pod(tmp_path: Path, asked: dict[str, Any], extra: str, param: str | None) -> None:
    async with disaggregated(tmp_path, "vllm", PAIR) as fleet:
        answer = await ask(fleet.gateway.port, asked, extra=extra)
        assert (answer.status, answer.json()["error"]["param"]) == (400, param)
        assert not fleet["p1"].requests


async def test_a_client_that_leaves_while_its_prompt_is_tokenized_is_recorded_as_gone(tmp_path: Path) -> None:
    engines = [FakeEngine("p1", tokenize_behaviour="stall")]
    async with disaggregated(tmp_path, "vllm", PAIR, engines, index=FakeIndex({"p1": 0})) as fleet:
        async with RawClient(fleet.gateway.port) as client:
            client.send(post(completion(prompt="hello")))
            await eventually(lambda: bool(fleet["p1"].requests))
        record = await fleet.gateway.record()
        assert (record.outcome, record.prefill, fleet["p1"].answered) == ("client_gone", None, [])


async def test_a_prefill_pod_that_never_answers_is_given_up_a_moment_after_the_decode_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_exchange, "LINGER_S", 0.05)
    async with disaggregated(tmp_path, "sglang", PAIR) as fleet:
        fleet["p1"].answer_delay_s = 30.0
        assert (await ask(fleet.gateway.port, completion())).status == 200
        record = await fleet.gateway.record()
        assert (record.outcome, record.cached_tokens, fleet.gateway.in_flight()) == ("ok", None, 0)
        await eventually(lambda: not fleet["p1"].connections)
