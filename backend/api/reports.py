"""Reports that were written, and when the next ones are due."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from backend.api.decisions import Moment

ReportName = Literal["daily"]
REPORTS: dict[str, str] = {"daily": "Requests, latency, cache, index, findings and fleet of the last 24 hours."}
"""What can be asked for: name to what it tells."""

RunState = Literal["running", "done", "failed"]
ScheduleId = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
"""Part of folder names and paths, hence the narrow alphabet."""

DAY_H = 24.0
Hours = Annotated[float, msgspec.Meta(gt=0.0, le=24.0 * 31)]


class ReportFile(msgspec.Struct, kw_only=True):
    """One file of a report; `name` is its path below the report's folder."""

    name: str
    bytes: int


class ReportRun(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One report, written, being written or failed. Kept beside its files, so that it outlives the process that wrote it."""

    id: str
    report: str
    state: RunState
    schedule: str = ""
    """Id of the schedule that asked for it; empty when a person did."""
    due: float = 0.0
    """When it should have begun; other than `started_at` when nobody was there to begin it."""
    skipped: int = 0
    """Earlier runs of the schedule that fell into the same absence and are not caught up."""
    since: float = 0.0
    until: float = 0.0
    """Time that the report covers, seconds since 1970: since <= arrival < until."""
    started_at: float = 0.0
    ended_at: float = 0.0
    error: str = ""
    """Why it failed."""
    files: list[ReportFile] = []
    fence: int = 0
    """Grows with every start of a scheduled run: of two that believe to be the one, the smaller is the late one."""


class ReportPage(msgspec.Struct, kw_only=True):
    """Kept reports, newest first; they fit one page. `reports` names what can be asked for."""

    items: list[ReportRun]
    next: str | None = None
    reports: dict[str, str] = msgspec.field(default_factory=REPORTS.copy)


class ReportRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A report now. Without `since` and `until` it covers the last 24 hours."""

    report: ReportName = "daily"
    since: Moment | None = None
    until: Moment | None = None


class Schedule(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A report again and again."""

    id: ScheduleId
    report: ReportName = "daily"
    cron: str
    """Minute, hour, day of month, month, day of week; in UTC."""
    hours: Hours = DAY_H
    """Hours before the due moment that the report covers."""
    created_at: float = 0.0


class ScheduleRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A new schedule; without an id it gets one."""

    cron: str
    report: ReportName = "daily"
    id: ScheduleId | None = None
    hours: Hours = DAY_H


class ScheduleView(Schedule, kw_only=True):
    """A schedule with what became of it."""

    next_due: float | None = None
    """Seconds since 1970; None for a moment that never comes, such as 30 February."""
    last_due: float = 0.0
    """The newest due moment that was dealt with; before the first, when the schedule was made."""
    last_run: ReportRun | None = None


class SchedulePage(msgspec.Struct, kw_only=True):
    """All schedules, by id; they fit one page."""

    items: list[ScheduleView]
    next: str | None = None
