"""A dashboard as a process before a fake control, and a Chromium that may talk to nobody else.

Every test that uses `page` fails on a request to anywhere but the dashboard, an uncaught error or an error in the console.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.control_stream import TOKEN, FakeControl

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
ROOT = Path(__file__).resolve().parents[2]


class ControlThread:
    """A fake control in a loop of its own, steered from tests without a loop; steps by itself every `period_s`."""

    def __init__(self, period_s: float = 1.0, **options: Any) -> None:
        self.fake = FakeControl(**options)
        self.period_s = period_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake control", daemon=True)
        self._thread.start()
        self.call(self.fake.start())
        self._ticking = asyncio.run_coroutine_threadsafe(self._tick(), self._loop)

    @property
    def url(self) -> str:
        return self.fake.url

    def call(self, coroutine: Any, *, timeout_s: float = 20.0) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def kill(self) -> None:
        self.call(self.fake.stop())

    def revive(self) -> None:
        self.call(self.fake.start())

    def close(self) -> None:
        self._ticking.cancel()
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self.period_s)
            self.fake.step()


@dataclass
class Dashboard:
    """`python -m apps` on a free port."""

    control_url: str
    folder: Path
    arguments: tuple[str, ...] = ()
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Dashboard:
        self.port = self.port or free_port()
        (self.folder / "token").write_text(TOKEN)
        words = ["--port", str(self.port), "--control-url", self.control_url, "--token-file", str(self.folder / "token")]
        log = (self.folder / "dashboard.log").open("ab")
        self.process = subprocess.Popen([sys.executable, "-m", "apps", *words, *self.arguments], cwd=ROOT, stdout=log, stderr=log)
        log.close()
        wait_until(lambda: get(f"{self.url}/healthz") == 200, what="the dashboard's /healthz", timeout_s=60)
        return self

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(10)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def link(self) -> str:
        """A one-time link, as `workbench up` prints it."""
        request = urllib.request.Request(f"{self.url}/login/code", method="POST", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return self.url + str(json.load(answer)["path"])

    def log(self) -> str:
        return (self.folder / "dashboard.log").read_text()


def get(url: str) -> int:
    """Status of a GET that follows nothing; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return int(answer.status)
    except OSError:
        return 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], *, what: str, timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"waited {timeout_s} s in vain for {what}")
        time.sleep(0.05)


@pytest.fixture(scope="module")
def control() -> Iterator[ControlThread]:
    made = ControlThread()
    yield made
    made.close()


@pytest.fixture(scope="module")
def dashboard(control: ControlThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    made = Dashboard(control.url, tmp_path_factory.mktemp("dashboard")).start()
    yield made
    made.kill()


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """One for all tests here, and gone after them: Playwright keeps an event loop running in which no other test could start its own."""
    if not CHROMIUM:
        pytest.skip("no Chromium here; install the package `chromium`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield made
        made.close()


class Guard:
    """Notes what a page must never do."""

    def __init__(self, *allowed: str) -> None:
        self.allowed = allowed
        self.complaints: list[str] = []
        self.expected_away = False
        """Set while a test has taken the server away: refused connections are then no fault of the page."""

    def watch(self, page: Any) -> Any:
        page.on("request", self._request)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("console", self._console)
        return page

    def _request(self, request: Any) -> None:
        if not request.url.startswith((*self.allowed, "data:", "blob:")):
            self.complaints.append(f"external request: {request.url}")

    def _console(self, message: Any) -> None:
        if message.type == "error" and not self.expected_away:
            self.complaints.append(f"console: {message.text}")


@pytest.fixture
def guard(dashboard: Dashboard) -> Guard:
    return Guard(dashboard.url, dashboard.url.replace("http", "ws", 1))


LIVE = ":root[data-ready][data-live='live']"
LIVE_MS = 40_000
"""A machine with two busy cores; a quiet one takes about 2 s."""


def wait_on(page: Any, condition: Callable[[], bool], *, what: str, timeout_s: float = 20.0) -> None:
    """Wait for something that is not in the page itself, while its events keep coming in."""
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"waited {timeout_s} s in vain for {what}")
        page.wait_for_timeout(50)


def log_in(context: Any, dashboard: Dashboard, theme: str = "light") -> None:
    """The cookies that the printed link brings, without the page that it leads to; `test_login.py` goes the whole way."""
    assert context.request.get(dashboard.link()).ok
    context.add_cookies([{"name": "workbench_theme", "value": theme, "url": dashboard.url}])


OPENS = {"fleet": "a[href^='router?pod=']", "router": "tr.chosen"}
"""What a click on a row opens, by page; sources of the cache page open nothing."""


def click_a_row(page: Any, name: str) -> None:
    """Click the second row and wait for what that opens."""
    page.locator(".tabulator-row").nth(1).click()
    if name in OPENS:
        page.locator(OPENS[name]).wait_for()


@pytest.fixture(scope="module")
def visitor(browser: Any, dashboard: Dashboard) -> Iterator[Any]:
    """A logged-in visitor of this module's dashboard, whose browser keeps what it has already loaded."""
    context = browser.new_context()
    context.set_default_timeout(LIVE_MS)
    log_in(context, dashboard)
    yield context
    context.close()


@pytest.fixture
def open_page(visitor: Any, dashboard: Dashboard, guard: Guard) -> Iterator[Callable[..., Any]]:
    """`open_page("fleet", theme="dark", width=1920)`: a logged-in, guarded page that shows live data."""
    pages: list[Any] = []

    def open_one(name: str = "fleet", *, theme: str = "light", width: int = 1280) -> Any:
        visitor.add_cookies([{"name": "workbench_theme", "value": theme, "url": dashboard.url}])
        page = guard.watch(visitor.new_page())
        pages.append(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(f"{dashboard.url}/{name}")
        page.wait_for_selector(LIVE)
        return page

    yield open_one
    for page in pages:
        page.close()
    assert guard.complaints == []
