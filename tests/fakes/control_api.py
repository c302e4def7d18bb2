"""A control API on a real socket with a made-up fleet of two pods, for tests of its clients. Serves the real messages; knows no backend."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

from backend.api import routes
from backend.api.cache import CacheMap, ProbeMatch, ProbeRequest, ProbeResult, SharedPrefix, SourceState
from backend.api.decisions import DecisionPage, DecisionRecord
from backend.api.findings import Finding
from backend.api.fleet import FleetSnapshot, Pod, PodLoad, PodView
from backend.api.reports import ReportFile, ReportPage, ReportRequest, ReportRun, SchedulePage, ScheduleRequest, ScheduleView
from tests.fakes.actions_api import FakeActions

TOKEN = "a-token"
NOW = 1_763_800_000.0


def fleet(pods: int = 2, version: int = 7) -> FleetSnapshot:
    views = [
        PodView(
            pod=Pod(
                name=f"vllm-{at}", ip=f"127.9.0.{at + 1}", model="qwen3-8b", version="0.32.0", state="ready", ready=True, started_at=NOW
            ),
            load=PodLoad(state="fresh", scraped_at=NOW, running=float(at), kv_usage=0.25, hit_rate=None if at else 0.5, ttft_mean_s=0.2),
        )
        for at in range(pods)
    ]
    return FleetSnapshot(version=version, at=NOW, pods=views, requests_per_s=3.5, hit_rate=0.41)


def decision(number: int, **changed: object) -> DecisionRecord:
    facts: dict[str, object] = {
        "id": f"r{number}",
        "at": NOW + number,
        "model": "qwen3-8b",
        "path": "/v1/completions",
        "stream": True,
        "policy": "prefix-cache",
        "reason": "prefix_match",
        "candidates": ["vllm-0", "vllm-1"],
        "terms": {"matched_tokens": [0.0, 64.0], "in_flight": [1.0, 2.0]},
        "chosen": "vllm-1",
        "prompt_tokens": 100,
        "block_size": 64,
        "predicted_tokens": 64,
        "index_state": "live",
        "status": 200,
        "cached_tokens": 64,
        "usage_prompt_tokens": 100,
        "completion_tokens": 9,
        "hit_class": "exact",
        "ttft_ms": 41.0,
        "itl_ms": 9.5,
        "total_ms": 130.0,
    }
    return DecisionRecord(**{**facts, **changed})  # type: ignore[arg-type]


@dataclass
class FakeControl:
    """What it answers may be changed by the test at any time; `asked` lists the paths with their queries."""

    url: str = ""
    token: str = TOKEN
    snapshot: FleetSnapshot = field(default_factory=fleet)
    decisions: list[DecisionRecord] = field(default_factory=lambda: [decision(at) for at in reversed(range(5))])
    findings: list[Finding] = field(default_factory=list)
    stream: list[bytes] = field(default_factory=list)
    """Pieces that each stream connection sends, one after the other, before it is closed."""
    asked: list[str] = field(default_factory=list)
    probes: list[ProbeRequest] = field(default_factory=list)
    reports: list[ReportRun] = field(default_factory=lambda: [report("daily-1", state="done")])
    schedules: dict[str, ScheduleView] = field(default_factory=lambda: {"daily": ScheduleView(id="daily", cron="0 6 * * *", next_due=NOW)})
    report_error: str = ""
    """When set, reports that are asked for fail with it."""
    index_away: bool = False
    actions: FakeActions = field(default_factory=FakeActions)
    broken: bytes | None = None
    """When set, every answer has this body."""

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._middleware])
        app.router.add_get(routes.FLEET, lambda _: self._answer(self.snapshot))
        app.router.add_get(routes.POD, self._pod)
        app.router.add_get(routes.CACHE_MAP, self._map)
        app.router.add_post(routes.CACHE_PROBE, self._probe)
        app.router.add_get(routes.CACHE_SOURCES, lambda _: self._answer({"items": [SourceState(pod="vllm-0", status="live", lag_ms=2.0)]}))
        app.router.add_get(routes.DECISIONS, self._decisions)
        app.router.add_get(routes.DECISION, self._decision)
        app.router.add_get(routes.FINDINGS, lambda _: self._answer({"items": self.findings}))
        app.router.add_get(routes.STREAM, self._stream)
        app.router.add_get(routes.REPORTS, lambda _: self._answer(ReportPage(items=self.reports)))
        app.router.add_post(routes.REPORTS, self._ask_report)
        app.router.add_get(routes.REPORT, self._report)
        app.router.add_get(routes.REPORT_FILE, self._report_file)
        app.router.add_get(routes.SCHEDULES, lambda _: self._answer(SchedulePage(items=list(self.schedules.values()))))
        app.router.add_post(routes.SCHEDULES, self._create_schedule)
        app.router.add_delete(routes.SCHEDULE, self._delete_schedule)
        app.router.add_post(routes.SCHEDULE_RUN, self._ask_report)
        self.actions.register(app)
        return app

    @web.middleware
    async def _middleware(self, request: web.Request, handler) -> web.StreamResponse:  # type: ignore[no-untyped-def]
        self.asked.append(str(request.rel_url))
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return _error(401, "Unauthorized", "A valid bearer token is needed.")
        if self.index_away and request.path.startswith("/api/v1/cache"):
            return _error(503, "Unavailable", "kvindex does not answer.")
        return await handler(request)

    async def _answer(self, value: object) -> web.Response:
        return web.Response(body=msgspec.json.encode(value) if self.broken is None else self.broken, content_type="application/json")

    async def _pod(self, request: web.Request) -> web.Response:
        for view in self.snapshot.pods:
            if view.pod.name == request.match_info["name"]:
                return await self._answer(view)
        return _error(404, "NotFound", f"No pod {request.match_info['name']}.")

    async def _map(self, request: web.Request) -> web.Response:
        bins = int(request.query["bins"])
        pods = [view.pod.name for view in self.snapshot.pods]
        blocks = [[row + column for column in range(bins)] for row in range(len(pods))]
        totals = [sum(row) for row in blocks]
        shared = [SharedPrefix(key="00ff00ff00ff00ff", pods=pods, depth=2, tokens=128, children=3)]
        return await self._answer(
            CacheMap(at=NOW, version=3, pods=pods, bins=bins, blocks=blocks, totals=totals, distinct=40, copies=sum(totals), shared=shared)
        )

    async def _probe(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=ProbeRequest)
        self.probes.append(asked)
        matches = [ProbeMatch(pod="vllm-1", matched_tokens=64, share=0.64), ProbeMatch(pod="vllm-0", matched_tokens=0, share=0.0)]
        return await self._answer(ProbeResult(model="qwen3-8b", tokens=100, matches=matches))

    async def _decisions(self, request: web.Request) -> web.Response:
        query = request.query
        items = [
            record
            for record in self.decisions
            if record.model == query.get("model", record.model)
            and record.chosen == query.get("pod", record.chosen)
            and record.policy == query.get("policy", record.policy)
            and not (query.get("before", "").replace(".", "").isdigit() and record.at >= float(query["before"]))
        ]
        start = next((at + 1 for at, record in enumerate(items) if record.id == query.get("before")), 0)
        page = items[start : start + int(query["limit"])]
        more = start + len(page) < len(items)
        return await self._answer(DecisionPage(items=page, next=page[-1].id if more else None))

    async def _decision(self, request: web.Request) -> web.Response:
        for record in self.decisions:
            if record.id == request.match_info["id"]:
                return await self._answer(record)
        return _error(404, "NotFound", f"No decision {request.match_info['id']}.")

    async def _ask_report(self, request: web.Request) -> web.Response:
        body = await request.read()
        asked = msgspec.json.decode(body, type=ReportRequest) if body else ReportRequest()
        state = "failed" if self.report_error else "done"
        schedule = request.match_info.get("id", "")
        made = report(f"daily-{len(self.reports) + 1}", state=state, error=self.report_error, schedule=schedule, since=asked.since or NOW)
        self.reports.insert(0, made)
        return await self._answer(made)

    async def _report(self, request: web.Request) -> web.Response:
        found = [one for one in self.reports if one.id == request.match_info["id"]]
        return await self._answer(found[0]) if found else _error(404, "NotFound", f"No report {request.match_info['id']}.")

    async def _report_file(self, request: web.Request) -> web.Response:
        return web.Response(body=f"contents of {request.match_info['name']}".encode())

    async def _create_schedule(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=ScheduleRequest)
        made = ScheduleView(id=asked.id or "made", cron=asked.cron, hours=asked.hours, next_due=NOW)
        self.schedules[made.id] = made
        return await self._answer(made)

    async def _delete_schedule(self, request: web.Request) -> web.Response:
        gone = self.schedules.pop(request.match_info["id"], None)
        return await self._answer(gone) if gone else _error(404, "NotFound", "No such schedule.")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in self.stream:
            await response.write(piece)
        return response


def report(name: str, **changed: object) -> ReportRun:
    facts: dict[str, object] = {
        "id": name,
        "report": "daily",
        "since": NOW - 86_400,
        "until": NOW,
        "started_at": NOW,
        "ended_at": NOW + 1.5,
    }
    files = [ReportFile(name="daily.html", bytes=20), ReportFile(name="daily-pods.parquet", bytes=10)]
    return ReportRun(**{**facts, "files": files, **changed})  # type: ignore[arg-type]


def _error(status: int, kind: str, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": kind, "fix": "Do something about it."}}, status=status)


@contextmanager
def running(app: web.Application) -> Iterator[str]:
    """Serve `app` on a free port from a thread of its own, so that blocking clients can be tested; yields its URL."""
    loop = asyncio.new_event_loop()
    runner: web.AppRunner

    async def start() -> int:
        nonlocal runner
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    thread = threading.Thread(target=loop.run_forever, name="fake server", daemon=True)
    thread.start()
    port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextmanager
def control() -> Iterator[FakeControl]:
    """A running fake control API."""
    fake = FakeControl()
    with running(fake.application()) as url:
        fake.url = url
        yield fake
