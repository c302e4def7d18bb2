"""The login in a browser: the printed link works once, the form takes the token, `panel serve` works too."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.control_stream import TOKEN
from tests.ui.conftest import LIVE, LIVE_MS, ROOT, ControlThread, Dashboard, Guard, free_port, get, wait_until

pytestmark = pytest.mark.ui


def test_the_printed_link_lets_in_once(browser: Any, dashboard: Dashboard) -> None:
    link = dashboard.link()
    first = browser.new_context().new_page()
    first.goto(link)
    first.wait_for_url("**/fleet")
    second = browser.new_context().new_page()
    second.goto(link)
    assert "used before" in second.get_by_role("alert").inner_text()
    first.context.close()
    second.context.close()


def test_the_form_takes_the_token_and_leads_to_the_page_that_was_asked_for(browser: Any, dashboard: Dashboard) -> None:
    page = browser.new_context().new_page()
    page.goto(f"{dashboard.url}/router?pod=vllm-1")
    page.wait_for_url(re.compile(r"/login\?next="))
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    assert page.get_by_role("alert").inner_text() == "That is not right."
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(re.compile(r"/router\?pod=vllm-1"))
    page.get_by_text("operator", exact=True).wait_for()
    page.get_by_role("link", name="Log out").click()
    page.wait_for_url("**/login")
    page.goto(f"{dashboard.url}/fleet")
    page.wait_for_url(re.compile(r"/login\?next="))
    page.context.close()


def test_it_ends_within_two_seconds_on_sigterm_with_a_page_open(browser: Any, control: ControlThread, tmp_path: Path) -> None:
    dashboard = Dashboard(control.url, tmp_path).start()
    page = browser.new_context().new_page()
    page.goto(dashboard.link())
    page.wait_for_selector(LIVE, timeout=LIVE_MS)
    started = time.monotonic()
    assert dashboard.stop() == 0
    assert time.monotonic() - started < 2.0
    page.context.close()
    assert "Traceback" not in dashboard.log()


def test_panel_serve_works_on_the_entry_scripts(browser: Any, control: ControlThread, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "token").write_text(TOKEN)
    env = {
        **os.environ,
        "WORKBENCH__DASHBOARD__CONTROL_URL": control.url,
        "WORKBENCH__DASHBOARD__TOKEN_FILE": str(tmp_path / "token"),
    }
    scripts = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "apps").glob("*.py"))
    command = [sys.executable, "-m", "panel", "serve", *scripts, "--port", str(port), "--address", "127.0.0.1"]
    command += ["--allow-websocket-origin", f"127.0.0.1:{port}"]
    with (tmp_path / "panel.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: get(f"{url}/fleet") == 200, what="panel serve", timeout_s=60)
        guard = Guard(url, url.replace("http", "ws", 1))
        page = guard.watch(browser.new_context().new_page())
        for name in ("fleet", "cache", "router", "rollouts"):
            page.goto(f"{url}/{name}")
            page.wait_for_selector(LIVE, timeout=LIVE_MS)
            page.locator(".tabulator-row").first.wait_for()
        page.context.close()
        assert guard.complaints == []
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
    log = (tmp_path / "panel.log").read_text()
    assert not re.search(r'File ".*apps/\w+/\w+\.py"', log), log
