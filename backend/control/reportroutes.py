"""Reports and schedules over HTTP: their part of the table of operations, and the methods that serve it."""

from __future__ import annotations

import mimetypes

import msgspec
from aiohttp import web

from backend.api import reports, routes
from backend.control.operations import Operation, Parameter
from backend.control.reporting import Reporting
from backend.core.web import json_response

_REPORT = Parameter("id", str, "The report's id.", "path")
_SCHEDULE = Parameter("id", str, "The schedule's id.", "path")

REPORT_OPERATIONS: tuple[Operation, ...] = (
    Operation("reports", routes.REPORTS, "Kept reports, newest first, those being written included.", reports.ReportPage),
    Operation(
        "ask_report",
        routes.REPORTS,
        "Begin a report now.",
        reports.ReportRun,
        method="POST",
        request=reports.ReportRequest,
        errors=(400, 401, 503),
    ),
    Operation("report", routes.REPORT, "One report and its files.", reports.ReportRun, parameters=(_REPORT,), errors=(401, 404)),
    Operation(
        "report_file",
        routes.REPORT_FILE,
        "One file of a report: HTML, JSON or Parquet.",
        None,
        parameters=(_REPORT, Parameter("name", str, "The file's name, such as daily.html or daily-pods.parquet.", "path")),
        errors=(401, 404),
        content="application/octet-stream",
    ),
    Operation("schedules", routes.SCHEDULES, "Reports that are written again and again.", reports.SchedulePage, errors=(401, 503)),
    Operation(
        "create_schedule",
        routes.SCHEDULES,
        "Write a report at the moments of a cron expression (UTC).",
        reports.ScheduleView,
        method="POST",
        request=reports.ScheduleRequest,
        errors=(400, 401, 409, 503),
    ),
    Operation(
        "delete_schedule",
        routes.SCHEDULE,
        "Forget a schedule; its reports stay.",
        reports.ScheduleView,
        method="DELETE",
        parameters=(_SCHEDULE,),
        errors=(401, 404, 503),
    ),
    Operation(
        "run_schedule",
        routes.SCHEDULE_RUN,
        "Begin a schedule's report now.",
        reports.ReportRun,
        method="POST",
        parameters=(_SCHEDULE,),
        errors=(401, 404, 503),
    ),
)

SANDBOX = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""A report is a page from the dashboard's or control's origin: it may show itself and nothing else."""


class ReportHandlers:
    """One method an operation of the table."""

    def __init__(self, reporting: Reporting) -> None:
        self.reporting = reporting

    async def reports(self, _: web.Request) -> web.Response:
        return json_response(await self.reporting.page())

    async def ask_report(self, request: web.Request) -> web.Response:
        body = await request.read() or b"{}"
        return json_response(await self.reporting.ask(msgspec.json.decode(body, type=reports.ReportRequest)))

    async def report(self, request: web.Request) -> web.Response:
        return json_response(await self.reporting.folder.get(request.match_info["id"]))

    async def report_file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        path = await self.reporting.folder.file(request.match_info["id"], name)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        headers = {"Content-Type": kind, "Content-Security-Policy": SANDBOX, "X-Content-Type-Options": "nosniff"}
        return web.FileResponse(path, headers=headers)

    async def schedules(self, _: web.Request) -> web.Response:
        return json_response(await self.reporting.schedules())

    async def create_schedule(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=reports.ScheduleRequest)
        return json_response(await self.reporting.create(asked))

    async def delete_schedule(self, request: web.Request) -> web.Response:
        return json_response(await self.reporting.delete(request.match_info["id"]))

    async def run_schedule(self, request: web.Request) -> web.Response:
        return json_response(await self.reporting.run_now(request.match_info["id"]))
