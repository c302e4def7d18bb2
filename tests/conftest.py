"""What every test shares: kernels compiled once, and the rule that continuous integration accepts no skip but real engines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis  # noqa: F401  loaded early: its plugin would do so at the end, where CPython 3.11.7's parser stumbles over the stack
import pytest

ROOT = Path(__file__).resolve().parent.parent
ACCEPTED_SKIPS = ("real engine", "real API server")

os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".venv" / "numba-cache"))


@pytest.hookimpl(hookwrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """In continuous integration a skipped test is a failed run, except where a machine cannot have what it needs."""
    if os.environ.get("CI") == "true":
        refused = [
            report
            for report in terminalreporter.stats.get("skipped", [])
            if not any(word in str(report.longrepr) for word in ACCEPTED_SKIPS)
        ]
        if refused:
            terminalreporter.section("skips that continuous integration does not accept")
            for report in refused:
                terminalreporter.line(f"{report.nodeid}: {report.longrepr}")
            session = terminalreporter._session
            if session is not None:
                session.exitstatus = 1
    yield
