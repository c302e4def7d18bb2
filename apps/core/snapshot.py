"""What the hub knows at one moment, as one immutable value that every session may read. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from backend.api.actions import AuditRecord, Operation, ServiceView
from backend.api.cache import CacheMap, SourceState
from backend.api.decisions import DecisionRecord
from backend.api.findings import Finding
from backend.api.fleet import FleetSnapshot

ConnectionState = Literal["connecting", "live", "quiet", "lost"]
"""quiet: connected, but nothing arrived for longer than expected; lost: control cannot be reached."""

QUIET_AFTER_S = 13.0
"""Control sends a comment every ten seconds even when nothing happens: a live stream is never silent for longer."""


@dataclass(frozen=True)
class Connection:
    """How the hub stands with control."""

    state: ConnectionState = "connecting"
    heard_at: float | None = None
    """Monotonic time of the last byte; None before the first."""
    reason: str = ""
    """Why it is lost, for people."""

    def age(self, now: float) -> float | None:
        return None if self.heard_at is None else max(0.0, now - self.heard_at)

    def shown(self, now: float) -> ConnectionState:
        """The state that a page may claim at `now`: a stream that went silent is not live, whatever the socket says."""
        age = self.age(now)
        if self.state == "live" and age is not None and age > QUIET_AFTER_S:
            return "quiet"
        return self.state


@dataclass(frozen=True)
class Trend:
    """One point of the figures that the Fleet page draws as small lines."""

    at: float
    ready: int
    requests_per_s: float
    ttft_p95_ms: float | None
    kv_usage: float
    hit_rate: float | None
    errors_per_s: float
    prompt_tokens_per_s: dict[str, float]
    """By pod, where a fresh scrape told."""


@dataclass(frozen=True)
class Rollouts:
    """StormServices and what was done to them."""

    services: tuple[ServiceView, ...] = ()
    operations: tuple[Operation, ...] = ()
    """Newest first."""
    audit: tuple[AuditRecord, ...] = ()
    """Newest first."""

    def with_operation(self, operation: Operation) -> Rollouts:
        """The same with one operation as it is now."""
        known = any(one.id == operation.id for one in self.operations)
        rest = tuple(operation if one.id == operation.id else one for one in self.operations)
        return replace(self, operations=rest if known else (operation, *rest))


@dataclass(frozen=True)
class Trouble:
    """Why something cannot be shown, and what to do about it."""

    reason: str
    fix: str = ""


@dataclass(frozen=True)
class Snapshot:
    """Everything a page draws from. `version` grows with every change; parts that did not change are the same objects."""

    version: int = 0
    connection: Connection = Connection()
    fleet: FleetSnapshot | None = None
    findings: tuple[Finding, ...] | None = None
    sources: tuple[SourceState, ...] | None = None
    decisions: tuple[DecisionRecord, ...] | None = None
    """Newest first."""
    trends: tuple[Trend, ...] = ()
    cache_map: CacheMap | None = None
    cache_map_error: str = ""
    rollouts: Rollouts | None = None
    """As fresh as its last answer; asked for only while somebody looks."""
    rollouts_trouble: Trouble | None = None
    """Why the last answer was none."""


def trend_of(fleet: FleetSnapshot) -> Trend:
    """The point that `fleet` adds to the trends. KV use is the mean of ready pods with a fresh scrape."""
    used = [view.load.kv_usage for view in fleet.pods if view.pod.ready and view.load.state == "fresh"]
    return Trend(
        at=fleet.at,
        ready=sum(view.pod.ready for view in fleet.pods),
        requests_per_s=fleet.requests_per_s,
        ttft_p95_ms=fleet.ttft_p95_ms,
        kv_usage=sum(used) / len(used) if used else 0.0,
        hit_rate=fleet.hit_rate,
        errors_per_s=fleet.errors_per_s,
        prompt_tokens_per_s={view.pod.name: view.load.prompt_tokens_per_s for view in fleet.pods if view.load.state == "fresh"},
    )


def mean_prompt_tokens(trends: tuple[Trend, ...], *, seconds: float) -> dict[str, float]:
    """Prompt tokens a second of every pod over the last `seconds`: one scrape alone is 0 whenever no prompt fell between two of them."""
    if not trends:
        return {}
    recent = [trend.prompt_tokens_per_s for trend in trends if trend.at > trends[-1].at - seconds]
    return {pod: sum(found) / len(found) for pod in recent[-1] if (found := [rates[pod] for rates in recent if pod in rates])}
