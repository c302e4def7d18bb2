"""A control API on a real socket, for viewers: the messages of `backend.api`, server-sent events with `since`, a bearer token.

It decides nothing and knows no other process; tests say what the fleet looks like and what happens next.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import msgspec
from aiohttp import web

from backend.api import routes
from backend.api.cache import CacheMap, ProbeMatch, ProbeRequest, ProbeResult, SharedPrefix, SourceState
from backend.api.decisions import DecisionPage, DecisionRecord
from backend.api.findings import Finding
from backend.api.fleet import FleetSnapshot, Pod, PodLoad, PodView
from tests.fakes.actions_api import FakeActions

TOKEN = "a-token-for-tests"


class FakeControl:
    """`async with FakeControl(pods=4) as control: control.url`. `step()` changes everything once and tells the stream."""

    def __init__(self, *, pods: int = 4, port: int = 0, seed: int = 1, empty: bool = False, names: str = "vllm-{}") -> None:
        self.port = port
        self.random = random.Random(seed)
        self.names = [names.format(at) for at in range(pods)]
        self.empty = empty
        self.version = 1
        self.decisions: list[DecisionRecord] = []
        self.findings: list[Finding] = []
        self.map_requests = 0
        self.index_away = False
        self.actions = FakeActions(names.format("qwen") if "<" in names else "qwen")
        self.actions.away = "This control follows no cluster." if empty else ""
        self.followed = asyncio.Event()
        """Set once somebody follows the stream."""
        self._queues: set[asyncio.Queue[tuple[str, int, bytes]]] = set()
        self._runner: web.AppRunner | None = None
        self.started = time.time() - 900
        self.fleet = self._make_fleet()
        if not empty:
            self.findings = _findings(self.names)
            self.decide(60)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> FakeControl:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        app = web.Application()
        for path, handler in (
            (routes.FLEET, self._fleet),
            (routes.POD, self._pod),
            (routes.CACHE_MAP, self._map),
            (routes.CACHE_SOURCES, self._sources),
            (routes.DECISIONS, self._decisions),
            (routes.DECISION, self._decision),
            (routes.FINDINGS, self._findings),
            (routes.STREAM, self._stream),
        ):
            app.router.add_get(path, _checked(handler))
        app.router.add_post(routes.CACHE_PROBE, _checked(self._probe))
        self.actions.register(app)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Gone as after a kill: every connection breaks."""
        if self._runner is not None:
            for queue in self._queues:
                queue.put_nowait(("", 0, b""))
            await self._runner.cleanup()
            self._runner = None

    def step(self, decisions: int = 3) -> None:
        """The next scrape: all loads move, some requests were decided."""
        self.version += 1
        self.fleet = self._make_fleet()
        self._tell(routes.EVENT_FLEET, self.fleet)
        if not self.empty:
            self._tell(routes.EVENT_SOURCES, self._make_sources())
        if decisions and not self.empty:
            self._tell(routes.EVENT_DECISIONS, self.decide(decisions))

    async def advance(self) -> None:
        """Every operation that runs is one step further."""
        for operation in self.actions.operations.values():
            self.actions.advance(operation)
            self.version += 1
            self._tell(routes.EVENT_OPERATION, operation)

    def reset(self) -> None:
        """Tell viewers that what they have is too old to be continued."""
        self.version += 1
        self._tell(routes.EVENT_RESET, {})

    def decide(self, number: int) -> list[DecisionRecord]:
        new = [self._make_decision() for _ in range(number)]
        self.decisions = [*self.decisions, *new][-2000:]
        return new

    def _tell(self, event: str, value: Any) -> None:
        for queue in self._queues:
            queue.put_nowait((event, self.version, msgspec.json.encode(value)))

    def _make_fleet(self) -> FleetSnapshot:
        now = time.time()
        pods = [] if self.empty else [self._make_pod(at, name, now) for at, name in enumerate(self.names)]
        busy = not self.empty
        return FleetSnapshot(
            version=self.version,
            at=now,
            pods=pods,
            requests_per_s=round(self.random.uniform(18, 26), 2) if busy else 0.0,
            ttft_p95_ms=round(self.random.uniform(180, 320), 1) if busy else None,
            hit_rate=round(self.random.uniform(0.31, 0.39), 4) if busy else None,
        )

    def _make_pod(self, at: int, name: str, now: float) -> PodView:
        ready = at != 3
        pod = Pod(
            name=name,
            ip=f"127.88.0.{1 + at % 250}",
            model="qwen3-8b",
            version="0.32.0",
            state="ready" if ready else "backoff",
            ready=ready,
            reason="" if ready else "exited with code 1, next start in 8 s",
            started_at=self.started + at,
            restarts=0 if ready else 3,
            pid=4000 + at,
            labels={"model.aibrix.ai/name": "qwen3-8b"},
            image="vllm/vllm-openai:v0.32.0",
        )
        load = PodLoad(
            state="fresh" if ready else "stale",
            scraped_at=now,
            error="" if ready else "connection refused",
            running=float(self.random.randint(2, 40)),
            waiting=float(self.random.randint(0, 4)),
            kv_usage=self.random.uniform(0.2, 0.8),
            hit_rate=self.random.uniform(0.2, 0.6),
            prompt_tokens_per_s=self.random.uniform(3000, 9000),
            generation_tokens_per_s=self.random.uniform(400, 1500),
            requests_finished=12345.0,
            prefix_queries=9.1e6,
            prefix_hits=3.3e6,
            ttft_mean_s=0.12,
        )
        return PodView(pod=pod, load=load)

    def _make_decision(self) -> DecisionRecord:
        matched = [float(64 * self.random.randint(0, 60)) for _ in self.names[:8]]
        chosen = max(range(len(matched)), key=matched.__getitem__)
        ok = self.random.random() > 0.04
        tokens = int(matched[chosen]) + self.random.randint(100, 2000)
        return DecisionRecord(
            id=f"{self.random.getrandbits(64):016x}",
            at=time.time(),
            model="qwen3-8b",
            path="/v1/completions",
            stream=True,
            policy="prefix-cache",
            reason="prefix_match" if matched[chosen] else "least_request_fallback",
            candidates=self.names[:8],
            terms={
                "matched_tokens": matched,
                "in_flight": [float(self.random.randint(0, 9)) for _ in matched],
                "limit": [7.5 for _ in matched],
            },
            chosen=self.names[chosen],
            pod_ip="127.88.0.1",
            prompt_tokens=tokens,
            block_size=64,
            predicted_tokens=int(matched[chosen]),
            index_state="live",
            in_flight=4,
            status=200 if ok else 502,
            outcome="ok" if ok else "upstream_reset",
            error="" if ok else "the pod closed the connection",
            cached_tokens=int(matched[chosen]) if ok else None,
            usage_prompt_tokens=tokens if ok else None,
            completion_tokens=120 if ok else None,
            hit_class="exact" if ok else "unknown",
            decide_ms=0.31,
            connect_ms=0.12,
            ttft_ms=self.random.uniform(60, 400) if ok else None,
            itl_ms=11.2 if ok else None,
            total_ms=self.random.uniform(900, 3000),
        )

    def _make_sources(self) -> list[SourceState]:
        if self.empty:
            return []
        now = time.time()
        return [
            SourceState(
                pod=name,
                endpoint=f"tcp://127.88.0.{1 + at}:5557",
                status="live" if at != 3 else "lost",
                reason="" if at != 3 else "the pod is not ready",
                last_sequence=4000 + self.version,
                last_event_at=now - 0.4,
                lag_ms=round(self.random.uniform(0.4, 2.5), 1),
                batches=4000 + self.version,
                gaps=int(at == 1),
                blocks=9000 + self.version,
                block_size=64,
                stored=90_000,
                removed=80_000,
            )
            for at, name in enumerate(self.names)
        ]

    async def _fleet(self, _: web.Request) -> web.Response:
        return _json(self.fleet)

    async def _pod(self, request: web.Request) -> web.Response:
        found = next((view for view in self.fleet.pods if view.pod.name == request.match_info["name"]), None)
        return _json(found) if found else _json({"error": {"message": "no such pod", "type": "NotFound"}}, status=404)

    async def _map(self, request: web.Request) -> web.Response:
        self.map_requests += 1
        if self.index_away:
            return _json({"error": {"message": "kvindex does not answer", "type": "Unavailable"}}, status=503)
        bins = int(request.query.get("bins", "64"))
        blocks = [] if self.empty else [[max(0, int(self.random.gauss(18, 16))) for _ in range(bins)] for _ in self.names]
        totals = [sum(row) for row in blocks]
        shared = [
            SharedPrefix(key=f"{at * 7919:016x}", pods=self.names[: 4 - at % 3], depth=at + 1, tokens=64 * (at + 1), children=31 - at)
            for at in range(9)
        ]
        found = CacheMap(
            at=time.time(),
            version=self.map_requests,
            pods=[] if self.empty else self.names,
            bins=bins,
            blocks=blocks,
            totals=totals,
            distinct=int(sum(totals) / 1.31),
            copies=sum(totals),
            shared=[] if self.empty else shared,
        )
        return _json(found)

    async def _sources(self, _: web.Request) -> web.Response:
        return _json({"items": self._make_sources(), "next": None})

    async def _decisions(self, request: web.Request) -> web.Response:
        limit = int(request.query.get("limit", "100"))
        return _json(DecisionPage(items=list(reversed(self.decisions))[:limit]))

    async def _decision(self, request: web.Request) -> web.Response:
        found = next((record for record in self.decisions if record.id == request.match_info["id"]), None)
        return _json(found) if found else _json({"error": {"message": "no such decision", "type": "NotFound"}}, status=404)

    async def _findings(self, _: web.Request) -> web.Response:
        return _json({"items": self.findings, "next": None})

    async def _probe(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=ProbeRequest)
        tokens = len(asked.tokens) if asked.tokens is not None else len((asked.prompt or "").split()) * 2
        matches = [ProbeMatch(pod=name, matched_tokens=tokens // (at + 1), share=1 / (at + 1)) for at, name in enumerate(self.names[:3])]
        return _json(ProbeResult(model=asked.model or "qwen3-8b", tokens=tokens, matches=matches))

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        await response.write(b": connected\n\n")
        queue: asyncio.Queue[tuple[str, int, bytes]] = asyncio.Queue()
        self._queues.add(queue)
        self.followed.set()
        try:
            while True:
                try:
                    event, version, data = await asyncio.wait_for(queue.get(), 2.0)
                except TimeoutError:
                    await response.write(b": alive\n\n")
                    continue
                if not event:
                    break
                await response.write(f"event: {event}\nid: {version}\ndata: ".encode() + data + b"\n\n")
        except ConnectionError:
            pass  # the viewer left
        finally:
            self._queues.discard(queue)
        return response


def _findings(names: list[str]) -> list[Finding]:
    return [
        Finding(
            id="pod-backoff",
            severity="error",
            title="A pod cannot start",
            target=names[-1],
            cause="Its process ends with code 1 right after its start.",
            fix=f"Read its log: STATE/pods/{names[-1]}.log",
            since=time.time() - 60,
        ),
        Finding(
            id="gap",
            severity="warning",
            title="KV events were missed",
            target=names[0],
            cause="The engine's replay buffer was too short for a pause of 4 s.",
            fix="Raise buffer_steps in --kv-events-config.",
            since=time.time() - 300,
        ),
    ]


def _checked(handler: Any) -> Any:
    async def check(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _json({"error": {"message": "A valid bearer token is needed.", "type": "Unauthorized"}}, status=401)
        found: web.StreamResponse = await handler(request)
        return found

    return check


def _json(value: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def _serve(port: int, pods: int, names: str, empty: bool, period_s: float) -> None:
    async with FakeControl(pods=pods, port=port, names=names, empty=empty) as control:
        while True:
            await asyncio.sleep(period_s)
            control.step()


if __name__ == "__main__":
    import argparse

    arguments = argparse.ArgumentParser(description="A fake control API to look at the dashboard with.")
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--pods", type=int, default=4)
    arguments.add_argument("--names", default="vllm-{}")
    arguments.add_argument("--empty", action="store_true")
    arguments.add_argument("--period", type=float, default=2.0)
    chosen = arguments.parse_args()
    asyncio.run(_serve(chosen.port, chosen.pods, chosen.names, chosen.empty, chosen.period))
