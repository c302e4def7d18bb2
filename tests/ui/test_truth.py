"""A page never passes off old numbers as live: control goes and comes back, the dashboard itself goes and comes back, nothing is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ui.conftest import LIVE_MS, ControlThread, Dashboard, Guard, log_in, wait_on

pytestmark = pytest.mark.ui


def test_new_decisions_arrive_at_the_top(open_page: Any, control: ControlThread) -> None:
    page = open_page("router")
    known = {record.id for record in control.fake.decisions}

    def is_new() -> bool:
        first = page.locator(".tabulator-row").first.inner_text()
        return any(record.id in first for record in control.fake.decisions if record.id not in known)

    wait_on(page, is_new, what="a new decision at the top")


def test_when_control_goes_the_page_says_so_and_greys_and_when_it_is_back_it_lives(open_page: Any, control: ControlThread) -> None:
    page = open_page("fleet")
    control.kill()
    page.wait_for_selector(":root[data-live='lost']", timeout=LIVE_MS)
    assert "No data since" in page.locator("#wb-notice").inner_text()
    assert "Trying again" in page.locator("#wb-notice").inner_text()
    assert "grayscale(1)" in page.evaluate("getComputedStyle(document.querySelector('.wb-main')).filter")
    control.revive()
    page.wait_for_selector(":root[data-live='live']", timeout=LIVE_MS)
    assert page.evaluate("getComputedStyle(document.querySelector('.wb-main')).filter") == "none"


def test_when_the_dashboard_is_killed_its_page_says_so_and_comes_back_with_it(open_page: Any, dashboard: Dashboard, guard: Guard) -> None:
    page = open_page("fleet")
    guard.expected_away = True
    dashboard.kill()
    page.wait_for_selector(":root[data-live='cut']", timeout=LIVE_MS)
    assert "lost its server" in page.locator("#wb-notice").inner_text()
    dashboard.start()
    page.wait_for_selector(":root[data-live='live']", timeout=LIVE_MS)
    assert page.url.endswith("/fleet"), "the cookie outlived the process, so nobody has to log in again"


def test_when_only_the_index_is_away_the_map_alone_is_stale(open_page: Any, control: ControlThread) -> None:
    page = open_page("cache")
    page.get_by_text("on average a block is held").wait_for()
    control.fake.index_away = True
    try:
        page.get_by_text("this is its last state").wait_for(timeout=LIVE_MS)
        assert page.evaluate("document.documentElement.dataset.live") == "live"
    finally:
        control.fake.index_away = False
    page.get_by_text("this is its last state").wait_for(state="detached", timeout=LIVE_MS)


def test_the_first_map_appears_on_a_page_that_waited_for_it_and_moves(browser: Any, tmp_path: Path) -> None:
    control = ControlThread()
    control.fake.index_away = True
    dashboard = Dashboard(control.url, tmp_path).start()
    try:
        guard = Guard(dashboard.url, dashboard.url.replace("http", "ws", 1))
        page = guard.watch(browser.new_context().new_page())
        page.set_default_timeout(LIVE_MS)
        log_in(page.context, dashboard)
        page.goto(f"{dashboard.url}/cache")
        page.get_by_text("The index does not answer").first.wait_for()
        control.fake.index_away = False
        plot = page.locator(".bk-Figure")
        plot.wait_for()
        first = plot.screenshot()
        wait_on(page, lambda: plot.screenshot() != first, what="other colours")
        page.context.close()
        assert guard.complaints == []
    finally:
        dashboard.kill()
        control.close()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Dashboard]:
    control = ControlThread(empty=True)
    made = Dashboard(control.url, tmp_path).start()
    yield made
    made.kill()
    control.close()


EMPTY = {
    "fleet": ["No pods", "Nothing to report"],
    "cache": ["No KV events yet", "No event sources"],
    "rollouts": ["There are no services to show", "This control follows no cluster.", "No plan yet"],
    "router": ["No requests yet", "Choose a decision above"],
}


def test_an_empty_fleet_is_explained_on_every_page(browser: Any, empty: Dashboard) -> None:
    guard = Guard(empty.url, empty.url.replace("http", "ws", 1))
    page = guard.watch(browser.new_context().new_page())
    page.goto(empty.link())
    for name, texts in EMPTY.items():
        page.goto(f"{empty.url}/{name}")
        for text in texts:
            page.get_by_text(text, exact=True).wait_for()
    page.context.close()
    assert guard.complaints == []


def test_without_control_a_page_opens_and_says_what_it_waits_for(browser: Any, tmp_path: Path) -> None:
    dashboard = Dashboard("http://127.0.0.1:9", tmp_path).start()
    try:
        page = browser.new_context().new_page()
        page.goto(dashboard.link())
        page.wait_for_selector(":root[data-live='lost']", timeout=LIVE_MS)
        notice = page.locator("#wb-notice").inner_text()
        assert "No data yet" in notice
        assert "127.0.0.1:9" in notice
        page.context.close()
    finally:
        dashboard.kill()
