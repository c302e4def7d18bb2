"""Cost of the dashboard: seconds to first paint and to live data, bytes per second of every page, CPU and memory of the server.

`python -m tests.bench.ui [--pods 4 256] [--seconds 10] [--url URL --token-file FILE]`: against a fake control that steps every two
seconds as the real one does, or against the dashboard of a running stack. Prints a table, writes `bench-results/ui.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.ui.conftest import ARGUMENTS, CHROMIUM, ControlThread, Dashboard

PAGES = ("fleet", "cache", "router", "rollouts")
LOADS = 5
"""Loads of a page whose median counts: the first one compiles nothing but fills the browser's cache."""


@dataclass
class Row:
    page: str
    pods: int
    first_paint_s: float
    """Navigation to the first pixels of the frame (paint timing of the browser)."""
    live_s: float
    """Navigation to live figures on the page."""
    first_load_s: float
    """The same with an empty browser cache."""
    bytes_per_s: float
    cpu_percent: float
    rss_mb: float
    """Of the server while this page is open."""


@contextmanager
def ours(pods: int) -> Iterator[tuple[str, str, psutil.Process]]:
    control = ControlThread(period_s=2.0, pods=pods)
    with tempfile.TemporaryDirectory() as folder:
        dashboard = Dashboard(control.url, Path(folder)).start()
        assert dashboard.process is not None
        try:
            yield dashboard.url, "", psutil.Process(dashboard.process.pid)
        finally:
            dashboard.kill()
            control.close()


@contextmanager
def running(url: str) -> Iterator[tuple[str, str, psutil.Process]]:
    port = int(url.rsplit(":", 1)[1])
    listening = (found for found in psutil.net_connections("tcp") if found.status == "LISTEN" and found.laddr.port == port and found.pid)
    yield url, "", psutil.Process(next(listening).pid)


def measure(browser: Any, target: tuple[str, str, psutil.Process], name: str, pods: int, seconds: float) -> Row:
    url, link, process = target
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    received: list[int] = []

    def count(frame: Any) -> None:
        received.append(len(frame))

    page.on("websocket", lambda socket: socket.on("framereceived", count))
    page.goto(link)
    page.wait_for_url("**/fleet")
    page.goto("about:blank")
    loads = [load(page, f"{url}/{name}") for _ in range(LOADS + 1)]
    page.wait_for_timeout(3000)
    received.clear()
    process.cpu_percent()
    started = time.monotonic()
    page.wait_for_timeout(seconds * 1000)
    took = time.monotonic() - started
    row = Row(
        page=name,
        pods=pods,
        first_paint_s=round(statistics.median(paint for paint, _ in loads[1:]), 2),
        live_s=round(statistics.median(live for _, live in loads[1:]), 2),
        first_load_s=round(loads[0][1], 2),
        bytes_per_s=round(sum(received) / took),
        cpu_percent=round(process.cpu_percent(), 1),
        rss_mb=round(process.memory_info().rss / 2**20),
    )
    context.close()
    return row


def load(page: Any, url: str) -> tuple[float, float]:
    """First contentful paint and live data, both in seconds after the navigation began."""
    started = time.monotonic()
    page.goto(url, wait_until="commit")
    page.wait_for_selector(":root[data-ready][data-live='live']", timeout=60_000)
    page.locator(".tabulator-row").first.wait_for(timeout=60_000)
    live = time.monotonic() - started
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0") / 1000
    return float(paint), live


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pods", type=int, nargs="+", default=[4, 256])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--url", default="", help="dashboard of a running stack")
    parser.add_argument("--token-file", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench-results/ui.json"))
    chosen = parser.parse_args()
    from playwright.sync_api import sync_playwright

    rows: list[Row] = []
    idle: dict[int, float] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for pods in [0] if chosen.url else chosen.pods:
            with running(chosen.url) if chosen.url else ours(pods) as target:
                time.sleep(3)
                idle[pods] = round(target[2].memory_info().rss / 2**20)
                for name in PAGES:
                    # A link works once, so each page gets a session of its own from a fresh one.
                    with_link = (target[0], fresh_link(chosen, target), target[2])
                    rows.append(measure(browser, with_link, name, pods, chosen.seconds))
        browser.close()
    report(rows, idle, chosen.out)


def fresh_link(chosen: argparse.Namespace, target: tuple[str, str, psutil.Process]) -> str:
    from tests.fakes.control_stream import TOKEN

    token = chosen.token_file.read_text().strip() if chosen.url else TOKEN
    request = urllib.request.Request(f"{target[0]}/login/code", method="POST", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return target[0] + str(json.load(answer)["path"])


def report(rows: list[Row], idle: dict[int, float], out: Path) -> None:
    print(f"{'page':8}{'pods':>6}{'paint s':>9}{'live s':>8}{'cold s':>8}{'KB/s':>8}{'CPU %':>7}{'RSS MB':>8}")
    for row in rows:
        seconds = f"{row.first_paint_s:9.2f}{row.live_s:8.2f}{row.first_load_s:8.2f}"
        figures = f"{seconds}{row.bytes_per_s / 1000:8.1f}{row.cpu_percent:7.1f}{row.rss_mb:8.0f}"
        print(f"{row.page:8}{row.pods:6d}{figures}")
    print("idle server, RSS MB: " + ", ".join(f"{pods} pods {size:.0f}" for pods, size in idle.items()))
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"rows": [asdict(row) for row in rows], "idle_rss_mb": idle}, indent=1))


if __name__ == "__main__":
    main()
