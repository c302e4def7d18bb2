"""Reports for notebooks and scripts: one plain method a question. Shows what was read last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.api.reports import DAY_H, ScheduleView
from workbench import _loop, _show
from workbench.reports import tables, times
from workbench.reports.client import WAIT_S, AsyncReports, AsyncSchedules

if TYPE_CHECKING:
    import polars


class Schedules(_show.Shown):
    """Reports that are written again and again, by cron expressions in UTC."""

    def __init__(self, core: AsyncSchedules, reports: AsyncReports, loop: _loop.LoopThread) -> None:
        self._core = core
        self._reports = reports
        self._loop = loop

    def list(self) -> tables.SchedulesTable:
        """All of them, with when they are due next and what became of their newest report."""
        return self._loop.run(self._core.list())

    def df(self) -> polars.DataFrame:
        """One row a schedule; columns as in `workbench.reports.tables.SCHEDULES`."""
        return self.list().df()

    def create(self, cron: str, report: str = "daily", *, id: str | None = None, hours: float = DAY_H) -> ScheduleView:  # noqa: A002
        """Write `report` at the moments of `cron`: minute, hour, day of month, month, day of week, in UTC.

        >>> stack.workbench.reports.schedules.create("0 7 * * mon-fri", id="workdays").cron
        '0 7 * * mon-fri'
        """
        return self._loop.run(self._core.create(cron, report, id=id, hours=hours))

    def delete(self, schedule_id: str) -> ScheduleView:
        """Forget a schedule; its reports stay. Raises NotFound."""
        return self._loop.run(self._core.delete(schedule_id))

    def run(self, schedule_id: str, *, wait: bool = True) -> tables.RunCard:
        """Write its report now; when it is next due does not change. Raises NotFound, PermanentError when the report fails."""
        card = self._loop.run(self._core.start(schedule_id))
        return self._loop.run(self._reports.wait(card.id)) if wait else card

    def __repr__(self) -> str:
        return "Schedules (not read yet; .list() asks)" if self._core.last is None else repr(self._core.last)

    def _facts(self) -> dict[str, Any]:
        return _none_yet("Schedules") if self._core.last is None else self._core.last._facts()


class Reports(_show.Shown):
    """Reports of a fleet: kept by control, asked for, or made here."""

    def __init__(self, core: AsyncReports, loop: _loop.LoopThread) -> None:
        self._core = core
        self._loop = loop
        self.schedules = Schedules(core.schedules, core, loop)

    def list(self) -> tables.RunsTable:
        """Those that control keeps, newest first.

        >>> stack.workbench.reports.list().df()["state"].to_list()
        ['done']
        """
        return self._loop.run(self._core.list())

    def df(self) -> polars.DataFrame:
        """One row a kept report; columns as in `workbench.reports.tables.RUNS`."""
        return self.list().df()

    def get(self, report_id: str) -> tables.RunCard:
        """Raises NotFound."""
        return self._loop.run(self._core.get(report_id))

    def run(
        self,
        report: str = "daily",
        *,
        since: times.Moment = None,
        until: times.Moment = None,
        wait: bool = True,
        timeout_s: float = WAIT_S,
    ) -> tables.RunCard:
        """Have control write a report of the last 24 hours, or of the time between `since` and `until` (UTC), and keep it.

        Raises PermanentError when the report fails.

        >>> stack.workbench.reports.run("daily").state
        'done'
        """
        card = self._loop.run(self._core.start(report, since=since, until=until))
        return self._loop.run(self._core.wait(card.id, timeout_s=timeout_s)) if wait else card

    def make(self, report: str = "daily", *, since: times.Moment = None, until: times.Moment = None) -> tables.MadeReport:
        """A report made in this process: `.tables`, `.html()`, `.save(folder)`; control keeps nothing of it.

        >>> stack.workbench.reports.make("daily").facts["pods"]
        2
        """
        return self._loop.run(self._core.make(report, since=since, until=until))

    def read(self, report_id: str, name: str) -> bytes:
        """One file of a kept report, such as `daily.html`. Raises NotFound."""
        return self._loop.run(self._core.read(report_id, name))

    def save(self, report_id: str, folder: str | Path = ".") -> Sequence[Path]:
        """Copy a kept report's files to `folder`; gives their paths."""
        return self._loop.run(self._core.save(report_id, folder))

    def __repr__(self) -> str:
        return "Reports (not read yet; .list() asks)" if self._core.last is None else repr(self._core.last)

    def _facts(self) -> dict[str, Any]:
        return _none_yet("Reports") if self._core.last is None else self._core.last._facts()


def _none_yet(title: str) -> dict[str, Any]:
    return {"title": title, "note": "", "headers": (), "rows": [], "more": 0, "empty": "Nothing read yet: .list() asks."}
