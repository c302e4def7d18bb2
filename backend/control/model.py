"""What the findings look at: everything that control knows at one moment. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from backend.api.cache import SourceState
from backend.api.fleet import PodView
from backend.api.reports import ReportRun
from backend.history.model import HistoryTrouble


@dataclass(frozen=True)
class PeerView:
    """Another process of the stack. `error` is empty while it answers."""

    url: str
    error: str = ""
    since: float = 0.0
    """When it stopped answering."""


@dataclass(frozen=True)
class ReportsView:
    """Reports as the findings see them."""

    failed: Sequence[ReportRun] = ()
    """The newest report of each schedule, and of those that people asked for, where it failed."""
    problem: str = ""
    """Why schedules cannot be looked at; empty while they can, or when the stream server's own finding says it."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Schedules that cannot be read: id to reason."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One moment. `grown` holds how much a counter grew over the last ten minutes, by its name."""

    now: float
    pods: Sequence[PodView] = ()
    fleet_problem: str = ""
    sources: Sequence[SourceState] | None = ()
    """None until the index has answered for the first time."""
    prefix_cache_used: bool = False
    """A request of the last minute was decided by what pods have cached."""
    kvindex: PeerView = PeerView("")
    index_problem: str = ""
    """Why routing looks at an older index."""
    gateway: PeerView = PeerView("")
    redis_configured: bool = True
    history: HistoryTrouble = field(default_factory=HistoryTrouble)
    reports: ReportsView = ReportsView()
    not_reconciled: Mapping[str, str] = field(default_factory=dict)
    """Kinds of objects that the controllers here cannot follow, and why."""
    grown: Mapping[str, float] = field(default_factory=dict)
