"""Control's HTTP interface on a real socket, with a real stream server and peers that speak HTTP. Not here: the event stream."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from aiohttp import web as aiohttp_web

from backend.api import routes
from backend.api.cache import CacheMap, ProbeMatch, ProbeRequest, ProbeResult, SourcePage, SourceState
from backend.api.decisions import DecisionPage
from backend.api.fleet import FleetSnapshot
from backend.control import figures
from backend.control.actions.handlers import ActionHandlers
from backend.control.handlers import Handlers
from backend.control.operations import OPERATIONS
from backend.control.service import Control
from backend.core import web
from backend.core.metrics import Registry
from backend.core.settings import ControlSettings, HistorySettings, PodSettings, RecordSettings
from backend.core.supervise import Supervisor
from tests.behaviour.test_history_of_decisions import STREAM, send
from tests.fakes.records import record, records
from tests.fakes.valkey import Valkey, free_port, valkey
from tests.fakes.waiting import eventually

__all__ = ["valkey"]

TOKEN = "a-token"
NEED_A_CLUSTER = {name for name in vars(ActionHandlers) if not name.startswith("_")}
"""Asked in test_control_actions."""
METRICS = Path(__file__).parents[1] / "data" / "engines" / "metrics_vllm_0.32.0_under_load.txt"


class Peers:
    """An index and a pod that answer over HTTP; what they were asked is kept."""

    def __init__(self) -> None:
        self.asked: list[ProbeRequest] = []
        self.tokens = [1, 2, 3]
        self.tokenize_status = 200
        self.metrics = METRICS.read_bytes()
        self.runner: aiohttp_web.AppRunner | None = None
        self.port = free_port()

    async def start(self) -> None:
        app = aiohttp_web.Application()
        for path, handler in {"/map": self._map, "/sources": self._sources, "/metrics": self._metrics}.items():
            app.router.add_get(path, handler)
        app.router.add_post("/probe", self._probe)
        app.router.add_post("/tokenize", self._tokenize)
        self.runner = await web.serve(app, host="127.0.0.1", port=self.port, what="peers")

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None

    async def _map(self, request: aiohttp_web.Request) -> aiohttp_web.Response:
        bins = int(request.query["bins"])
        blocks = [[1] * bins]
        return web.json_response(
            CacheMap(at=1.0, version=1, pods=["vllm-0"], bins=bins, blocks=blocks, totals=[bins], distinct=bins, copies=bins)
        )

    async def _sources(self, _: aiohttp_web.Request) -> aiohttp_web.Response:
        return web.json_response(SourcePage(items=[SourceState(pod="vllm-0", status="live", block_size=64)]))

    async def _metrics(self, _: aiohttp_web.Request) -> aiohttp_web.Response:
        return aiohttp_web.Response(body=self.metrics)

    async def _probe(self, request: aiohttp_web.Request) -> aiohttp_web.Response:
        asked = msgspec.json.decode(await request.read(), type=ProbeRequest)
        self.asked.append(asked)
        matches = [ProbeMatch(pod="vllm-0", matched_tokens=2, share=0.5)]
        return web.json_response(ProbeResult(model=asked.model, tokens=len(asked.tokens or []), matches=matches))

    async def _tokenize(self, _: aiohttp_web.Request) -> aiohttp_web.Response:
        if self.tokenize_status != 200:
            return web.json_response({"error": {"message": "no template"}}, status=self.tokenize_status)
        return web.json_response({"count": len(self.tokens), "max_model_len": 4096, "tokens": self.tokens})


class Door:
    """A running Control and a client that has its token."""

    def __init__(self, control: Control, url: str) -> None:
        self.control = control
        self.url = url
        self.http = httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False)

    async def get(self, path: str, **params: Any) -> httpx.Response:
        return await self.http.get(path, params=params)


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    made = Peers()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def door(tmp_path: Path, valkey: Valkey, peers: Peers) -> AsyncIterator[Door]:
    url = f"http://127.0.0.1:{peers.port}"
    settings = ControlSettings(
        state=tmp_path / "state",
        kvindex_url=url,
        gateway_url=url,
        pods=(PodSettings("vllm-0", f"127.0.0.1:{peers.port}", "qwen3-8b"),),
        records=RecordSettings(redis_url=valkey.url, stream=STREAM),
        history=HistorySettings(write_s=0.1),
    )
    async with Supervisor("control") as tasks:
        control = Control(settings, tasks, token=TOKEN)
        registry = Registry()
        figures.register(registry, control)
        app = web.application(registry, token=TOKEN)
        Handlers(control).register(app, "1")
        await control.start()
        runner = await web.serve(app, host="127.0.0.1", port=0, what="control")
        opened = Door(control, f"http://127.0.0.1:{web.bound_port(runner)}")
        yield opened
        await opened.http.aclose()
        control.hub.close()
        await runner.cleanup()
        await control.close()


async def test_every_operation_answers_as_the_document_says(door, valkey):
    await send(valkey, records(3))
    await eventually(lambda: len(door.control.history.hot) == 3)
    document = (await door.get(routes.OPENAPI)).json()
    for operation in (one for one in OPERATIONS if one.name not in NEED_A_CLUSTER):
        described = document["paths"][operation.path][operation.method.lower()]
        assert described["operationId"] == operation.name
        assert [one["name"] for one in described["parameters"] if one["in"] == "path"] == re.findall(r"\{(\w+)\}", operation.path)
        if operation.response is None:
            continue
        path = operation.path.format(name="vllm-0", id=record(1).id)
        body = msgspec.json.encode({"tokens": [1, 2]}) if operation.request else None
        answer = await door.http.request(operation.method, path, content=body)
        assert answer.status_code == 200, answer.text
        msgspec.json.decode(answer.content, type=operation.response)
        schema = described["responses"]["200"]["content"]["application/json"]["schema"]
        conform(answer.json(), schema, document, operation.path)


def conform(value: Any, schema: dict[str, Any], document: dict[str, Any], where: str) -> None:
    """`value` fits `schema`: the part of JSON Schema that our messages use, and nothing that the schema does not name."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        wanted = {"null": type(None), "integer": int, "number": (int, float), "string": str, "array": list, "object": dict}
        schema = next(one for one in schema["anyOf"] if isinstance(value, wanted[one.get("type", "object")]))
    if "enum" in schema:
        assert value in schema["enum"], where
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        assert set(value) <= set(schema["properties"]), where
        assert set(schema.get("required", [])) <= set(value), where
        for name, one in value.items():
            conform(one, schema["properties"][name], document, f"{where}.{name}")
    elif kind == "object":
        for name, one in value.items():
            conform(one, schema.get("additionalProperties", {}), document, f"{where}.{name}")
    elif kind == "array":
        for at, one in enumerate(value):
            conform(one, schema.get("items", {}), document, f"{where}[{at}]")
    elif kind is not None:
        wanted = {"integer": int, "number": (int, float), "string": str, "boolean": bool, "null": type(None)}[kind]
        assert isinstance(value, wanted), where


async def test_every_path_needs_the_token_but_the_open_ones(door):
    for operation in OPERATIONS:
        path = operation.path.format(name="a", id="b", namespace="c")
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            async with httpx.AsyncClient(base_url=door.url, trust_env=False) as stranger:
                answer = await stranger.request(operation.method, path, headers=headers)
                assert answer.status_code == 401
                assert "STATE/token" in answer.json()["error"]["fix"]
    async with httpx.AsyncClient(base_url=door.url, trust_env=False) as stranger:
        assert {(await stranger.get(path)).status_code for path in ("/healthz", "/metrics", routes.OPENAPI)} == {200}


async def test_the_fleet_shows_load_and_traffic(door, valkey):
    now = door.control.clock.now()
    await send(valkey, [record(number, at=now - 3) for number in range(20)])
    await eventually(lambda: door.control.scraper.load("vllm-0").state == "fresh" and len(door.control.history.hot) == 20)
    door.control.refresh()
    snapshot = msgspec.json.decode((await door.get(routes.FLEET)).content, type=FleetSnapshot)
    (view,) = snapshot.pods
    assert view.load.running == 8.0
    assert view.load.kv_usage == pytest.approx(0.634921, abs=1e-6)
    assert view.load.missing == []
    assert snapshot.requests_per_s == pytest.approx(2.0)
    assert snapshot.hit_rate == pytest.approx(0.64)
    assert snapshot.ttft_p95_ms == 25.0


async def test_a_version_grows_with_changes_and_not_with_time(door):
    await eventually(lambda: door.control.scraper.load("vllm-0").state == "fresh" and door.control.index.sources is not None)
    door.control.refresh()
    before = (await door.get(routes.FLEET)).json()
    await asyncio.sleep(0.05)
    await door.control.scraper.scrape("vllm-0")
    door.control.refresh()
    after = (await door.get(routes.FLEET)).json()
    assert after["version"] == before["version"]
    assert after["at"] > before["at"]
    door.control.traffic.add([record(at=door.control.clock.now() - 2, total_ms=0.0)])
    door.control.refresh()
    assert (await door.get(routes.FLEET)).json()["version"] > after["version"]


async def test_decisions_are_paged_newest_first_and_filtered(door, valkey):
    await send(valkey, records(25), records(5, first=100, outcome="timeout", model="other"))
    await eventually(lambda: door.control.history.counters.written == 30)
    seen: list[str] = []
    before = ""
    while before is not None:
        page = msgspec.json.decode((await door.get(routes.DECISIONS, limit=7, before=before)).content, type=DecisionPage)
        seen += [one.id for one in page.items]
        before = page.next
    assert seen == [record(number).id for number in [*range(104, 99, -1), *range(24, -1, -1)]]
    timeouts = (await door.get(routes.DECISIONS, outcome="timeout", model="other", pod="vllm-0", policy="prefix-cache")).json()
    assert len(timeouts["items"]) == 5
    assert (await door.get(routes.DECISIONS, model="nobody")).json() == {"items": [], "next": None}
    assert (await door.get(routes.POD.format(name="vllm-0"))).json()["decisions"][0]["id"] == record(104).id


PROBES = [
    # id, body, status, words of the answer
    ("tokens", {"tokens": [5, 6]}, 200, '"tokens":2'),
    ("text", {"prompt": "hello", "model": "qwen3-8b"}, 200, '"tokens":3'),
    ("messages", {"messages": [{"role": "user", "content": "hi"}]}, 200, '"tokens":3'),
    ("nothing", {}, 400, "not none"),
    ("two_of_them", {"tokens": [1], "prompt": "x"}, 400, "not tokens and prompt"),
    ("unknown_model", {"tokens": [1], "model": "gpt-9"}, 400, "The fleet serves qwen3-8b"),
    ("no_token_id", {"tokens": [1, -4]}, 400, "tokens[1] is -4"),
    ("wrong_type", {"tokens": "x"}, 400, "Expected `array | null`"),
]


@pytest.mark.parametrize(("body", "status", "words"), [case[1:] for case in PROBES], ids=[case[0] for case in PROBES])
async def test_a_prompt_is_probed_as_tokens_text_or_messages(door, body, status, words):
    answer = await door.http.post(routes.CACHE_PROBE, json=body)
    assert answer.status_code == status
    assert words in answer.text


async def test_a_body_that_is_no_json_says_so(door):
    answer = await door.http.post(routes.CACHE_PROBE, content=b"{nonsense")
    assert answer.status_code == 400
    assert "not JSON" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("status", "expected"), [(400, 400), (500, 503)], ids=["refused", "broken"])
async def test_a_tokenizer_that_fails_is_named(door, peers, status, expected):
    peers.tokenize_status = status
    answer = await door.http.post(routes.CACHE_PROBE, json={"prompt": "x"})
    assert answer.status_code == expected
    assert "vllm-0" in answer.json()["error"]["message"]
    assert "no template" in answer.json()["error"]["message"]


async def test_an_index_that_is_away_is_a_503_and_a_finding_and_comes_back(door, peers, monkeypatch):
    await peers.stop()
    for path in (routes.CACHE_MAP, routes.CACHE_SOURCES):
        answer = await door.get(path)
        assert answer.status_code == 503
        assert "kvindex" in answer.json()["error"]["message"]
        assert answer.json()["error"]["fix"]
    for _ in range(2):
        await door.control.index.refresh()
        await door.control.gateway.refresh()
    door.control.refresh()
    ids = [one["id"] for one in (await door.get(routes.FINDINGS)).json()["items"]]
    assert {"kvindex-away", "gateway-away"} <= set(ids)
    await peers.start()
    await door.control.index.refresh()
    await door.control.gateway.refresh()
    door.control.refresh()
    ids = [one["id"] for one in (await door.get(routes.FINDINGS)).json()["items"]]
    assert not {"kvindex-away", "gateway-away"} & set(ids)


BAD = [
    ("limit_is_a_word", routes.DECISIONS, {"limit": "x"}, 400, "1 to 1000"),
    ("limit_is_zero", routes.DECISIONS, {"limit": "0"}, 400, "1 to 1000"),
    ("limit_too_large", routes.DECISIONS, {"limit": "100000"}, 400, "1 to 1000"),
    ("before_is_nonsense", routes.DECISIONS, {"before": "yesterday"}, 400, "next"),
    ("bins_too_many", routes.CACHE_MAP, {"bins": "513"}, 400, "1 to 512"),
    ("unknown_topic", routes.STREAM, {"topics": "weather"}, 400, "fleet"),
    ("unknown_pod", routes.POD.format(name="nobody"), {}, 404, "vllm-0"),
    ("unknown_decision", routes.DECISION.format(id="nobody"), {}, 404, "request-id"),
    ("unknown_path", "/api/v1/weather", {}, 404, "Not Found"),
]


@pytest.mark.parametrize(("path", "params", "status", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
async def test_a_wrong_request_is_told_what_would_be_right(door, path, params, status, words):
    answer = await door.get(path, **params)
    assert answer.status_code == status
    assert words in answer.text


async def test_a_pod_without_a_metric_is_listed_with_what_it_lacks(door, peers):
    peers.metrics = peers.metrics.replace(b"vllm:kv_cache_usage_perc", b"vllm:renamed_again")
    await door.control.scraper.scrape("vllm-0")
    door.control.refresh()
    (view,) = (await door.get(routes.FLEET)).json()["pods"]
    assert view["load"]["missing"] == ["kv_usage"]
    assert "metrics-missing:vllm-0" in [one["id"] for one in (await door.get(routes.FINDINGS)).json()["items"]]


async def test_metrics_name_what_the_history_did(door, valkey):
    await send(valkey, records(4), records(4))
    await eventually(lambda: (door.control.history.counters.written, door.control.history.counters.duplicates) == (4, 4))
    text = (await door.get("/metrics")).text
    for line in ("control_history_received_total 4.0", "control_history_duplicates_total 4.0", "control_history_written_total 4.0"):
        assert line in text
    assert "control_pods_ready 1.0" in text
