"""Reports, asynchronously: those that control keeps and schedules, and one made here. Notebooks use `workbench.reports.sync`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import msgspec

from backend.api import routes
from backend.api.reports import DAY_H, REPORTS, ReportPage, ReportRequest, ReportRun, SchedulePage, ScheduleRequest, ScheduleView
from workbench._transport import Transport
from workbench.errors import PermanentError, Unavailable, UsageError
from workbench.reports import tables, times

if TYPE_CHECKING:
    from workbench.client import AsyncWorkbench

T = TypeVar("T", bound=msgspec.Struct)
POLL_S = 0.5
WAIT_S = 900.0


class AsyncSchedules:
    """Reports that are written again and again, by cron expressions in UTC."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.last: tables.SchedulesTable | None = None

    async def list(self) -> tables.SchedulesTable:
        self.last = tables.SchedulesTable(await self._transport.get(SchedulePage, routes.SCHEDULES), at=time.time())
        return self.last

    async def create(self, cron: str, report: str = "daily", *, id: str | None = None, hours: float = DAY_H) -> ScheduleView:  # noqa: A002
        """A new schedule; `hours` before each moment are covered. Raises InvalidRequest, StaleState when the id is taken."""
        asked = _request(ScheduleRequest, cron=cron, report=report, id=id, hours=hours)
        return await self._transport.post(ScheduleView, routes.SCHEDULES, asked, again=False)

    async def delete(self, schedule_id: str) -> ScheduleView:
        """Forget a schedule; its reports stay. Raises NotFound."""
        return await self._transport.delete(ScheduleView, routes.SCHEDULE.format(id=_segment(schedule_id)))

    async def start(self, schedule_id: str) -> tables.RunCard:
        """Begin its report now and return at once. Raises NotFound."""
        path = routes.SCHEDULE_RUN.format(id=_segment(schedule_id))
        return tables.RunCard(await self._transport.post(ReportRun, path, None, again=False))


class AsyncReports:
    """Reports of a fleet."""

    def __init__(self, transport: Transport, workbench: AsyncWorkbench) -> None:
        self._transport = transport
        self._workbench = workbench
        self.schedules = AsyncSchedules(transport)
        self.last: tables.RunsTable | None = None

    async def list(self) -> tables.RunsTable:
        """Those that control keeps, newest first, those being written included."""
        self.last = tables.RunsTable(await self._transport.get(ReportPage, routes.REPORTS), at=time.time())
        return self.last

    async def get(self, report_id: str) -> tables.RunCard:
        """Raises NotFound."""
        return tables.RunCard(await self._transport.get(ReportRun, routes.REPORT.format(id=_segment(report_id))))

    async def start(self, report: str = "daily", *, since: times.Moment = None, until: times.Moment = None) -> tables.RunCard:
        """Ask control for a report and return at once."""
        given = times.window(since, until, time.time()) if since is not None or until is not None else None
        asked = _request(ReportRequest, report=report, since=given and given.since, until=given and given.until)
        return tables.RunCard(await self._transport.post(ReportRun, routes.REPORTS, asked, again=False))

    async def wait(self, report_id: str, *, timeout_s: float = WAIT_S) -> tables.RunCard:
        """The report once it is done. Raises PermanentError when it failed, Unavailable when it is not done in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            card = await self.get(report_id)
            if card.state == "failed":
                raise PermanentError(f"The report {report_id} failed: {card.run.error}", fix="`wb.findings()` says what to do.")
            if card.state == "done":
                return card
            if loop.time() >= deadline:
                raise Unavailable(f"The report {report_id} is still being written.", fix="It goes on; `wb.reports.list()` shows it.")
            await asyncio.sleep(POLL_S)

    async def read(self, report_id: str, name: str) -> bytes:
        """One file of a kept report. Raises NotFound."""
        return await self._transport.download(routes.REPORT_FILE.format(id=_segment(report_id), name=_segment(name)))

    async def save(self, report_id: str, folder: str | Path = ".") -> Sequence[Path]:
        """Copy a kept report's files to `folder`; gives their paths."""
        card = await self.get(report_id)
        target = Path(folder)
        paths = []
        await asyncio.to_thread(target.mkdir, parents=True, exist_ok=True)
        for name in card.files:
            # The server names the files: none of them may lead out of the folder.
            path = target / Path(name).name
            await asyncio.to_thread(path.write_bytes, await self.read(report_id, name))
            paths.append(path)
        return paths

    async def make(self, report: str = "daily", *, since: times.Moment = None, until: times.Moment = None) -> tables.MadeReport:
        """A report made in this process, from what control answers now; control keeps nothing of it."""
        if report not in REPORTS:
            raise UsageError(f"There is no report {report!r}.", fix=f"Reports: {', '.join(REPORTS)}.")
        from workbench.reports.daily import daily

        now = time.time()
        return tables.MadeReport(await daily(self._workbench, times.window(since, until, now), now=now))


def _request(kind: type[T], **fields: object) -> T:
    """A request with its fields checked here, so that a slip is told without a round trip."""
    try:
        return msgspec.convert({name: value for name, value in fields.items() if value is not None}, kind)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"This cannot be asked for: {error}.", fix=f"Reports: {', '.join(REPORTS)}; ids are a-z, 0-9 and dashes."
        ) from error


def _segment(name: str) -> str:
    return quote(name, safe="") or "-"
