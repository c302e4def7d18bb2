"""Numbers that no engine can mean, answers that are too long, parts that fail: the client is answered and the record is kept."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from backend.api.decisions import DecisionRecord
from backend.api.fleet import Pod
from tests.fakes.fleet import FakeIndex, pod, running_gateway
from tests.fakes.raw_http import RawClient, ask, completion, get, post
from tests.fakes.upstream import TOKEN, FakeEngine

STREAM = completion(stream=True, stream_options={"include_usage": True})
NUMBERS = [-1, -(2**70), 2**64, 2**70, "7", 1.5]


@pytest.mark.parametrize("body", [completion(), STREAM], ids=["plain", "stream"])
@pytest.mark.parametrize("count", NUMBERS)
async def test_a_strange_usage_is_unknown_and_the_connection_goes_on(tmp_path: Path, body: dict[str, Any], count: object) -> None:
    usage = {"prompt_tokens": count, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": count}}
    async with FakeEngine("a", told_usage=usage) as engine:
        async with running_gateway(tmp_path, [pod(engine)]) as gateway, RawClient(gateway.port) as client:
            for number in range(2):
                client.send(post(body))
                answer = await client.answer(timeout_s=3)
                assert answer.status == 200
                assert json.dumps(count).encode() in answer.body
                record = await gateway.record(number)
                assert (record.outcome, record.usage_prompt_tokens, record.cached_tokens) == ("ok", None, None)
            client.send(get("/metrics"))
            text = (await client.answer()).body.decode()
            assert 'gateway_requests_total{model="m",outcome="ok"' in text
            assert "gateway_tokens_total{" not in text
    assert gateway.gateway.counts is not None


class BreakingIndex(FakeIndex):
    """Fails where the gateway asks it a second time, at the end of a request."""

    def counters(self, pod: str) -> tuple[int, int]:
        self.stored += 1
        if self.stored % 2 == 0:
            raise RuntimeError("broken index")
        return 0, 0


async def test_a_failure_at_a_requests_end_does_not_keep_its_client_waiting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with FakeEngine("a", cached_tokens=64) as engine:
        async with running_gateway(tmp_path, [pod(engine)], policy="prefix-cache", index=BreakingIndex({"a": 0})) as gateway:
            async with RawClient(gateway.port) as client:
                for _ in range(2):
                    client.send(post(completion()))
                    assert (await client.answer(timeout_s=3)).status == 200
    assert "broken index" in caplog.text


async def test_one_record_that_cannot_be_made_does_not_take_others_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        kept: list[DecisionRecord] = []

        def put(record: DecisionRecord) -> None:
            if record.user == "bad":
                raise RuntimeError("broken record")
            kept.append(record)

        gateway.gateway.records.put = put  # type: ignore[method-assign]
        answers = await asyncio.gather(*(ask(gateway.port, completion(), extra=f"user: {user}\r\n") for user in ("good", "bad", "fine")))
        assert [answer.status for answer in answers] == [200] * 3
        async with RawClient(gateway.port) as client:
            client.send(get("/metrics"))
            text = (await client.answer()).body.decode()
        assert "gateway_records_dropped_total 1.0" in text
    assert sorted(record.user for record in kept) == ["fine", "good"]
    assert "broken record" in caplog.text


async def test_an_answer_too_long_for_an_http_1_0_client_is_an_error_and_not_cut(tmp_path: Path) -> None:
    async with FakeEngine("a", events=[TOKEN.replace("token", "x" * 2**20)] * 17) as engine:
        async with running_gateway(tmp_path, [pod(engine)]) as gateway:
            answer = await ask(gateway.port, completion(stream=True), version="1.0")
            assert answer.status == 502
            assert "HTTP/1.0" in answer.json()["error"]["message"]
            record = await gateway.record()
    assert (record.outcome, record.status) == ("upstream_error", 502)


async def test_a_pod_whose_address_cannot_be_used_at_all_ends_in_an_answer(tmp_path: Path) -> None:
    nowhere = Pod(name="a", ip="x" * 70, port=8000, model="m", ready=True)
    async with running_gateway(tmp_path, [nowhere]) as gateway:
        answer = await ask(gateway.port, completion())
        assert answer.status == 500
        assert (await gateway.record()).status == 500


async def test_a_tokenizer_that_fails_in_an_unknown_way_ends_in_an_answer(tmp_path: Path) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("broken tokenizer")

    async with FakeEngine("a") as engine:
        async with running_gateway(tmp_path, [pod(engine)], policy="prefix-cache", index=FakeIndex({"a": 3})) as gateway:
            gateway.gateway.tokenizer.ask = broken  # type: ignore[assignment,method-assign]
            answer = await ask(gateway.port, completion(prompt="abc"))
            assert answer.status == 500
            assert (await gateway.record()).status == 500
