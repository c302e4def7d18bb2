"""The Rollouts page against a control on a real socket: what it asks for, what it refuses to send, what it says. Not here: its looks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from apps.components import rollouttext
from apps.core.feed import ControlFeed
from apps.core.hub import Change, Hub
from apps.pages.rollouts import RolloutsView
from backend.api.actions import ActionPlan, Operation, Parameters, PlanStep, RoleCapacity, RoleView, ServiceView
from tests.fakes.control_stream import TOKEN, FakeControl

HOSTILE = "<img src=x onerror=alert(1)>"


@dataclass
class Opened:
    control: FakeControl
    hub: Hub
    view: RolloutsView

    async def look(self) -> None:
        """What the hub's poll and the session's timer do together."""
        await self.hub._fetch_rollouts()
        self.view.refresh(self.hub.snapshot())

    def text(self) -> str:
        planning, operating = self.view.planning, self.view.operating
        return "".join(str(pane.object) for pane in (planning._shown, planning._problem, operating._shown, operating._problem))

    async def plan(self, change: str = "Set image", image: str = "engine:2") -> None:
        planning = self.view.planning
        planning.service.value, planning.change.value, planning.image.value = "default/qwen", change, image
        await planning._make_plan(None)

    async def apply(self, confirm: str = "qwen", reason: str = "") -> None:
        self.view.planning.confirm.value, self.view.planning.reason.value = confirm, reason
        await self.view.planning._apply_plan(None)

    async def press(self, verb: str) -> None:
        await self.view.operating._verb(verb)(None)  # type: ignore[arg-type]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    (tmp_path / "token").write_text(TOKEN)
    async with FakeControl() as control:
        hub = Hub(ControlFeed(control.url, tmp_path / "token"))
        view = RolloutsView(hub, "light")
        view.user = "alice"
        made = Opened(control, hub, view)
        await made.look()
        yield made
        await asyncio.sleep(0)
        await hub.feed.close()


async def test_services_are_listed_and_offered(opened: Opened) -> None:
    assert list(opened.view._services.widget.value["service"]) == ["default/qwen"]
    assert "default/qwen" in opened.view.planning.service.options
    opened.view._pick("default/qwen")
    assert list(opened.view.planning.role.options) == ["Every role", "prefill", "decode"]


async def test_a_plan_shows_what_it_costs_and_waits_for_the_name(opened: Opened) -> None:
    await opened.plan()
    assert opened.control.actions.planned[-1].parameters == Parameters(image="engine:2")
    shown = opened.text()
    for words in ("1,234", "1 min 30 s", "medium", "▼ fewer than now", "outdated", "spec.replicas"):
        assert words in shown
    assert opened.view.planning._apply.disabled
    opened.view.planning.confirm.value_input = "qwen"
    assert not opened.view.planning._apply.disabled


@pytest.mark.parametrize("confirm", ["", "qwe", "default/qwen"])
async def test_nothing_is_sent_without_the_right_name_whatever_the_button_says(opened: Opened, confirm: str) -> None:
    await opened.plan()
    await opened.apply(confirm)
    assert "Not confirmed" in opened.text()
    assert opened.control.actions.applied == []


async def test_an_applied_plan_is_followed_in_the_name_of_who_looks(opened: Opened) -> None:
    await opened.plan()
    await opened.apply(reason="an older engine")
    sent = opened.control.actions.applied[-1]
    assert (sent.confirm, sent.reason, sent.by.user, sent.by.source) == ("qwen", "an older engine", "alice", "ui")
    await opened.look()
    assert opened.view.operating.chosen.value == "op-plan-1"
    assert "0/3" in opened.text()
    assert "No plan yet" in opened.text()


async def test_an_event_moves_the_operation_on(opened: Opened) -> None:
    await opened.plan()
    await opened.apply()
    done = Operation(id="op-plan-1", plan_id="plan-1", action="set-image", namespace="default", service="qwen", state="done", steps_done=3)
    opened.hub.apply(Change(operation=done))
    opened.view.refresh(opened.hub.snapshot())
    assert "3/0" in opened.text()
    rollouts = opened.hub.snapshot().rollouts
    assert rollouts is not None
    assert [one.state for one in rollouts.operations] == ["done"]


async def test_verbs_are_those_that_control_allows_now(opened: Opened) -> None:
    await opened.plan()
    await opened.apply()
    await opened.look()
    buttons = opened.view.operating._buttons
    assert [verb for verb, button in buttons.items() if button.visible] == ["pause", "abort"]
    await opened.press("pause")
    await opened.look()
    assert [verb for verb, button in buttons.items() if button.visible] == ["resume", "abort"]


async def test_an_abort_needs_the_name_and_an_undo_is_a_plan_again(opened: Opened) -> None:
    await opened.plan()
    await opened.apply()
    await opened.look()
    await opened.press("abort")
    assert opened.control.actions.told == []
    opened.view.operating.confirm.value = "qwen"
    await opened.press("abort")
    assert [(verb, asked.confirm) for verb, asked in opened.control.actions.told] == [("abort", "qwen")]
    await opened.press("undo")
    assert "undo of default/qwen" in opened.text()
    assert opened.view.planning.confirm.label == "Type qwen to confirm"


async def test_a_refused_plan_says_why_and_what_to_do(opened: Opened) -> None:
    await opened.plan(image="unknown")
    assert "No image is named" in opened.text()
    assert "Do something about it." in opened.text()
    assert not opened.view.planning._decision.visible


async def test_a_plan_of_the_address_is_shown_again_and_one_that_is_gone_is_said(opened: Opened) -> None:
    await opened.plan()
    again = RolloutsView(opened.hub, "dark")
    again.planning.kept_plan.value = "plan-1"
    await again.planning.restore()
    assert again.planning._decision.visible
    again.planning.kept_plan.value = "plan-gone"
    await again.planning.restore()
    assert "is gone" in str(again.planning._problem.object)
    assert again.planning.kept_plan.value == ""


async def test_without_a_cluster_the_page_says_why_and_keeps_what_it_knew(opened: Opened) -> None:
    opened.control.actions.away = "This control follows no cluster."
    await opened.look()
    assert "This control follows no cluster." in str(opened.view._empty.object)
    assert "Do something about it." in str(opened.view._empty.object)
    assert opened.view._empty.visible
    assert opened.view._services.widget.visible, "what it told last, in grey"
    opened.control.actions.away = ""
    await opened.look()
    assert not opened.view._empty.visible


STATES = [
    ({}, {}, "ready"),
    ({"ready": False}, {}, "unready"),
    ({"paused": True}, {}, "paused"),
    ({"operation": "op-1"}, {}, "updating"),
    ({}, {"updated": 0}, "updating"),
    ({"paused": True, "operation": "op-1"}, {}, "paused"),
]


@pytest.mark.parametrize(("service", "role", "state"), STATES, ids=[f"{case[0]}{case[1]}" for case in STATES])
def test_a_service_has_one_state(service: dict[str, object], role: dict[str, object], state: str) -> None:
    roles = [RoleView(**{"name": "worker", "images": [], "wanted": 1, "ready": 1, "updated": 1, **role})]
    view = ServiceView(**{"namespace": "default", "name": "a", "mode": "pooled", "replicas": 1, "roles": roles, "ready": True, **service})
    assert rollouttext.service_state(view) == state


def hostile_plan() -> ActionPlan:
    return ActionPlan(
        id="p",
        hash="h",
        action="scale",
        namespace=HOSTILE,
        service=HOSTILE,
        parameters=Parameters(),
        made_at=0.0,
        expires_at=1.0,
        capacity=[RoleCapacity(role=HOSTILE, before=2, worst=0, after=2)],
        steps=[PlanStep(at_s=0.0, pods_in={HOSTILE: 1}, ready={HOSTILE: 1}, reason=HOSTILE)],
        notes=[HOSTILE],
    )


def test_names_with_markup_are_escaped_and_a_role_without_pods_stands_out() -> None:
    shown = rollouttext.plan(hostile_plan())
    operation = Operation(id="o", plan_id="p", action="scale", namespace="n", service=HOSTILE, message=HOSTILE, reason=HOSTILE)
    shown += rollouttext.operation(operation, hostile_plan()) + rollouttext.trouble("t", HOSTILE, HOSTILE)
    assert "<img" not in shown
    assert "✕ none ready" in shown
