"""Reports on the disk: written by `workbench report` in a process of its own, listed and read from their folders.

A report is written in a hidden folder and shown by one rename, whole or not at all; its `run.json` says how it went. The process
gets the token by its environment, ends with us, and is ended when it takes too long.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from backend.api.reports import ReportFile, ReportRun
from backend.core import processes
from backend.core.clock import Clock
from backend.core.errors import EnvironmentProblem, NotFound
from backend.core.files import ensure_folder, explain, write_atomic
from backend.core.settings import ReportSettings

RUN_FILE = "run.json"
LOG_FILE = "run.log"
ABANDONED_S = 120.0
"""Beyond the time limit; a hidden folder older than that belongs to nobody any more."""
LONGEST_ERROR = 600
TERMINATE_S = 2.0
_ID = re.compile(r"[a-z0-9][a-zA-Z0-9-]{0,120}")


class ReportFolder:
    """One folder of reports. Blocking work happens in threads; one report is written at a time, as each takes 300 MB."""

    def __init__(self, folder: Path, settings: ReportSettings, *, token: str, clock: Clock) -> None:
        self.folder = folder
        self.settings = settings
        self.clock = clock
        self.url = ""
        """Of the control API, which the report reads; set when it listens."""
        self.running: dict[str, ReportRun] = {}
        self._token = token
        self._one = asyncio.Semaphore(1)

    # writing

    async def write(self, run: ReportRun) -> ReportRun:
        """Write the report and say how it went; it is not shown before `publish`. Never raises for a report that fails."""
        run = msgspec.structs.replace(run, state="running", started_at=self.clock.now())
        self.running[run.id] = run
        try:
            async with self._one:
                error = await self._attempt(run)
        finally:
            self.running.pop(run.id, None)
        return msgspec.structs.replace(run, state="failed" if error else "done", ended_at=self.clock.now(), error=error)

    async def publish(self, run: ReportRun) -> ReportRun:
        """Show a written report, with the list of its files; one that stands there already stays."""
        return await asyncio.to_thread(self._publish, run)

    async def discard(self, run: ReportRun) -> None:
        """Forget a written report that somebody else wrote too, shown or not; another's of the same name stays."""

        def remove() -> None:
            shutil.rmtree(self._hidden(run), ignore_errors=True)
            shown = _read(self.folder / run.id / RUN_FILE)
            if shown is not None and shown.fence == run.fence:
                shutil.rmtree(self.folder / run.id, ignore_errors=True)

        await asyncio.to_thread(remove)

    async def keep(self) -> None:
        """Delete what is beyond the number kept, and what a killed control left behind."""
        await asyncio.to_thread(self._keep)

    # reading

    async def runs(self) -> list[ReportRun]:
        """Newest first, those being written included. From the disk each time: other replicas write there too."""
        shown = await asyncio.to_thread(self._listed)
        return sorted([*shown, *self.running.values()], key=lambda run: (run.started_at, run.id), reverse=True)

    async def get(self, run_id: str) -> ReportRun:
        """Raises NotFound."""
        if (running := self.running.get(run_id)) is not None:
            return running
        shown = await asyncio.to_thread(_read, self.folder / run_id / RUN_FILE) if _ID.fullmatch(run_id) else None
        if shown is None:
            raise NotFound(f"No report has the id {run_id!r}.", fix="`wb.reports.list()` has those that are kept.")
        return shown

    async def file(self, run_id: str, name: str) -> Path:
        """The path of one of its files. Raises NotFound, also for a file of the folder that is not the report's."""
        run = await self.get(run_id)
        if name not in {file.name for file in run.files}:
            known = ", ".join(file.name for file in run.files)
            raise NotFound(f"The report {run_id} has no file {name!r}.", fix=f"It has: {known or 'none'}.")
        return self.folder / run_id / name

    # the process

    async def _attempt(self, run: ReportRun) -> str:
        """Why it failed; empty when it did not."""
        hidden = self._hidden(run)
        try:
            await asyncio.to_thread(self._prepare, hidden, run)
            code = await self._process(run, hidden)
        except TimeoutError:
            return f"It was not done after {self.settings.time_limit_s:g} s and was ended."
        except (EnvironmentProblem, OSError) as error:
            return str(error)
        if code == 0:
            return ""
        said = await asyncio.to_thread(_tail, hidden / LOG_FILE)
        ended = f"It was ended by signal {-code}." if code < 0 else f"It ended with code {code}."
        return (said.replace(self._token, "***") if self._token else said)[-LONGEST_ERROR:] or ended

    async def _process(self, run: ReportRun, hidden: Path) -> int:
        command = [sys.executable, "-m", "workbench", "report", run.report, "--url", self.url, "--out", str(hidden)]
        command += ["--since", repr(run.since), "--until", repr(run.until)]
        env = {**os.environ, "WORKBENCH_TOKEN": self._token}
        process = processes.spawn(command, env=env, log=hidden / LOG_FILE, die_with_parent=True)
        ended = asyncio.Event()
        unwatch = processes.watch_exit(process.pid, ended.set)
        try:
            async with asyncio.timeout(self.settings.time_limit_s):
                await ended.wait()
        finally:
            try:
                if process.poll() is None:
                    await _end(process.pid, ended)
            finally:
                unwatch()
                code = process.wait()  # ended or killed by now: this only collects it
        return code

    # files, in threads

    def _hidden(self, run: ReportRun) -> Path:
        return self.folder / f".{run.id}.{run.fence}"

    def _prepare(self, hidden: Path, run: ReportRun) -> None:
        ensure_folder(self.folder)
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(mode=0o700)
        write_atomic(hidden / RUN_FILE, msgspec.json.encode(run))

    def _publish(self, run: ReportRun) -> ReportRun:
        hidden, shown = self._hidden(run), self.folder / run.id
        ensure_folder(hidden)
        if run.state == "done":
            (hidden / LOG_FILE).unlink(missing_ok=True)
        run = msgspec.structs.replace(run, files=_files(hidden))
        write_atomic(hidden / RUN_FILE, msgspec.json.encode(run), durable=True)
        try:
            # A rename onto a folder that is not empty is refused by the system: of two writers, the first one's stays.
            os.rename(hidden, shown)
        except OSError as error:
            shutil.rmtree(hidden, ignore_errors=True)
            first = _read(shown / RUN_FILE)
            if first is None:
                raise explain(error, shown) from error
            return first
        return run

    def _listed(self) -> list[ReportRun]:
        found = [_read(path / RUN_FILE) for path in _folders(self.folder) if not path.name.startswith(".")]
        return [run for run in found if run is not None]

    def _keep(self) -> None:
        old = sorted(self._listed(), key=lambda run: run.started_at, reverse=True)[self.settings.kept :]
        for run in old:
            shutil.rmtree(self.folder / run.id, ignore_errors=True)
        for hidden in _folders(self.folder):
            left = _read(hidden / RUN_FILE) if hidden.name.startswith(".") else None
            if left is None or left.id in self.running:
                continue
            if self.clock.now() - left.started_at > self.settings.time_limit_s + ABANDONED_S:
                self._recover(hidden, left)

    def _recover(self, hidden: Path, left: ReportRun) -> None:
        """A scheduled report is written again by whoever claims it next; one that a person asked for is shown as failed."""
        if left.fence or left.state != "running":
            shutil.rmtree(hidden, ignore_errors=True)
        else:
            error = "Control ended while it was written."
            self._publish(msgspec.structs.replace(left, state="failed", ended_at=self.clock.now(), error=error))


def run_id(report: str, moment: float, ending: str) -> str:
    """Says what and when in a folder's name.

    >>> run_id("daily", 1_790_000_000.0, "morning")
    'daily-20260921T141320Z-morning'
    """
    return f"{report}-{datetime.fromtimestamp(moment, UTC):%Y%m%dT%H%M%SZ}-{ending}"


def _folders(folder: Path) -> Sequence[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []


def _files(folder: Path) -> list[ReportFile]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RUN_FILE)
    return [ReportFile(name=path.relative_to(folder).as_posix(), bytes=path.stat().st_size) for path in paths]


def _read(path: Path) -> ReportRun | None:
    """None when it is not there (any more) or is no report of ours."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ReportRun)
    except (OSError, msgspec.MsgspecError):
        return None


def _tail(path: Path) -> str:
    """What the command said at its end, without the prefix that names it."""
    try:
        return path.read_text(errors="replace")[-2 * LONGEST_ERROR :].strip().removeprefix("workbench: ")
    except OSError:
        return ""


async def _end(pid: int, ended: asyncio.Event) -> None:
    processes.signal_group(pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(TERMINATE_S):
            await ended.wait()
    except TimeoutError:
        pass  # killed below, with whatever it started
    finally:
        processes.signal_group(pid, signal.SIGKILL)
