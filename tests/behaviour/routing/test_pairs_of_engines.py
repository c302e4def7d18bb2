"""The gateway over pairs of simulated engines, with the exchange of KV blocks that the families really make."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from backend.api.fleet import Pod
from backend.engines import adapter
from tests.fakes.engines import HOST, OTHER_HOST, RunningEngine, running_engine
from tests.fakes.fleet import Running, running_gateway
from tests.fakes.raw_http import RawClient, ask, post
from tests.fakes.waiting import eventually

MODEL = "tiny"
PROMPT = list(range(130))
THIRD_HOST, FOURTH_HOST = (f"{HOST.rpartition('.')[0]}.{last}" for last in (3, 4))
FAMILIES = [pytest.param("vllm", "0.32.0", id="vllm"), pytest.param("sglang", "0.5.23", id="sglang")]
families = pytest.mark.parametrize(("engine", "version"), FAMILIES)


def body(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": PROMPT, "max_tokens": 9, "temperature": 0, **more}


def as_pod(name: str, running: RunningEngine, host: str, engine: str, role: str, revision: str = "r1") -> Pod:
    port = running.server.connector.port if engine == "sglang" and role == "prefill" else 0
    annotations = {"model.aibrix.ai/sglang-bootstrap-port": str(port)} if port else {}
    place = {"role": role, "roleset": "rs", "revision": revision}
    address = {"ip": host, "port": running.server.port}
    return Pod(name=name, model=MODEL, engine=engine, ready=True, state="ready", annotations=annotations, **address, **place)


async def under_way(running: RunningEngine, engine: str) -> float:
    return adapter(engine).parse_load((await running.client.get("/metrics")).content)["running"]


@asynccontextmanager
async def pair(folder: Path, engine: str, version: str, **more: Any) -> AsyncIterator[tuple[Running, RunningEngine, RunningEngine]]:
    settings = {"engine": engine, "version": version, "handshake_timeout_s": 0.5, **more}
    async with (
        running_engine(role="prefill", **settings) as prefill,
        running_engine(role="decode", host=OTHER_HOST, **settings) as decode,
    ):
        pods = [as_pod("p", prefill, HOST, engine, "prefill"), as_pod("d", decode, OTHER_HOST, engine, "decode")]
        async with running_gateway(folder, pods) as gateway:
            yield gateway, prefill, decode


@families
async def test_the_answer_is_that_of_one_engine_alone(tmp_path: Path, engine: str, version: str) -> None:
    async with pair(tmp_path, engine, version) as (gateway, _, _), running_engine(engine=engine, version=version) as alone:
        expected = await alone.complete(**body())
        for _ in range(3):
            answer = await ask(gateway.port, body())
            assert answer.status == 200, answer.body
            assert answer.json()["choices"][0]["text"] == expected["choices"][0]["text"]
        records = [await gateway.record(number) for number in range(3)]
    assert [record.usage_prompt_tokens for record in records] == [130] * 3
    assert [record.completion_tokens for record in records] == [9] * 3


@families
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_streams_of_many_clients_come_whole(tmp_path: Path, engine: str, version: str, path: str) -> None:
    async with pair(tmp_path, engine, version) as (gateway, _, _):
        asked = [
            body(stream=True, prompt=[*range(at, at + 70)], messages=[{"role": "user", "content": "hello " * at}], ignore_eos=True)
            for at in range(12)
        ]
        answers = await asyncio.gather(*(ask(gateway.port, one, path=path) for one in asked))
        for answer in answers:
            assert answer.status == 200
            assert answer.body.rstrip().endswith(b"data: [DONE]")
            assert b"error" not in answer.body
        await gateway.record(11)
        assert {record.outcome for record in gateway.records} == {"ok"}
        assert gateway.in_flight() == 0


@families
@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_an_engine_that_dies_is_replaced(tmp_path: Path, engine: str, version: str, role: str) -> None:
    async with pair(tmp_path, engine, version) as (gateway, prefill, decode):
        pods = [as_pod("p", prefill, HOST, engine, "prefill"), as_pod("d", decode, OTHER_HOST, engine, "decode")]
        async with running_engine(engine=engine, version=version, role=role, host=THIRD_HOST) as dying:
            gateway.set_pods([*pods, as_pod("x", dying, THIRD_HOST, engine, role)])
            asked = [asyncio.create_task(ask(gateway.port, body(prompt=[*range(at, at + 70)]))) for at in range(16)]
            await eventually(lambda: gateway.in_flight() > 0)
        # Its connections are refused or reset now, and nobody has told the gateway.
        asked += [asyncio.create_task(ask(gateway.port, body())) for _ in range(8)]
        assert {(await one).status for one in asked} == {200}
        await gateway.record(23)
        assert {record.outcome for record in gateway.records} == {"ok"}


@families
async def test_a_client_that_leaves_leaves_nothing_running(tmp_path: Path, engine: str, version: str) -> None:
    async with pair(tmp_path, engine, version, speed=1.0) as (gateway, prefill, decode):
        async with RawClient(gateway.port) as client:
            client.send(post(body(stream=True, max_tokens=300, ignore_eos=True)))
            assert (await client.head())[0] == 200
        assert (await gateway.record()).outcome == "client_gone"
        for running in (prefill, decode):
            async with asyncio.timeout(5):
                while await under_way(running, engine):  # noqa: ASYNC110 - a metric has no event to wait for
                    await asyncio.sleep(0.02)


@families
async def test_a_request_that_the_engines_refuse_is_told_as_they_tell_it(tmp_path: Path, engine: str, version: str) -> None:
    async with pair(tmp_path, engine, version) as (gateway, prefill, _):
        direct = await prefill.client.post("/v1/completions", json=body(prompt=[1] * 5000))
        answer = await ask(gateway.port, body(prompt=[1] * 5000))
    assert answer.status == direct.status_code == 400
    assert json.loads(direct.content).get("error", json.loads(direct.content))["message"] == answer.json()["error"]["message"]


@families
@pytest.mark.parametrize("grace_s", [0.0, 0.3], ids=["stopped_at_once", "stopped_a_moment_later"])
async def test_a_roleset_replaced_under_load_fails_nobody_and_never_pairs_two_revisions(
    tmp_path: Path, engine: str, version: str, grace_s: float
) -> None:
    """The old pods are told to stop as soon as the gateway could know that they leave: what it sent before is theirs to finish."""
    slow: dict[str, Any] = {"speed": 3.0, "shutdown_timeout_s": 20.0}
    async with pair(tmp_path, engine, version, **slow) as (gateway, prefill, decode), AsyncExitStack() as stack:
        old = [as_pod("p1", prefill, HOST, engine, "prefill"), as_pod("d1", decode, OTHER_HOST, engine, "decode")]
        gateway.set_pods(old)
        asked: list[asyncio.Task[Any]] = []

        async def load() -> None:
            for at in range(60):
                one = body(prompt=[*range(at, at + 70)], max_tokens=20, ignore_eos=True)
                asked.append(asyncio.create_task(ask(gateway.port, one)))
                await asyncio.sleep(0.02)

        loading = asyncio.create_task(load())
        await asyncio.sleep(0.3)
        new = []
        for name, role, host in (("p2", "prefill", THIRD_HOST), ("d2", "decode", FOURTH_HOST)):
            started = await stack.enter_async_context(running_engine(engine=engine, version=version, role=role, host=host, **slow))
            new.append(as_pod(name, started, host, engine, role, revision="r2"))
        gateway.set_pods([*old, *new])
        await asyncio.sleep(0.3)
        for leaving in old:
            leaving.ready = False
        gateway.set_pods([*old, *new])
        await asyncio.sleep(grace_s)
        for one in (prefill, decode):
            one.server.stop()
            stack.push_async_callback(asyncio.gather, asyncio.create_task(one.server.run()))
        await loading
        answers = [await each for each in asked]
        await gateway.record(59)
    assert [(answer.status, answer.json()["choices"][0]["finish_reason"]) for answer in answers] == [(200, "length")] * 60
    partners = {(record.prefill.chosen, record.chosen, record.prefill.group) for record in gateway.records if record.prefill is not None}
    assert partners == {("p1", "d1", "rs@r1"), ("p2", "d2", "rs@r2")}
