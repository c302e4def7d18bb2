"""Reports and schedules as the HTTP side sees them: lists, runs that people ask for, and the clockwork behind them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

import msgspec

from backend.api.reports import ReportPage, ReportRequest, ReportRun, Schedule, SchedulePage, ScheduleRequest, ScheduleView
from backend.control import cron
from backend.control.model import ReportsView
from backend.control.reports import ReportFolder, run_id
from backend.control.schedules import Due, Scheduler, scheduled_run
from backend.control.schedulestore import RedisSchedules
from backend.core.clock import Clock
from backend.core.errors import InvalidRequest, NotFound, StaleState, Unavailable
from backend.core.ids import new_id
from backend.core.settings import ControlSettings
from backend.core.supervise import Supervisor

log = logging.getLogger(__name__)

DAY_S = 86_400.0
FIRST_RETRY_S = 5.0
FAILURES_S = 10.0
"""Seconds between two looks at which reports failed."""
LONGEST_WINDOW_S = 31 * DAY_S
WAITING = 8
"""Reports that people may have asked for and that are not done yet; each waits for the one before."""
DAILY = "daily"


class Reporting:
    """Owns folder, store and clockwork. Reading works before `start`; without Redis only schedules are missing."""

    def __init__(self, settings: ControlSettings, *, token: str, clock: Clock) -> None:
        self.settings = settings.reports
        self.clock = clock
        folder = settings.reports.folder or settings.state / "reports"
        self.folder = ReportFolder(folder, settings.reports, token=token, clock=clock)
        url = settings.records.redis_url
        self.store = RedisSchedules(url, settings.reports.keys) if url else None
        self.scheduler = Scheduler(self.store, self.folder, clock) if self.store else None
        self._failed: Sequence[ReportRun] = ()
        self._tasks: Supervisor | None = None

    async def start(self, tasks: Supervisor, host: str, port: int) -> None:
        """Begin once the control API listens, since reports read from it."""
        reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        self.folder.url = f"http://{reachable}:{port}"
        self._tasks = tasks
        tasks.start("report-failures", self._watch_failures)
        if self.scheduler is not None:
            tasks.start("schedules", self._clockwork)

    async def close(self) -> None:
        if self.store is not None:
            await self.store.close()

    @property
    def view(self) -> ReportsView:
        if self.scheduler is None:
            return ReportsView(failed=self._failed)
        return ReportsView(failed=self._failed, problem=self.scheduler.problem, broken=self.scheduler.broken)

    # reports

    async def page(self) -> ReportPage:
        return ReportPage(items=await self.folder.runs())

    async def ask(self, request: ReportRequest) -> ReportRun:
        """Begin a report now. Raises InvalidRequest for a window that is none."""
        now = self.clock.now()
        until = now if request.until is None else request.until
        since = until - DAY_S if request.since is None else request.since
        if not 0 < until - since <= LONGEST_WINDOW_S:
            raise InvalidRequest(
                "`since` and `until` are no window of up to 31 days.", param="since", fix="Pass seconds since 1970, `since` before `until`."
            )
        run = ReportRun(
            id=run_id(request.report, now, new_id()[:6]), report=request.report, state="running", due=now, since=since, until=until
        )
        return self._begin(run)

    def _begin(self, run: ReportRun) -> ReportRun:
        if self._tasks is None:
            raise Unavailable("Control is starting.", fix="Try again in a second.")
        if len(self.folder.running) >= WAITING:
            raise Unavailable(f"{WAITING} reports are being written.", fix="Wait until one is done; `wb.reports.list()` shows them.")
        run = msgspec.structs.replace(run, started_at=self.clock.now())
        self.folder.running[run.id] = run
        self._tasks.start(f"report {run.id}", partial(self._write, run))
        return run

    async def _write(self, run: ReportRun) -> None:
        written = await self.folder.publish(await self.folder.write(run))
        log.info("report %s: %s", written.id, written.error or f"{len(written.files)} files")
        await self.folder.keep()

    # schedules

    async def schedules(self) -> SchedulePage:
        store = self._kept()
        schedules, done = await store.all(), await store.done()
        newest: dict[str, ReportRun] = {}
        for run in await self.folder.runs():
            newest.setdefault(run.schedule, run)
        return SchedulePage(
            items=[self._seen(one, done.get(name, one.created_at), newest.get(name)) for name, one in sorted(schedules.items())]
        )

    def _seen(self, schedule: Schedule, last_due: float, last_run: ReportRun | None) -> ScheduleView:
        try:
            following = cron.parse(schedule.cron).after(self.clock.now())
        except InvalidRequest:
            following = None  # a finding says what is wrong with it
        fields = msgspec.structs.asdict(schedule)
        return ScheduleView(**fields, next_due=following, last_due=last_due, last_run=last_run)

    async def create(self, request: ScheduleRequest) -> ScheduleView:
        """Raises InvalidRequest for a wrong expression, StaleState when the id is taken."""
        if cron.parse(request.cron).after(self.clock.now()) is None:
            raise InvalidRequest(f"`cron` is {request.cron!r}: such a moment never comes.", param="cron", fix="Check day and month.")
        name = request.id or f"{request.report}-{new_id()[:6]}"
        schedule = Schedule(id=name, report=request.report, cron=request.cron, hours=request.hours, created_at=self.clock.now())
        if not await self._kept().add(schedule):
            raise StaleState(f"There is a schedule {name!r} already.", fix="Delete it first, or choose another id.")
        return self._seen(schedule, schedule.created_at, None)

    async def delete(self, schedule_id: str) -> ScheduleView:
        """The schedule as it was; its reports stay. Raises NotFound."""
        store = self._kept()
        schedule = (await store.all()).get(schedule_id)
        removed = await store.remove(schedule_id)
        if not removed:
            raise await self._unknown(schedule_id)
        return self._seen(schedule or Schedule(id=schedule_id, cron=""), self.clock.now(), None)

    async def run_now(self, schedule_id: str) -> ReportRun:
        """Begin the schedule's report now; when it is next due does not change. Raises NotFound."""
        schedule = (await self._kept().all()).get(schedule_id)
        if schedule is None:
            raise await self._unknown(schedule_id)
        now = self.clock.now()
        run = scheduled_run(schedule, Due(now), fence=0)
        return self._begin(msgspec.structs.replace(run, id=run_id(schedule.report, now, f"{schedule.id}-{new_id()[:6]}")))

    def _kept(self) -> RedisSchedules:
        if self.store is None:
            raise Unavailable("Schedules are kept in Redis, and none is configured.", fix="Set records.redis_url for control.")
        return self.store

    async def _unknown(self, schedule_id: str) -> NotFound:
        known = ", ".join(sorted(await self._kept().all()))
        return NotFound(f"No schedule has the id {schedule_id!r}.", fix=f"Schedules: {known or 'none'}.")

    # tasks

    async def _clockwork(self) -> None:
        """The first schedule of a new stack, then all that are due."""
        assert self.store is not None
        assert self.scheduler is not None
        while self.settings.daily:
            try:
                cron.parse(self.settings.daily)
                first = Schedule(id=DAILY, cron=self.settings.daily, created_at=self.clock.now())
                await self.store.add_once(first)
                break
            except InvalidRequest as error:
                self.scheduler.broken = {DAILY: error.message}
                log.error("reports.daily: %s", error)
                break
            except Unavailable as error:
                self.scheduler.problem = error.message
                await asyncio.sleep(FIRST_RETRY_S)
        await self.scheduler.always()

    async def _watch_failures(self) -> None:
        """Which newest reports failed, for the findings."""
        await self.folder.keep()
        while True:
            newest: dict[str, ReportRun] = {}
            for run in await self.folder.runs():
                if run.state != "running":
                    newest.setdefault(run.schedule, run)
            self._failed = [run for run in newest.values() if run.state == "failed"]
            await asyncio.sleep(FAILURES_S)
