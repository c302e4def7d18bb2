"""What the workbench answers about reports: kept ones, one of them, schedules, and a report made here and now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.api.reports import ReportPage, ReportRun, SchedulePage, ScheduleView
from workbench import _show, columns, results
from workbench.columns import Column

if TYPE_CHECKING:
    import polars

    from workbench.reports.model import Report

RUNS: tuple[Column[ReportRun], ...] = (
    Column("id", "text", "stays the same", lambda row: row.id),
    Column("report", "text", "its kind", lambda row: row.report),
    Column("state", "text", "running, done or failed", lambda row: row.state),
    Column("schedule", "text", "who asked for it; empty for a person", lambda row: row.schedule),
    Column("since", "time", "beginning of the time covered", lambda row: row.since),
    Column("until", "time", "its end", lambda row: row.until),
    Column("due", "time", "when it should have begun", lambda row: row.due),
    Column("started_at", "time", "when it began", lambda row: row.started_at),
    Column("seconds", "number", "how long it took", lambda row: row.ended_at - row.started_at if row.ended_at else None),
    Column("skipped", "whole", "earlier moments missed with it", lambda row: row.skipped),
    Column("bytes", "whole", "size of its files", lambda row: sum(file.bytes for file in row.files)),
    Column("files", "texts", "its files", lambda row: [file.name for file in row.files]),
    Column("error", "text", "why it failed", lambda row: row.error),
)

SCHEDULES: tuple[Column[ScheduleView], ...] = (
    Column("id", "text", "its name", lambda row: row.id),
    Column("report", "text", "what is written", lambda row: row.report),
    Column("cron", "text", "minute, hour, day of month, month, day of week; UTC", lambda row: row.cron),
    Column("hours", "number", "hours that a report covers", lambda row: row.hours),
    Column("next_due", "time", "when it is due next", lambda row: row.next_due),
    Column("last_due", "time", "newest moment dealt with", lambda row: row.last_due),
    Column("last_state", "text", "what became of its newest report", lambda row: row.last_run.state if row.last_run else ""),
    Column("last_id", "text", "id of that report", lambda row: row.last_run.id if row.last_run else ""),
)


class RunsTable(results.Table[ReportRun]):
    """Kept reports, newest first. `kinds` says what can be asked for."""

    columns = RUNS
    shown = ("id", "state", "schedule", "seconds", "bytes", "error")
    title = "Reports"
    empty = 'No report yet. wb.reports.run("daily") writes one, wb.reports.schedules says when the next is due.'

    def __init__(self, page: ReportPage, at: float) -> None:
        super().__init__(page.items, at=at)
        self.kinds = page.reports


class SchedulesTable(results.Table[ScheduleView]):
    """All schedules, by id."""

    columns = SCHEDULES
    shown = ("id", "report", "cron", "hours", "next", "last_state", "last_id")
    title = "Schedules (UTC)"
    empty = 'No schedule. wb.reports.schedules.create("0 6 * * *") writes the daily report every day at six.'

    def __init__(self, page: SchedulePage, at: float) -> None:
        super().__init__(page.items, at=at)

    def _cells(self) -> list[list[object]]:
        return [
            [row.id, row.report, row.cron, row.hours, _when(row.next_due), *(read(row) for read in (SCHEDULES[6].read, SCHEDULES[7].read))]
            for row in self.rows
        ]


class RunCard(_show.Shown):
    """One report as control keeps it."""

    def __init__(self, run: ReportRun) -> None:
        self.run = run
        self.id = run.id
        self.state = run.state
        self.files = [file.name for file in run.files]

    def df(self) -> polars.DataFrame:
        return columns.frame(RUNS, [self.run])

    def _lines(self) -> list[list[object]]:
        run = self.run
        lines: list[list[object]] = [["state", run.state], ["covers", f"{_when(run.since)} to {_when(run.until)} UTC"]]
        lines += [["schedule", run.schedule]] if run.schedule else []
        lines += [["error", run.error]] if run.error else []
        return lines + [[file.name, f"{file.bytes:,} bytes"] for file in run.files]

    def __repr__(self) -> str:
        return _show.text_table([f"Report {self.id}", ""], self._lines(), limit=100)

    def _facts(self) -> dict[str, Any]:
        note = _show.age(self.run.started_at)
        return {"title": f"Report {self.id}", "note": note, "headers": ("", ""), "rows": self._lines(), "more": 0, "empty": ""}


class MadeReport(_show.Shown):
    """A report made in this process. `.tables` are its numbers, `.save(folder)` writes its files."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.facts = report.facts
        self.problems = report.problems

    @property
    def tables(self) -> dict[str, polars.DataFrame]:
        return self.report.tables

    def df(self, table: str = "requests") -> polars.DataFrame:
        """One of its tables; `.tables` has all."""
        return self.report.tables[table]

    def html(self) -> str:
        """The page: no script, no request to anywhere."""
        from workbench.reports import page

        return page.html(self.report)

    def save(self, folder: str | Path = ".") -> list[Path]:
        """Write page, JSON and Parquet files; gives their paths."""
        from workbench.reports import write

        return write.write(self.report, Path(folder))

    def _rows(self) -> list[list[object]]:
        return [[figure.label, figure.value, figure.note] for figure in self.report.figures]

    def lines(self) -> Sequence[str]:
        return [f"Report {self.report.name}, {self.report.window.text()}", *(f"not read: {problem}" for problem in self.problems)]

    def __repr__(self) -> str:
        return "\n".join([*self.lines(), _show.text_table(["", "", ""], self._rows()).lstrip("\n")])

    def _facts(self) -> dict[str, Any]:
        title, *more = self.lines()
        return {"title": title, "note": "; ".join(more), "headers": ("", "", ""), "rows": self._rows(), "more": 0, "empty": ""}


def _when(at: float | None) -> str:
    from workbench.reports.model import moment

    return moment(at) if at else "never"
