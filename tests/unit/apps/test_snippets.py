"""Every "Copy as Python" of the dashboard, run as it is copied, only with the address of a fake control put in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from apps.components import snippets
from backend.api.actions import ApplyRequest, PlanRequest
from tests.fakes.control_stream import TOKEN
from tests.ui.conftest import ControlThread


@pytest.fixture(scope="module")
def control() -> Iterator[ControlThread]:
    made = ControlThread()
    plan = made.fake.actions.make_plan(PlanRequest(action="scale", service="qwen"))
    made.fake.actions.begin(plan, ApplyRequest())
    yield made
    made.close()


@pytest.mark.parametrize("key", list(snippets.SNIPPETS))
def test_a_snippet_runs_and_answers_something(control: ControlThread, key: str) -> None:
    code = snippets.code(key, request=control.fake.decisions[-1].id, service="qwen", plan="plan-1", operation="op-plan-1")
    code = code.replace("workbench.connect()", f"workbench.connect({control.url!r}, token={TOKEN!r})")
    *before, last = code.splitlines()
    names: dict[str, object] = {}
    exec("\n".join(before), names)
    try:
        answer = eval(last, names)
        assert answer is not None
        assert len(repr(answer)) > 0
        if hasattr(answer, "height"):
            assert answer.height > 0, "the table is empty"
    finally:
        names["wb"].close()  # type: ignore[attr-defined]
