"""What a page costs: bytes on the wire while it is open, and nothing once it is closed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.ui.conftest import ControlThread, Dashboard, wait_until

pytestmark = pytest.mark.ui

BYTES_PER_SECOND = {"fleet": 20_000, "cache": 250_000, "router": 60_000}
SESSIONS = 30


@pytest.mark.parametrize("name", list(BYTES_PER_SECOND))
def test_a_page_keeps_to_its_bytes(open_page: Any, dashboard: Dashboard, name: str) -> None:
    page = open_page("fleet")
    received: list[int] = []

    def count(frame: Any) -> None:
        received.append(len(frame) if isinstance(frame, bytes) else len(frame.encode()))

    page.on("websocket", lambda socket: socket.on("framereceived", count))
    page.goto(f"{dashboard.url}/{name}")
    page.wait_for_selector(":root[data-ready][data-live='live']")
    page.wait_for_timeout(2500)
    received.clear()
    page.wait_for_timeout(6000)
    assert sum(received) > 0, "the page gets no updates at all"
    assert sum(received) / 6.0 <= BYTES_PER_SECOND[name]


@pytest.mark.timeout(400)
def test_thirty_sessions_leave_nothing_behind(browser: Any, tmp_path: Path) -> None:
    """Opens and closes every page in turn, uses it a little, and counts what is still alive."""
    control = ControlThread()
    dashboard = Dashboard(control.url, tmp_path, arguments=("--unused-session-ms", "500")).start()
    try:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.goto(dashboard.link())
        page.wait_for_selector(":root[data-live='live']")
        page.close()
        for at in range(SESSIONS):
            name = ("fleet", "cache", "router")[at % 3]
            page = context.new_page()
            page.goto(f"{dashboard.url}/{name}")
            page.wait_for_selector(":root[data-ready][data-live='live']", timeout=20_000)
            page.locator(".tabulator-row").nth(1).click()
            page.wait_for_timeout(300)
            page.close()

        def left() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(context.request.get(f"{dashboard.url}/debug/views").text())
            return found

        try:
            wait_until(lambda: not left()["views"] and not left()["templates"], what="all views to be collected", timeout_s=20)
        except AssertionError:
            raise AssertionError(f"still alive after {SESSIONS} closed sessions: {left()}") from None
        context.close()
    finally:
        dashboard.kill()
        control.close()
    # Bokeh itself logs an AssertionError now and then when a websocket closes twice; what counts is our own code.
    assert not re.search(r'File ".*apps/\w+/\w+\.py"', dashboard.log()), dashboard.log()
