"""Every "Copy as Python" of the dashboard, run as it is copied, against a real stack with its gentle traffic."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from apps.components import snippets
from backend.api import routes
from tests.fakes.stack import running_stack

pytestmark = pytest.mark.e2e

MAY_BE_EMPTY = {"findings", "probe", "services", "operations", "audit"}
"""A healthy stack has nothing to report, no pod holds a prompt that nobody has sent, and the sample fleet has no StormService."""
OF_A_SERVICE = {"plan-image", "plan-scale", "plan-pause", "plan-resume", "plan", "operation"}
"""These need a StormService; `tests/unit/apps` runs them."""


@pytest.fixture(scope="module")
def request_id() -> str:
    """A decision that the stack has made; its demo traffic makes one within seconds."""
    stack = running_stack()
    token = Path(stack.token_file).read_text().strip()
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = httpx.get(stack.control + routes.DECISIONS, params={"limit": 1}, headers={"Authorization": f"Bearer {token}"}).json()
        if found["items"]:
            return str(found["items"][0]["id"])
        time.sleep(0.1)
    raise AssertionError("no decision within 60 s")


@pytest.mark.parametrize("key", sorted(set(snippets.SNIPPETS) - OF_A_SERVICE))
def test_a_snippet_answers_on_a_real_stack(monkeypatch: pytest.MonkeyPatch, request_id: str, key: str) -> None:
    monkeypatch.setenv("WORKBENCH_STATE", str(Path(running_stack().token_file).parent))
    *before, last = snippets.code(key, request=request_id).splitlines()
    names: dict[str, object] = {}
    exec("\n".join(before), names)
    try:
        answer = eval(last, names)
        assert answer is not None
        assert len(repr(answer)) > 0
        if hasattr(answer, "height") and key not in MAY_BE_EMPTY:
            assert answer.height > 0, "the table is empty"
    finally:
        names["wb"].close()  # type: ignore[attr-defined]
