"""Reports and schedules by control's HTTP interface: the real command as a process, a real server of schedules, real files."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import polars as pl
import pytest

from backend.api import routes
from backend.api.reports import ReportPage, ReportRun, SchedulePage, ScheduleView
from backend.control.handlers import Handlers
from backend.control.reportroutes import REPORT_OPERATIONS
from backend.control.reports import ABANDONED_S, ReportFolder
from backend.control.service import Control
from backend.core import web
from backend.core.clock import ManualClock
from backend.core.metrics import Registry
from backend.core.settings import ControlSettings, RecordSettings, ReportSettings
from backend.core.supervise import Supervisor
from tests.behaviour.test_control_api import conform
from tests.fakes.valkey import Valkey, valkey
from tests.fakes.waiting import eventually

__all__ = ["valkey"]

TOKEN = "a-token-of-the-test"
SLOW = 'import time, sys\nprint("begun", flush=True)\ntime.sleep(60)\n'


class Door:
    def __init__(self, control: Control, url: str) -> None:
        self.control = control
        self.url = url
        self.http = httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False, timeout=30)

    async def schedules(self) -> list[ScheduleView]:
        return msgspec.json.decode((await self.http.get(routes.SCHEDULES)).content, type=SchedulePage).items

    async def done(self, answer: httpx.Response) -> ReportRun:
        """The report that `answer` announced, once it is written."""
        assert answer.status_code == 200, answer.text
        path = routes.REPORT.format(id=answer.json()["id"])
        async with asyncio.timeout(30):
            while True:
                seen = await self.http.get(path)
                if seen.status_code == 200 and seen.json()["state"] != "running":
                    return msgspec.json.decode(seen.content, type=ReportRun)
                await asyncio.sleep(0.05)


async def first_schedules(door: Door) -> list[ScheduleView]:
    """Those that a new stack starts with, as soon as they are there."""
    async with asyncio.timeout(5):
        while True:
            if found := await door.schedules():
                return found
            await asyncio.sleep(0.05)


async def opened(tmp_path: Path, redis_url: str, **settings: object) -> AsyncIterator[Door]:
    """A control without pods, index and gateway: its report has gaps, and is one."""
    given = ControlSettings(
        state=tmp_path / "state",
        kvindex_url="http://127.0.0.1:1",
        gateway_url="http://127.0.0.1:1",
        records=RecordSettings(redis_url=redis_url),
        reports=ReportSettings(**settings),  # type: ignore[arg-type]
    )
    async with Supervisor("control") as tasks:
        control = Control(given, tasks, token=TOKEN)
        app = web.application(Registry(), token=TOKEN)
        Handlers(control).register(app, "1")
        await control.start()
        runner = await web.serve(app, host="127.0.0.1", port=0, what="control")
        await control.reports.start(tasks, "127.0.0.1", web.bound_port(runner))
        door = Door(control, f"http://127.0.0.1:{web.bound_port(runner)}")
        yield door
        await door.http.aclose()
        control.hub.close()
        await runner.cleanup()
        await control.close()


@pytest.fixture
async def door(tmp_path: Path, valkey: Valkey) -> AsyncIterator[Door]:
    async for one in opened(tmp_path, valkey.url):
        yield one


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `workbench` command that never ends: found before the real one by the child's path."""
    folder = tmp_path / "slow" / "workbench"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "__main__.py").write_text(SLOW)
    monkeypatch.chdir(tmp_path / "slow")
    return folder


async def test_a_report_is_written_kept_listed_and_downloaded(door):
    run = await door.done(await door.http.post(routes.REPORTS, json={}))
    assert (run.state, run.error) == ("done", "")
    assert {"daily.html", "daily.json", "daily-pods.parquet"} <= {file.name for file in run.files}
    listed = msgspec.json.decode((await door.http.get(routes.REPORTS)).content, type=ReportPage)
    assert [one.id for one in listed.items] == [run.id]
    for file in run.files:
        answer = await door.http.get(routes.REPORT_FILE.format(id=run.id, name=file.name))
        assert len(answer.content) == file.bytes
        assert answer.headers["Content-Security-Policy"].startswith("sandbox")
        assert TOKEN.encode() not in answer.content
    for name in ("run.json", "..%2F..%2Ftoken", "nothing.html"):
        assert (await door.http.get(routes.REPORT_FILE.format(id=run.id, name=name))).status_code == 404, name
    data = (await door.http.get(routes.REPORT_FILE.format(id=run.id, name="daily.json"))).json()
    assert data["facts"]["requests"] == 0
    assert any("kvindex" in problem for problem in data["problems"])
    folder = door.control.reports.folder.folder / run.id
    assert pl.read_parquet(folder / "daily-pods.parquet").height == 0
    assert [path.name for path in folder.parent.iterdir()] == [run.id]


async def test_every_operation_answers_as_the_document_says(door):
    document = (await door.http.get(routes.OPENAPI)).json()
    run = await door.done(await door.http.post(routes.REPORTS, json={"report": "daily"}))
    assert (await door.http.post(routes.SCHEDULES, json={"cron": "0 0 1 1 *", "id": "yearly"})).status_code == 200
    bodies = {"ask_report": {"report": "daily"}, "create_schedule": {"cron": "@monthly"}}
    for operation in sorted(REPORT_OPERATIONS, key=lambda one: one.method == "DELETE"):
        described = document["paths"][operation.path][operation.method.lower()]
        assert [one["name"] for one in described["parameters"] if one["in"] == "path"] == re.findall(r"\{(\w+)\}", operation.path)
        path = operation.path.format(id="yearly" if "schedule" in operation.name else run.id, name="daily.html")
        answer = await door.http.request(operation.method, path, json=bodies.get(operation.name))
        assert answer.status_code == 200, answer.text
        if operation.response is not None:
            msgspec.json.decode(answer.content, type=operation.response)
            conform(answer.json(), described["responses"]["200"]["content"]["application/json"]["schema"], document, operation.path)
    async with httpx.AsyncClient(base_url=door.url, trust_env=False) as stranger:
        for operation in REPORT_OPERATIONS:
            assert (await stranger.request(operation.method, operation.path.format(id="x", name="y"))).status_code == 401


BAD = [
    ("unknown_report", "POST", routes.REPORTS, {"report": "weekly"}, 400, "report"),
    ("backwards", "POST", routes.REPORTS, {"since": 20.0, "until": 10.0}, 400, "since"),
    ("too_long", "POST", routes.REPORTS, {"since": 0.0, "until": 1e9}, 400, "31 days"),
    ("no_number", "POST", routes.REPORTS, {"since": "x"}, 400, "since"),
    ("no_such_report", "GET", routes.REPORT.format(id="daily-0"), None, 404, "daily-0"),
    ("out_of_the_folder", "GET", routes.REPORT.format(id="..%2F..%2Ftoken"), None, 404, "No report"),
    ("hidden_folder", "GET", routes.REPORT.format(id=".daily"), None, 404, "No report"),
    ("wrong_cron", "POST", routes.SCHEDULES, {"cron": "61 * * * *"}, 400, "minute"),
    ("never", "POST", routes.SCHEDULES, {"cron": "0 0 30 2 *"}, 400, "never comes"),
    ("bad_id", "POST", routes.SCHEDULES, {"cron": "@daily", "id": "../x"}, 400, "id"),
    ("taken_id", "POST", routes.SCHEDULES, {"cron": "@daily", "id": "daily"}, 409, "already"),
    ("no_such_schedule", "DELETE", routes.SCHEDULE.format(id="nobody"), None, 404, "daily"),
    ("run_of_no_schedule", "POST", routes.SCHEDULE_RUN.format(id="nobody"), None, 404, "daily"),
]


async def test_what_cannot_be_is_told(door):
    assert await first_schedules(door)
    for name, method, path, body, status, words in BAD:
        answer = await door.http.request(method, path, json=body)
        assert answer.status_code == status, (name, answer.text)
        assert words in answer.text, name


async def test_a_new_stack_has_a_daily_schedule_that_stays_deleted(tmp_path: Path, valkey: Valkey):
    async for door in opened(tmp_path, valkey.url):
        found = await first_schedules(door)
        assert (found[0].id, found[0].cron) == ("daily", "0 6 * * *")
        assert found[0].next_due > door.control.clock.now()
        assert (await door.http.delete(routes.SCHEDULE.format(id="daily"))).status_code == 200
    async for door in opened(tmp_path, valkey.url):
        await asyncio.sleep(0.3)
        assert await door.schedules() == []


async def test_a_schedules_report_is_run_by_hand_without_moving_its_moment(door):
    await door.http.post(routes.SCHEDULES, json={"cron": "0 0 1 1 *", "id": "yearly", "hours": 48})
    run = await door.done(await door.http.post(routes.SCHEDULE_RUN.format(id="yearly")))
    assert (run.state, run.schedule, run.until - run.since) == ("done", "yearly", 48 * 3600)
    (view,) = [one for one in (await door.http.get(routes.SCHEDULES)).json()["items"] if one["id"] == "yearly"]
    assert view["last_run"]["id"] == run.id
    assert view["last_due"] < run.due


async def test_two_controls_write_a_due_report_once(tmp_path: Path, valkey: Valkey):
    async for first in opened(tmp_path, valkey.url, folder=tmp_path / "reports"):
        async for second in opened(tmp_path, valkey.url, folder=tmp_path / "reports"):
            await first.http.post(routes.SCHEDULES, json={"cron": "* * * * *", "id": "often"})
            later = first.control.clock.now() + 60
            for one in (first, second):
                one.control.reports.scheduler.clock = ManualClock(later)
            looks = [one.control.reports.scheduler.look() for one in (first, second)]
            assert sum(await asyncio.gather(*looks)) == 1
            pages = [(await one.http.get(routes.REPORTS)).json()["items"] for one in (first, second)]
            assert pages[0] == pages[1]
            assert [run["state"] for run in pages[0]] == ["done"]


async def test_a_report_that_takes_too_long_is_ended_and_becomes_a_finding(tmp_path: Path, valkey: Valkey, slow: Path):
    async for door in opened(tmp_path, valkey.url, time_limit_s=1.5):
        run = await door.done(await door.http.post(routes.REPORTS, json={}))
        assert run.state == "failed"
        assert "1.5 s" in run.error
        assert run.ended_at - run.started_at < 4
        door.control.reports._failed = [one for one in await door.control.reports.folder.runs() if one.state == "failed"]
        door.control.refresh()
        found = {one["id"]: one for one in (await door.http.get(routes.FINDINGS)).json()["items"]}
        assert "1.5 s" in found["report-failed:asked"]["cause"]


async def test_what_the_command_says_is_the_reason(tmp_path: Path, valkey: Valkey, slow: Path):
    (slow / "__main__.py").write_text(f'import sys\nprint("workbench: no room, {TOKEN}", file=sys.stderr)\nsys.exit(1)\n')
    async for door in opened(tmp_path, valkey.url):
        run = await door.done(await door.http.post(routes.REPORTS, json={}))
        assert (run.state, run.error) == ("failed", "no room, ***")
        assert [file.name for file in run.files] == ["run.log"]


async def test_a_stopping_control_ends_the_report_that_it_writes(tmp_path: Path, valkey: Valkey, slow: Path):
    (slow / "__main__.py").write_text(f"import os\nopen('{tmp_path}/pid', 'w').write(str(os.getpid()))\n{SLOW}")
    async for door in opened(tmp_path, valkey.url):
        await door.http.post(routes.REPORTS, json={})
        await eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_without_a_server_reports_work_and_schedules_say_why_not(tmp_path: Path):
    async for door in opened(tmp_path, ""):
        assert (await door.done(await door.http.post(routes.REPORTS, json={}))).state == "done"
        answer = await door.http.get(routes.SCHEDULES)
        assert answer.status_code == 503
        assert "redis_url" in answer.json()["error"]["fix"]


async def test_old_reports_make_room_and_a_killed_controls_report_is_told(tmp_path: Path):
    clock = ManualClock()
    folder = ReportFolder(tmp_path / "reports", ReportSettings(kept=3), token="", clock=clock)
    for number in range(5):
        clock.advance(60)
        await folder.publish(ReportRun(id=f"daily-{number}", report="daily", state="done", started_at=clock.now()))
    for name, fence in (("asked", 0), ("scheduled", 7)):
        run = ReportRun(id=name, report="daily", state="running", started_at=clock.now(), fence=fence)
        await asyncio.to_thread(folder._prepare, folder._hidden(run), run)
    await folder.keep()
    assert [run.id for run in await folder.runs()] == ["daily-4", "daily-3", "daily-2"]
    clock.advance(folder.settings.time_limit_s + ABANDONED_S + 1)
    await folder.keep()
    assert sorted(path.name for path in folder.folder.iterdir()) == ["asked", "daily-2", "daily-3", "daily-4"]
    told = await folder.get("asked")
    assert (told.state, told.error) == ("failed", "Control ended while it was written.")


async def test_a_second_report_of_a_moment_does_not_replace_the_first(tmp_path: Path):
    folder = ReportFolder(tmp_path / "reports", ReportSettings(), token="", clock=ManualClock())
    first, second = (ReportRun(id="daily-1", report="daily", state="done", fence=fence) for fence in (1, 2))
    await folder.publish(first)
    assert (await folder.publish(second)).fence == 1
    await folder.discard(second)
    assert json.loads((folder.folder / "daily-1" / "run.json").read_text())["fence"] == 1
    await folder.discard(first)
    assert list(folder.folder.iterdir()) == []
