"""Control at work: follows fleet, index, gateway and history, and keeps the newest snapshot, findings and events of all of them.

Owns the tasks; what is wrong is decided in `findings`, what the figures mean in `kpis`. The HTTP side only reads from here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import httpx
import msgspec

from backend.api import routes
from backend.api.actions import Operation
from backend.api.decisions import DecisionRecord
from backend.api.findings import Finding
from backend.api.fleet import FleetSnapshot, Pod, PodView
from backend.control.actions import wiring
from backend.control.actions.service import Actions
from backend.control.events import EventHub
from backend.control.findings import Remembered, findings
from backend.control.growth import Growth
from backend.control.kpis import TrafficWindow
from backend.control.model import View
from backend.control.peers import Gateway, Index
from backend.control.reconciling import Reconciling
from backend.control.reporting import Reporting
from backend.core.clock import Clock, SystemClock
from backend.core.settings import ControlSettings
from backend.core.supervise import Supervisor
from backend.fleet.scraper import Scraper
from backend.fleet.source import FleetSource
from backend.history.model import Filter
from backend.history.service import History

REFRESH_S = 1.0
"""Seconds between two looks at what changed; also the fastest rhythm of `fleet` events."""
INDEX_S = 2.0
GATEWAY_S = 5.0
DECISIONS_S = 0.5
"""Rhythm of `decisions` events."""
LATEST_ROWS = 2_000
"""Decisions that the figures of the last minute start from after a restart."""
DECISIONS_SENT = 50
"""Newest decisions an event; the others are in the list and the event says how many."""


class Control:
    """Everything that control knows. `start` begins, `close` ends."""

    def __init__(self, settings: ControlSettings, tasks: Supervisor, *, token: str = "", clock: Clock | None = None) -> None:
        self.settings = settings
        self.tasks = tasks
        self.clock: Clock = clock or SystemClock()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # The certificate store costs 10 MB a client, and on a laptop nobody speaks TLS.
        encrypted = any(url.startswith("https:") for url in (settings.kvindex_url, settings.gateway_url))
        self.http = httpx.AsyncClient(timeout=30.0, trust_env=False, headers=headers, verify=encrypted)
        self.pods_http = httpx.AsyncClient(timeout=30.0, trust_env=False, verify=False)
        """For pods: they speak plain HTTP and are never shown our token."""
        self.source = FleetSource(settings.fleet, settings.pods)
        self.scraper = Scraper(settings.fleet, tasks, clock=self.clock)
        self.index = Index("kvindex", settings.kvindex_url, self.http, self.clock)
        self.gateway = Gateway("gateway", settings.gateway_url, self.http, self.clock)
        folder = settings.history.folder or settings.state / "history"
        self.history = History(folder, settings.history, settings.records, on_records=self._arrived, clock=self.clock)
        self.reports = Reporting(settings, token=token, clock=self.clock)
        self.hub = EventHub(self.clock.now())
        self.traffic = TrafficWindow()
        self.findings: list[Finding] = []
        self.snapshot = FleetSnapshot(version=self.hub.version, at=self.clock.now(), pods=[])
        self.parts = wiring.build(settings, tasks, clock=self.clock, publish=self._operation_changed, cached=self._cached_tokens)
        self.reconciling = Reconciling(settings, tasks)
        self._remembered = Remembered()
        self._growth = Growth()
        self._fresh: list[DecisionRecord] = []
        self._decided = asyncio.Event()

    @property
    def pods(self) -> list[Pod]:
        return self.source.pods

    @property
    def actions(self) -> Actions:
        """The pipeline. Raises Unavailable that says which setting is missing."""
        return self.parts.actions

    async def start(self) -> None:
        """Read what is on the disk, then follow everything. Raises ConfigError for pods that cannot be read at all."""
        await self.history.load()
        latest, _ = await self.history.page(Filter(), LATEST_ROWS)
        self.traffic.add(latest)
        self.history.start(self.tasks)
        self.tasks.start("fleet", self._follow_fleet)
        self.tasks.start("index", self._follow_index)
        self.tasks.start("gateway", self._follow_gateway)
        self.tasks.start("decisions", self._send_decisions)
        self.tasks.start("refresh", self._refresh_always)
        self.parts.start()
        self.reconciling.start()

    async def close(self) -> None:
        self.hub.close()
        await self.history.close()
        await self.tasks.close()
        await self.reports.close()
        await self.parts.close()
        await self.reconciling.close()
        self.scraper.close()
        await self.http.aclose()
        await self.pods_http.aclose()

    def fleet(self) -> FleetSnapshot:
        """The newest snapshot, with the time of this moment."""
        return msgspec.structs.replace(self.snapshot, at=self.clock.now())

    def refresh(self) -> None:
        """Look at everything once; publish what differs in more than a time."""
        now = self.clock.now()
        views = [PodView(pod=pod, load=self.scraper.load(pod.name)) for pod in self.source.pods]
        snapshot = FleetSnapshot(version=self.snapshot.version, at=now, pods=views, **self.traffic.kpis(now)._asdict())
        if timeless(snapshot) != timeless(self.snapshot):
            snapshot.version = self.hub.version + 1
            self.hub.publish_at(snapshot.version, routes.EVENT_FLEET, snapshot)
        self.snapshot = snapshot
        found = self._remembered.update(findings(self._view(now)), now)
        if found != self.findings:
            self.findings = found
            self.hub.publish(routes.EVENT_FINDINGS, found)

    def _view(self, now: float) -> View:
        return View(
            now=now,
            pods=self.snapshot.pods,
            fleet_problem=str(self.source.problem or ""),
            sources=self.index.sources,
            prefix_cache_used=self.traffic.uses("prefix-cache", now),
            kvindex=self.index.view,
            index_problem=self.index.problem,
            gateway=self.gateway.view,
            redis_configured=bool(self.settings.records.redis_url),
            history=self.history.trouble,
            reports=self.reports.view,
            not_reconciled=self.reconciling.problems,
            grown=self._growth.update(self._counters(), now),
        )

    def _operation_changed(self, operation: Operation) -> None:
        self.hub.publish(routes.EVENT_OPERATION, operation)

    def _cached_tokens(self) -> Mapping[str, int] | None:
        """Tokens that each pod has cached, as the index knows it; None before it answered, and while it does not."""
        if self.index.sources is None or self.index.view.error:
            return None
        tokens: dict[str, int] = {}
        for source in self.index.sources:
            tokens[source.pod] = tokens.get(source.pod, 0) + source.blocks * source.block_size
        return tokens

    def _counters(self) -> Mapping[str, float]:
        counters: dict[str, float] = {
            "records-dropped": self.gateway.dropped_records,
            "records-trimmed": self.history.counters.trimmed,
            "records-unreadable": self.history.counters.unreadable,
        }
        for source in self.index.sources or ():
            name = f"{source.pod}/{source.rank}"
            counters[f"missed:{name}"] = source.missed
            counters[f"gaps:{name}"] = source.gaps
            counters[f"skipped:{name}"] = sum(source.skipped.values())
        return counters

    def _arrived(self, records: Sequence[DecisionRecord]) -> None:
        self.traffic.add(records)
        self._fresh += records
        self._decided.set()

    async def _follow_fleet(self) -> None:
        async for pods in self.source.changes():
            await self.scraper.follow(pods)
            self.refresh()

    async def _follow_index(self) -> None:
        published: list[object] = []
        while True:
            await self.index.refresh()
            if self.index.sources is not None and self.index.sources != published:
                published = list(self.index.sources)
                self.hub.publish(routes.EVENT_SOURCES, published)
            await asyncio.sleep(INDEX_S)

    async def _follow_gateway(self) -> None:
        while True:
            await self.gateway.refresh()
            await asyncio.sleep(GATEWAY_S)

    async def _send_decisions(self) -> None:
        while True:
            await self._decided.wait()
            self._decided.clear()
            fresh, self._fresh = self._fresh, []
            left_out = max(0, len(fresh) - DECISIONS_SENT)
            newest = sorted(fresh, key=lambda record: record.at + record.total_ms / 1000, reverse=True)[:DECISIONS_SENT]
            self.hub.publish(routes.EVENT_DECISIONS, newest, note=f"{left_out} older decisions left out" if left_out else "")
            await asyncio.sleep(DECISIONS_S)

    async def _refresh_always(self) -> None:
        while True:
            self.refresh()
            await asyncio.sleep(REFRESH_S)


def timeless(snapshot: FleetSnapshot) -> tuple[object, ...]:
    """What of a snapshot counts as a change: everything but the moments at which it was looked at."""
    replace = msgspec.structs.replace
    bare = replace(snapshot, at=0.0, version=0, pods=[])
    return (bare, [(view.pod, replace(view.load, scraped_at=0.0)) for view in snapshot.pods])
