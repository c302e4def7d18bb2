"""What a page costs: bytes on the wire while it is open, and nothing once it is closed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from bokeh.protocol import Protocol

from tests.ui.conftest import LIVE, LIVE_MS, ControlThread, Dashboard, click_a_row, log_in, wait_on, wait_until

pytestmark = pytest.mark.ui

BYTES_PER_SECOND = {"fleet": 20_000, "cache": 250_000, "router": 60_000, "rollouts": 20_000}
STEPS = 5
"""Steps of control, one a second, over which a page's bytes are counted."""
IN_BROWSER = 6
SESSIONS = 30


@pytest.mark.parametrize("name", list(BYTES_PER_SECOND))
def test_a_page_keeps_to_its_bytes(open_page: Any, dashboard: Dashboard, control: ControlThread, name: str) -> None:
    page = open_page("fleet")
    received: list[int] = []

    def count(frame: Any) -> None:
        received.append(len(frame) if isinstance(frame, bytes) else len(frame.encode()))

    page.on("websocket", lambda socket: socket.on("framereceived", count))
    page.goto(f"{dashboard.url}/{name}")
    page.wait_for_selector(LIVE)
    page.locator(".tabulator-row").first.wait_for()
    loaded = control.fake.version
    wait_on(page, lambda: control.fake.version >= loaded + 2, what="what belongs to the load itself")
    received.clear()
    wait_on(page, lambda: control.fake.version >= loaded + 2 + STEPS, what="steps of control")
    assert sum(received) > 0, "the page gets no updates at all"
    assert sum(received) / STEPS / control.period_s <= BYTES_PER_SECOND[name]


async def open_without_a_browser(session: aiohttp.ClientSession, url: str) -> None:
    """Load a page, take over its document by its websocket and leave: all that the server sees of a visit, at a tenth of the work."""
    async with session.get(url) as answer:
        token = re.search(r'"token":"([^"]+)"', await answer.text())
    assert token, f"{url} has no session"
    address = url.replace("http", "ws", 1) + "/ws"
    async with session.ws_connect(address, protocols=("bokeh", token[1]), origin=url.rsplit("/", 1)[0]) as socket:
        assert "ACK" in await socket.receive_str(timeout=20)
        asked = Protocol().create("PULL-DOC-REQ")
        for part in (asked.header_json, asked.metadata_json, asked.content_json):
            await socket.send_str(part)
        while "PULL-DOC-REPLY" not in str((await socket.receive(timeout=20)).data):
            assert not socket.closed


async def visit(dashboard: Dashboard, cookies: str, names: list[str]) -> None:
    async with aiohttp.ClientSession(headers={"Cookie": cookies}, cookie_jar=aiohttp.DummyCookieJar()) as session:
        for name in names:
            await open_without_a_browser(session, f"{dashboard.url}/{name}")


@pytest.mark.timeout(240)
def test_thirty_sessions_leave_nothing_behind(browser: Any, tmp_path: Path) -> None:
    """Opens and closes every page in turn, in a browser that uses it a little and without one, and counts what is still alive."""
    control = ControlThread()
    dashboard = Dashboard(control.url, tmp_path, arguments=("--unused-session-ms", "500")).start()
    try:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        log_in(context, dashboard)
        names = [("fleet", "cache", "router", "rollouts")[at % 4] for at in range(SESSIONS)]
        for name in names[:IN_BROWSER]:
            page = context.new_page()
            page.goto(f"{dashboard.url}/{name}")
            page.set_default_timeout(LIVE_MS)
            page.wait_for_selector(LIVE)
            click_a_row(page, name)
            page.close()
        cookies = "; ".join(f"{cookie['name']}={cookie['value']}" for cookie in context.cookies())
        control.call(visit(dashboard, cookies, names[IN_BROWSER:]), timeout_s=120)

        def left() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(context.request.get(f"{dashboard.url}/debug/views").text())
            return found

        try:
            wait_until(lambda: not left()["views"] and not left()["templates"], what="all views to be collected", timeout_s=30)
        except AssertionError:
            raise AssertionError(f"still alive after {SESSIONS} closed sessions: {left()}") from None
        context.close()
    finally:
        dashboard.kill()
        control.close()
    # Bokeh itself logs an AssertionError now and then when a websocket closes twice; what counts is our own code.
    assert not re.search(r'File ".*apps/\w+/\w+\.py"', dashboard.log()), dashboard.log()
