"""Every page in both themes and two widths: it shows what it should, asks nobody else, and leaves a screenshot to look at."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.ui.conftest import LIVE_MS, ControlThread, Dashboard, Guard, click_a_row, log_in

pytestmark = pytest.mark.ui

CARDS = {
    "fleet": ["At a glance", "Pods", "Findings"],
    "cache": ["Blocks held, by pod and prefix", "Most shared prefixes", "Probe a prompt", "KV event sources"],
    "rollouts": ["Services", "Plan a change", "Operation", "Operations", "Audit"],
    "router": ["Decisions", "Why this pod"],
}


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("screenshots")


@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", list(CARDS))
def test_a_page_shows_all_its_cards(open_page: Any, shots: Path, name: str, theme: str, width: int) -> None:
    page = open_page(name, theme=theme, width=width)
    for title in CARDS[name]:
        page.get_by_role("heading", name=title, exact=True).wait_for()
    page.locator(".tabulator-row").first.wait_for()
    if name == "cache":
        page.locator(".bk-Figure").wait_for()
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0, "the page scrolls sideways"
    page.screenshot(path=shots / f"{name}-{theme}-{width}.png", full_page=True)


@pytest.mark.parametrize(("name", "cards"), [(name, len(cards)) for name, cards in CARDS.items()], ids=list(CARDS))
def test_every_card_has_a_snippet(open_page: Any, name: str, cards: int) -> None:
    assert open_page(name).get_by_role("button", name=re.compile("^Copy as Python")).count() == cards


def test_a_snippet_is_shown_and_copied(open_page: Any) -> None:
    page = open_page("fleet")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy as Python: Pods").click()
    page.get_by_text("Copied", exact=True).wait_for()
    wanted = "import workbench\n\nwb = workbench.connect()\nwb.fleet.df()"
    assert page.evaluate("navigator.clipboard.readText()") == wanted
    assert page.locator("pre[data-snippet]:visible").inner_text() == wanted


def test_the_root_leads_to_the_fleet(open_page: Any, dashboard: Any) -> None:
    page = open_page("router")
    page.goto(f"{dashboard.url}/")
    page.wait_for_url("**/fleet")


def test_pages_are_links_that_the_keyboard_reaches(open_page: Any) -> None:
    page = open_page("fleet")
    page.get_by_role("navigation").get_by_role("link", name="Router").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/router")


def test_a_first_visit_takes_the_theme_of_the_machine(browser: Any, dashboard: Dashboard) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(dashboard.link())
    page.wait_for_selector(":root[data-theme='dark'][data-ready]", timeout=LIVE_MS)
    context.close()


def test_the_theme_toggles_and_stays(open_page: Any) -> None:
    page = open_page("cache", theme="light")
    page.get_by_role("button", name="Toggle theme").click()
    page.wait_for_selector(":root[data-theme='dark'][data-ready]")
    page.reload()
    page.wait_for_selector(":root[data-theme='dark'][data-ready]")


def test_filters_stand_in_the_address_and_come_back_from_it(open_page: Any, dashboard: Any) -> None:
    page = open_page("fleet")
    page.get_by_placeholder("Search pods, press Enter").fill("vllm-2")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/fleet\?.*q=vllm-2"))
    page.get_by_text("1 of 4 pods").wait_for()
    page.goto(f"{dashboard.url}/fleet?state=backoff")
    page.get_by_text("1 of 4 pods").wait_for()
    assert page.locator(".tabulator-row").count() == 1
    assert "vllm-3" in page.locator(".tabulator-row").inner_text()


def test_a_row_of_the_fleet_opens_its_details(open_page: Any) -> None:
    page = open_page("fleet")
    page.locator(".tabulator-row", has_text="vllm-1").click()
    page.get_by_text("127.88.0.2:8000").wait_for()
    assert "wb.fleet.pod('vllm-1')" in page.get_by_role("button", name="Copy as Python: Pod", exact=True).get_attribute("data-copy")
    page.get_by_role("link", name="Decisions that chose this pod").click()
    page.wait_for_url(re.compile(r"/router\?pod=vllm-1"))
    page.get_by_role("heading", name="Decisions").wait_for()


def test_a_decision_says_why_it_chose_its_pod(open_page: Any, control: ControlThread) -> None:
    page = open_page("router")
    row = page.locator(".tabulator-row").nth(2)
    row.wait_for()
    row.click()
    page.get_by_text("Paused").wait_for()
    page.get_by_role("columnheader", name="matched tokens").wait_for()
    chosen = page.locator("tr.chosen td").first.inner_text()
    assert chosen.startswith("✓ vllm-")
    page.locator(".bk-Figure, .bk-events, canvas").first.wait_for()
    code = page.get_by_role("button", name="Copy as Python: Why this pod").get_attribute("data-copy")
    assert any(f"wb.router.explain('{record.id}')" in code for record in control.fake.decisions)


def test_a_prompt_is_probed(open_page: Any) -> None:
    page = open_page("cache")
    page.get_by_placeholder("Paste a prompt").fill("one two three four")
    page.get_by_role("button", name="Probe", exact=True).click()
    page.get_by_text("8 tokens for qwen3-8b.").wait_for()
    page.get_by_role("cell", name="100 %").wait_for()


def test_the_map_has_a_table_beside_it(open_page: Any) -> None:
    page = open_page("cache")
    page.get_by_text("on average a block is held").wait_for()
    page.get_by_role("button", name="Table", exact=True).click()
    page.get_by_role("columnheader", name="Buckets in use").wait_for()


def test_names_with_markup_are_shown_not_run(browser: Any, tmp_path: Path) -> None:
    hostile = ControlThread(names="<img src=x onerror=alert({})>")
    dashboard = Dashboard(hostile.url, tmp_path).start()
    try:
        guard = Guard(dashboard.url, dashboard.url.replace("http", "ws", 1))
        page = guard.watch(browser.new_context().new_page())
        page.on("dialog", lambda dialog: guard.complaints.append("a name was run as script") or dialog.dismiss())
        page.set_default_timeout(LIVE_MS)
        log_in(page.context, dashboard)
        for name in CARDS:
            page.goto(f"{dashboard.url}/{name}")
            page.locator(".tabulator-row", has_text="<img src=x").first.wait_for()
            click_a_row(page, name)
        page.locator("tr.chosen", has_text="<img src=x").wait_for()
        assert guard.complaints == []
        page.context.close()
    finally:
        dashboard.kill()
        hostile.close()
