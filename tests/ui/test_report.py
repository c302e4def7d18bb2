"""A report's page in a real browser without a network: it shows everything, asks nobody, and reads well in light and in dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import workbench
from tests.fakes.control_api import NOW, control, decision
from tests.ui.conftest import Guard

pytestmark = pytest.mark.ui


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with control() as fake:
        fake.decisions = [decision(at, at=NOW - 600 * at, ttft_ms=20.0 + at) for at in range(1, 100)]
        with workbench.connect(fake.url, token=fake.token) as wb:
            made = wb.reports.make("daily", since=NOW - 86_400, until=NOW)
    return made.save(tmp_path_factory.mktemp("report"))[0]


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    context = browser.new_context(offline=True, color_scheme=request.param, viewport={"width": 1280, "height": 900})
    guard = Guard(report.as_uri())
    made = guard.watch(context.new_page())
    made.goto(report.as_uri())
    yield made
    context.close()
    assert guard.complaints == []


LUMINANCE = """selector => {
    const channel = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number).map(value => value / 255)
        .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const light = text => { const [r, g, b] = channel(text); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const found = document.querySelector(selector);
    const style = getComputedStyle(found);
    const back = getComputedStyle(document.querySelector('section')).backgroundColor;
    const ink = found instanceof SVGElement ? style.fill : style.color;
    const [low, high] = [light(ink), light(back)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
}"""


def test_every_section_and_drawing_is_there(page: Any) -> None:
    assert page.locator("h1").inner_text() == "Daily report"
    assert page.locator("section").count() == 10
    assert page.get_by_role("img").count() == 3
    assert page.locator("rect.s0").count() > 20
    box = page.get_by_role("img").first.bounding_box()
    assert box["width"] > 600
    assert box["height"] > 100
    assert "qwen3-8b" in page.locator("#s1").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


@pytest.mark.parametrize("selector", ["h2", "td", "th", ".dim", "svg text", "nav a"], ids=lambda selector: selector)
def test_text_has_enough_contrast(page: Any, selector: str) -> None:
    assert page.evaluate(LUMINANCE, selector) >= 4.5


@pytest.mark.parametrize("selector", ["rect.s0", ".l1"], ids=lambda selector: selector)
def test_drawings_stand_out(page: Any, selector: str) -> None:
    if selector == ".l1":
        page.eval_on_selector(selector, "line => line.style.fill = getComputedStyle(line).stroke")
    assert page.evaluate(LUMINANCE, selector) >= 3.0
