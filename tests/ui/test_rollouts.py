"""A change from its plan to its end, in a browser: planned, confirmed by its name, applied, followed, and still there after a reload."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.ui.conftest import LIVE, ControlThread, wait_on

pytestmark = pytest.mark.ui


def test_a_change_is_planned_confirmed_applied_and_followed(open_page: Any, control: ControlThread) -> None:
    page = open_page("rollouts")
    page.locator(".tabulator-row", has_text="default/qwen").first.click()
    page.wait_for_url(re.compile(r"service=default%2Fqwen"))
    page.get_by_label("Image", exact=True).fill("engine:2")
    page.get_by_role("button", name="Plan", exact=True).click()
    page.get_by_text("▼ fewer than now").wait_for()
    apply = page.get_by_role("button", name="Apply", exact=True)
    assert apply.is_disabled()
    page.wait_for_url(re.compile(r"plan=plan-1"))
    page.reload()
    page.wait_for_selector(LIVE)
    page.get_by_label("Type qwen to confirm").press_sequentially("qwen")
    page.locator("button:not([disabled])", has_text="Apply").wait_for()
    apply.click()
    page.get_by_role("button", name="Abort", exact=True).wait_for()
    wait_on(page, lambda: len(control.fake.actions.applied) == 1, what="the plan to be applied")
    assert (control.fake.actions.applied[0].confirm, control.fake.actions.applied[0].by.user) == ("qwen", "operator")
    control.call(control.fake.advance())
    page.get_by_text("1/3").first.wait_for()
    page.reload()
    page.wait_for_selector(LIVE)
    page.get_by_role("button", name="Pause", exact=True).click()
    page.get_by_role("button", name="Resume", exact=True).click()
    wait_on(page, lambda: [verb for verb, _ in control.fake.actions.told] == ["pause", "resume"], what="both verbs to be told")
    for _ in range(2):
        control.call(control.fake.advance())
    page.get_by_text("3/3").first.wait_for()
    page.get_by_role("button", name="Undo", exact=True).click()
    page.get_by_text("undo of default/qwen").wait_for()
