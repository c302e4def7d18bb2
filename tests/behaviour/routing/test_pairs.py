"""Requests of models with prefill and decode pods, over real sockets: both legs, both counts, one answer, one record. Not here: which pair
is picked (tests/unit/gateway/test_pd_policy), what goes wrong (test_pairs_that_fail)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fleet import FakeIndex, pod
from tests.fakes.pairs import disaggregated
from tests.fakes.raw_http import RawClient, ask, completion, post
from tests.fakes.upstream import FakeEngine
from tests.fakes.waiting import eventually

both_families = pytest.mark.parametrize("engine", ["vllm", "sglang"])
PAIR = ("p1", "d1")


@both_families
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_the_prompt_is_computed_by_one_pod_and_answered_by_another(tmp_path: Path, engine: str, stream: bool, path: str) -> None:
    body = completion(stream=stream, messages=[{"role": "user", "content": "x"}], stream_options={"include_usage": True})
    async with disaggregated(tmp_path, engine, PAIR) as fleet:
        answer = await ask(fleet.gateway.port, body, path=path, extra="X-Mine: yes\r\nprefill-target-pod: evil\r\n")
        assert answer.status == 200
        assert answer.body.count(b" token" if stream else b"hello") == (4 if stream else 1)
        sent = {name: fleet[name].answered[0] for name in PAIR}
        assert fleet.partners() == [PAIR]
        record = await fleet.gateway.record()
    assert answer.headers["routing-strategy"] == "pd"
    assert (answer.headers["target-pod"], answer.headers["target-pod-ip"]) == ("d1", fleet["d1"].address)
    assert (answer.headers["prefill-target-pod"], answer.headers["prefill-target-pod-ip"]) == ("p1", "127.0.0.1")
    prefill, decode = (json.loads(sent[name].body) for name in PAIR)
    assert (prefill["max_tokens"], prefill["stream"]) == (1, False)
    assert {name: decode[name] for name in body} == body
    for seen in sent.values():
        assert (seen.path, seen.headers["x-mine"], seen.headers["routing-strategy"]) == (path, "yes", "pd")
        assert seen.headers["x-request-id"] == answer.headers["request-id"]
        assert "prefill-target-pod" not in seen.headers
    assert "target-pod" not in sent["p1"].headers
    assert (record.policy, record.outcome, record.chosen, record.id) == ("pd", "ok", "d1", answer.headers["request-id"])
    assert record.prefill is not None
    assert (record.prefill.chosen, record.prefill.group, record.prefill.in_flight) == ("p1", "rs@r1", 0)


async def test_the_hit_promised_and_told_is_the_prefill_pods(tmp_path: Path) -> None:
    index = FakeIndex({"p1": 0, "p2": 64, "d1": 96})
    engines = [FakeEngine("p1"), FakeEngine("p2", cached_tokens=64), FakeEngine("d1", cached_tokens=0)]
    async with disaggregated(tmp_path, "vllm", ("p1", "p2", "d1"), engines, index=index) as fleet:
        answer = await ask(fleet.gateway.port, completion(prompt=list(range(100))))
        record = await fleet.gateway.record()
    assert answer.headers["prefill-target-pod"] == "p2"
    assert (record.reason, record.predicted_tokens, record.cached_tokens, record.hit_class) == ("prefix_match", 64, 64, "exact")
    assert (record.block_size, record.prompt_tokens, record.completion_tokens) == (16, 100, 4)
    assert (record.candidates, record.terms["in_flight"]) == (["d1"], [0])
    assert record.prefill is not None
    assert (record.prefill.candidates, record.prefill.terms["matched_tokens"]) == (["p1", "p2"], [0, 64])
    assert record.prefill.wait_ms is not None
    assert record.ttft_ms is not None
    assert record.ttft_ms >= record.prefill.wait_ms, "a first token's time holds its prefill's"


@both_families
async def test_a_prompt_of_words_is_tokenized_by_a_prefill_pod(tmp_path: Path, engine: str) -> None:
    index = FakeIndex({"p1": 3, "p2": 0})
    async with disaggregated(tmp_path, engine, ("p1", "p2", "d1"), index=index) as fleet:
        await ask(fleet.gateway.port, completion(prompt="hello"))
        record = await fleet.gateway.record()
        assert [seen.path for seen in fleet["d1"].requests] == ["/v1/completions"]
    assert (index.asked, record.predicted_tokens, record.prompt_tokens) == ([list(b"hello")], 3, 5)


@both_families
async def test_requests_at_once_are_spread_over_both_sides_and_each_is_counted_on_its_pods(tmp_path: Path, engine: str) -> None:
    layout = ("p1", "p2", "d1", "d2")
    async with disaggregated(tmp_path, engine, layout, [FakeEngine(name, delay_s=0.1) for name in layout]) as fleet:
        asked = [asyncio.create_task(ask(fleet.gateway.port, completion())) for _ in range(8)]
        await eventually(lambda: fleet.gateway.in_flight() == 16)
        await asyncio.gather(*asked)
        assert [len(fleet[name].answered) for name in layout] == [4, 4, 4, 4]
        await fleet.gateway.record(7)
        assert fleet.gateway.in_flight() == 0


@both_families
async def test_a_pair_is_of_one_roleset_and_one_revision(tmp_path: Path, engine: str) -> None:
    layout = ("p1@a@r1", "p2@a@r2", "p3@b@r2", "d1@a@r1", "d2@a@r2", "d4@c@r2", "p5@d@r9")
    async with disaggregated(tmp_path, engine, layout) as fleet:
        for _ in range(40):
            assert (await ask(fleet.gateway.port, completion())).status == 200
        assert set(fleet.partners()) == {("p1", "d1"), ("p2", "d2")}
        record = await fleet.gateway.record()
    assert record.prefill is not None
    assert record.prefill.groups == ["a@r1", "a@r2"]


async def test_pods_of_two_families_are_no_pair(tmp_path: Path) -> None:
    async with disaggregated(tmp_path, "vllm", PAIR) as fleet:
        fleet.pods["d1"].engine = "sglang"
        fleet.set_pods(*fleet.pods.values())
        answer = await ask(fleet.gateway.port, completion())
        assert (answer.status, answer.headers["x-error-routing"]) == (503, "true")
        assert "prefill=1, decode=1" in answer.json()["error"]["message"]


@both_families
async def test_pods_that_leave_get_nothing_new_and_finish_what_they_have(tmp_path: Path, engine: str) -> None:
    layout = ("p1@a@r1", "d1@a@r1", "p2@b@r2", "d2@b@r2")
    async with disaggregated(tmp_path, engine, layout, [FakeEngine("d1", gap_s=0.05)]) as fleet:
        fleet.change(p2=False, d2=False)
        async with RawClient(fleet.gateway.port) as client:
            client.send(post(completion(stream=True)))
            await eventually(lambda: bool(fleet["d1"].requests))
            fleet.change(p1=False, d1=False, p2=True, d2=True)
            for _ in range(4):
                assert (await ask(fleet.gateway.port, completion())).headers["target-pod"] == "d2"
            answer = await client.answer()
        assert answer.body.count(b" token") == 4
        assert [len(fleet[name].answered) for name in ("p1", "d1", "p2", "d2")] == [1, 1, 4, 4]


async def test_a_decode_pod_that_begins_to_leave_during_the_prefill_is_replaced_without_a_second_one(tmp_path: Path) -> None:
    index = FakeIndex({"p1": 32})
    async with disaggregated(tmp_path, "vllm", ("p1", "d1", "d2"), [FakeEngine("p1", delay_s=0.2, cached_tokens=32)], index=index) as fleet:
        fleet.change(d2=False)
        asked = asyncio.create_task(ask(fleet.gateway.port, completion(prompt=list(range(64)))))
        await eventually(lambda: bool(fleet["p1"].requests))
        fleet.change(d1=False, d2=True)
        index.matched["p1"] = 64
        assert (await asked).headers["target-pod"] == "d2"
        assert (len(fleet["p1"].answered), fleet.partners()) == (1, [("p1", "d2")])
        record = await fleet.gateway.record()
    assert (record.predicted_tokens, record.hit_class) == (32, "exact")


@pytest.mark.parametrize("policy", ["least-request", "pd"])
async def test_models_whose_pods_have_no_roles_are_routed_to_one_pod(tmp_path: Path, policy: str) -> None:
    async with disaggregated(tmp_path, "vllm", ("a", "b"), policy=policy) as fleet:
        answer = await ask(fleet.gateway.port, completion(), extra="routing-strategy: pd\r\n")
        record = await fleet.gateway.record()
    assert (answer.status, answer.headers["routing-strategy"]) == (200, "pd")
    assert "prefill-target-pod" not in answer.headers
    assert (record.prefill, record.candidates) == (None, ["a", "b"])


@pytest.mark.parametrize(
    ("engine", "layout", "may_answer"),
    [
        pytest.param("vllm", ("p1", "d1", "d2"), {"d1", "d2"}, id="decode_pods_of_vllm_can_do_it_alone"),
        pytest.param("sglang", ("p1", "d1", "a"), {"a"}, id="those_of_sglang_cannot"),
        pytest.param("sglang", ("p1", "d1"), set(), id="so_there_may_be_nobody"),
        pytest.param("vllm", ("p1",), {"p1"}, id="without_decode_pods_a_prefill_pod_is_as_any_other"),
    ],
)
async def test_another_policy_never_gives_a_prefill_pod_the_whole_request(
    tmp_path: Path, engine: str, layout: tuple[str, ...], may_answer: set[str]
) -> None:
    async with disaggregated(tmp_path, engine, layout) as fleet:
        seen = set()
        for _ in range(12):
            answer = await ask(fleet.gateway.port, completion(), extra="routing-strategy: random\r\n")
            assert answer.status == (200 if may_answer else 503)
            seen |= {answer.headers["target-pod"]} if may_answer else set()
    assert seen == may_answer


async def test_without_a_pair_pods_that_do_both_answer(tmp_path: Path) -> None:
    async with disaggregated(tmp_path, "vllm", ("p1@a@r1", "d1@a@r2", "x")) as fleet:
        answer = await ask(fleet.gateway.port, completion())
        assert (answer.status, answer.headers["target-pod"]) == (200, "x")


async def test_only_the_first_pod_of_an_instance_over_several_is_asked(tmp_path: Path) -> None:
    async with FakeEngine("p2") as rest, disaggregated(tmp_path, "vllm", PAIR) as fleet:
        other = pod(rest, labels={**fleet.pods["p1"].labels, "pod-group-index": "1"})
        fleet.set_pods(*fleet.pods.values(), other)
        for _ in range(6):
            await ask(fleet.gateway.port, completion())
        assert not rest.requests


@pytest.mark.parametrize(
    ("selector", "status", "said"),
    [
        pytest.param("zone=b", 200, "", id="a_pair_that_has_it"),
        pytest.param("zone=c", 503, "external-filter", id="nobody_has_it"),
        pytest.param("zone in b", 400, "incorrect external-filter", id="no_selector"),
    ],
)
async def test_a_filter_is_for_both_pods(tmp_path: Path, selector: str, status: int, said: str) -> None:
    async with disaggregated(tmp_path, "vllm", ("p1@a@r1", "d1@a@r1", "p2@b@r1", "d2@b@r1")) as fleet:
        for name, one in fleet.pods.items():
            one.labels = {**one.labels, "zone": "ab"[int(name[1]) - 1]}
        fleet.set_pods(*fleet.pods.values())
        for _ in range(4):
            answer = await ask(fleet.gateway.port, completion(), extra=f"external-filter: {selector}\r\n")
            assert answer.status == status
            assert said in answer.body.decode()
        assert not fleet["p1"].requests


async def test_what_a_client_says_of_the_exchange_is_replaced(tmp_path: Path) -> None:
    stolen: dict[str, Any] = {"do_remote_prefill": True, "remote_block_ids": [[1]], "remote_request_id": "somebody-else"}
    async with disaggregated(tmp_path, "vllm", PAIR) as fleet:
        await ask(fleet.gateway.port, completion(kv_transfer_params=stolen))
        assert json.loads(fleet["d1"].requests[0].body)["kv_transfer_params"]["remote_engine_id"] == "p1"


async def test_a_prefill_pod_without_a_connector_is_noticed_and_the_request_is_answered(tmp_path: Path) -> None:
    async with disaggregated(tmp_path, "vllm", PAIR) as fleet:
        fleet["p1"].blocks = None
        assert (await ask(fleet.gateway.port, completion())).status == 200
        assert "kv_transfer_params" not in json.loads(fleet["d1"].requests[0].body)
        assert b'reason="prefill_without_transfer"} 1' in fleet.gateway.gateway.render_metrics()


async def test_sglangs_legs_are_told_where_and_each_request_has_a_room_of_its_own(tmp_path: Path) -> None:
    async with disaggregated(tmp_path, "sglang", PAIR) as fleet:
        fleet.pods["p1"].annotations = {"model.aibrix.ai/sglang-bootstrap-port": "9001"}
        fleet.set_pods(*fleet.pods.values())
        await asyncio.gather(*(ask(fleet.gateway.port, completion()) for _ in range(4)))
        told = [json.loads(seen.body) for name in PAIR for seen in fleet[name].answered]
    assert {(one["bootstrap_host"], one["bootstrap_port"]) for one in told} == {("127.0.0.1", 9001)}
    assert len(fleet.rooms.inside) == 4


async def test_an_answer_does_not_wait_for_a_slow_prefill_answer_but_its_record_does(tmp_path: Path) -> None:
    async with disaggregated(tmp_path, "sglang", PAIR, [FakeEngine("p1", cached_tokens=48)]) as fleet:
        fleet["p1"].answer_delay_s = 0.2
        async with RawClient(fleet.gateway.port) as client:
            for _ in range(2):
                client.send(post(completion()))
                assert (await client.answer()).status == 200
            assert fleet.gateway.in_flight() == 2
            record = await fleet.gateway.record(1)
    assert record.cached_tokens == 48
    assert record.prefill is not None
    assert record.total_ms < (record.prefill.wait_ms or 0)


async def test_both_choices_are_counted(tmp_path: Path) -> None:
    async with disaggregated(tmp_path, "vllm", PAIR) as fleet:
        for _ in range(3):
            await ask(fleet.gateway.port, completion())
        await fleet.gateway.record(2)
        text = fleet.gateway.gateway.render_metrics().decode()
    for line in (
        'gateway_prefill_request_success_total{model="m"} 3.0',
        'pd_selected_prefill_pod_total{model="m",pod="p1"} 3.0',
        'pd_selected_decode_pod_total{model="m",pod="d1"} 3.0',
        'gateway_prefill_outstanding_requests{model="m"} 0.0',
    ):
        assert line in text
