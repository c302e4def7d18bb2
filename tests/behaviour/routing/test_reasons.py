"""Why a decision was made as it was: reasons outlive a retry, batches promise nothing, hits are counted by what they turned out to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fleet import FakeIndex, Running, pod, running_gateway
from tests.fakes.raw_http import RawClient, ask, completion, get
from tests.fakes.upstream import FakeEngine


async def metrics(gateway: Running) -> str:
    async with RawClient(gateway.port) as client:
        client.send(get("/metrics"))
        return (await client.answer()).body.decode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(completion(prompt="abc"), "tokenize_failed", id="the_tokenizer_failed"),
        pytest.param({"model": "m"}, "no_prompt", id="there_is_no_prompt"),
        pytest.param(completion(prompt=["a", "b"]), "batch", id="a_batch"),
    ],
)
async def test_a_retry_keeps_the_reason_of_the_first_decision(tmp_path: Path, body: dict[str, Any], reason: str) -> None:
    a, b = FakeEngine("a", behaviour="reset", tokenize_behaviour="fails"), FakeEngine("b", tokenize_behaviour="fails")
    async with a, b, running_gateway(tmp_path, [pod(a), pod(b)], policy="prefix-cache", index=FakeIndex({"a": 0, "b": 0})) as gateway:
        for _ in range(12):
            assert (await ask(gateway.port, body)).status == 200
        await gateway.record(11)
        assert any(list(record.attempts) == ["a"] for record in gateway.records)
        assert {(record.reason, record.index_state) for record in gateway.records} == {(reason, "live")}


BATCHES = [
    ("two_token_lists", [[1, 2], [3]], True),
    ("two_texts", ["a", "b"], True),
    ("one_token_list", [[1, 2]], False),
    ("one_flat_list", [1, 2], False),
    ("a_text", "ab", False),
]


@pytest.mark.parametrize(("prompt", "batch"), [row[1:] for row in BATCHES], ids=[row[0] for row in BATCHES])
async def test_a_batch_of_prompts_promises_no_hit(tmp_path: Path, prompt: Any, batch: bool) -> None:
    index = FakeIndex({"a": 64})
    async with FakeEngine("a", cached_tokens=128) as engine:
        async with running_gateway(tmp_path, [pod(engine)], policy="prefix-cache", index=index) as gateway:
            assert (await ask(gateway.port, completion(prompt=prompt))).status == 200
            record = await gateway.record()
            text = await metrics(gateway)
    if batch:
        assert (record.reason, record.predicted_tokens, record.hit_class, record.cached_tokens) == ("batch", None, "unpredicted", 128)
        assert index.asked == []
        assert "gateway_predictions_total{" not in text
        assert engine.requests[0].path == "/v1/completions"
    else:
        assert (record.reason, record.predicted_tokens) == ("prefix_match", 64)


async def test_other_policies_route_batches_as_they_route_all(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine:
        async with running_gateway(tmp_path, [pod(engine)], index=FakeIndex({"a": 64})) as gateway:
            await ask(gateway.port, completion(prompt=[[1, 2], [3]]))
            record = await gateway.record()
    assert (record.reason, record.predicted_tokens) == ("least_request", None)


@pytest.mark.parametrize(
    ("cached", "expected"), [(64, "exact"), (80, "within_block"), (640, "unknown"), (0, "unknown")], ids=["exact", "near", "more", "less"]
)
async def test_predictions_are_counted_by_what_they_turned_out_to_be(tmp_path: Path, cached: int, expected: str) -> None:
    async with FakeEngine("a", cached_tokens=cached) as engine:
        async with running_gateway(tmp_path, [pod(engine)], policy="prefix-cache", index=FakeIndex({"a": 64})) as gateway:
            for _ in range(2):
                await ask(gateway.port, completion(prompt=list(range(100))))
            text = await metrics(gateway)
    counted = [line for line in text.splitlines() if line.startswith("gateway_predictions_total{")]
    assert counted == [f'gateway_predictions_total{{hit_class="{expected}",model="m"}} 2.0']


async def test_an_engine_that_does_not_say_its_hit_is_counted_as_unpredicted(tmp_path: Path) -> None:
    async with FakeEngine("a", cached_tokens=None) as engine:
        async with running_gateway(tmp_path, [pod(engine)], policy="prefix-cache", index=FakeIndex({"a": 64})) as gateway:
            await ask(gateway.port, completion(prompt=list(range(100))))
            assert 'gateway_predictions_total{hit_class="unpredicted",model="m"} 1.0' in await metrics(gateway)
