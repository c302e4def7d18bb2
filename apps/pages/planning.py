"""The card of the Rollouts page that plans a change, shows what it would cost, asks for a confirmation and applies it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import panel as pn

from apps.components import inputs, rollouttext, text
from apps.components.card import Card, block, set_html
from apps.core.hub import FeedLost
from backend.api.actions import Action, ActionPlan, Operation, ServiceView
from workbench.services import AsyncServices, new_key

Acting = Callable[[], AbstractAsyncContextManager[AsyncServices]]

IMAGE, SCALE, PAUSE, RESUME = "Set image", "Scale", "Pause service", "Resume service"
ACTIONS: dict[str, Action] = {IMAGE: "set-image", SCALE: "scale", PAUSE: "pause", RESUME: "resume"}
SNIPPETS = {IMAGE: "plan-image", SCALE: "plan-scale", PAUSE: "plan-pause", RESUME: "plan-resume"}
UNCHOSEN = "Choose a service"


class PlanCard:
    """`service` and `kept_plan` keep their values in the page's address: a reload shows the same plan again."""

    def __init__(self, acting: Acting, on_applied: Callable[[Operation], None]) -> None:
        self._acting = acting
        self._on_applied = on_applied
        self._services: Sequence[ServiceView] = ()
        self._plan: ActionPlan | None = None
        self._key = ""
        self.service = inputs.one_of("Service", UNCHOSEN)
        self.kept_plan = pn.widgets.TextInput(visible=False)
        self.change = inputs.choose(list(ACTIONS), each=112)
        self.role = inputs.one_of("Role", "Every role", width=150)
        self.image = inputs.field("Image", "vllm/vllm-openai:v0.32.0", width=300)
        self.replicas = inputs.whole("Instances", 1)
        self._ask = inputs.button("Plan", self._make_plan, primary=True)
        self._shown = block(rollouttext.NOTHING_PLANNED)
        self._problem = block("", visible=False, margin=(8, 0, 0, 0))
        self.confirm = inputs.field("Confirm")
        self.reason = inputs.field("Reason, for the audit", "Why", width=320)
        self._apply = inputs.button("Apply", self._apply_plan, primary=True)
        self._discard = inputs.button("Discard", self._drop)
        fields = pn.Row(self.service, self.role, self.image, self.replicas, margin=0)
        asked = pn.Row(self.confirm, self.reason, margin=(10, 0, 0, 0))
        buttons = pn.Row(self._apply, self._discard, margin=0)
        self._decision = pn.Column(asked, buttons, margin=0, visible=False)
        self.card = Card(
            "Plan a change", SNIPPETS[IMAGE], pn.Row(self.change, margin=0), fields, self._ask, self._shown, self._decision, self._problem,
            note="Nothing happens before a plan is applied. A plan may be applied for five minutes.",
        )  # fmt: skip
        for widget in (self.service, self.change):
            widget.param.watch(self._form_changed, "value")
        self.confirm.param.watch(self._typed, ["value", "value_input"])
        self.reason.param.watch(self._typed, ["value", "value_input"])
        self._form_changed(None)

    def offer(self, services: Sequence[ServiceView]) -> None:
        """Services that may be chosen now."""
        self._services = services
        inputs.offer_one_of(self.service, [name_of(one) for one in services])
        self._offer_roles()

    def show(self, plan: ActionPlan) -> None:
        """A plan to decide upon, also one that was made elsewhere."""
        self._plan, self._key = plan, new_key()
        self.kept_plan.value = plan.id
        self.card.show_snippet("plan", plan=plan.id)
        set_html(self._shown, _heading(plan) + rollouttext.plan(plan))
        self.confirm.label = f"Type {plan.confirm} to confirm"
        self.confirm.visible = bool(plan.confirm)
        self.confirm.value = self.confirm.value_input = ""
        self.reason.label = "Reason, for the audit (needed)" if plan.reason_required else "Reason, for the audit"
        self.reason.value = self.reason.value_input = plan.reason
        self._decision.visible = True
        self._complain("")
        self._typed(None)

    async def restore(self) -> None:
        """The plan of the address, after a reload; one that is gone or was applied leaves the form empty."""
        if not self.kept_plan.value:
            return
        try:
            async with self._acting() as services:
                self.show((await services.get_plan(self.kept_plan.value)).plan)
        except FeedLost as error:
            self._drop(None)
            self._complain(rollouttext.trouble("The plan of this address is gone", str(error), error.fix))

    async def _make_plan(self, _: Any) -> None:
        if not self.service.value:
            self._complain(text.state_box(UNCHOSEN, "<span class='muted'>A plan is made for one service.</span>"))
            return
        self._drop(None)
        set_html(self._shown, text.state_box("Planning", "", sign="…"))
        try:
            async with self._acting() as services:
                made = await services.plan(ACTIONS[self.change.value], self.service.value, **self._parameters())
        except FeedLost as error:
            set_html(self._shown, rollouttext.trouble("There is no such plan", str(error), error.fix))
            return
        self.show(made.plan)

    async def _apply_plan(self, _: Any) -> None:
        plan = self._plan
        # A disabled button is only a picture of this check; control makes it a third time.
        if plan is None or not self._may_apply():
            self._complain(text.state_box("Not confirmed", "<span class='muted'>Type what is asked for first.</span>"))
            return
        self._apply.disabled = True
        try:
            async with self._acting() as services:
                applied = await services.apply(plan.id, confirm=typed(self.confirm), reason=typed(self.reason), key=self._key)
        except FeedLost as error:
            self._complain(rollouttext.trouble("The plan was not applied", str(error), error.fix))
            self._typed(None)
            return
        self._drop(None)
        self._on_applied(applied.last)

    def _drop(self, _: Any) -> None:
        self._plan = None
        self.kept_plan.value = ""
        self._decision.visible = False
        set_html(self._shown, rollouttext.NOTHING_PLANNED)
        self._complain("")
        self._form_changed(None)

    def _may_apply(self) -> bool:
        plan = self._plan
        return plan is not None and typed(self.confirm) == plan.confirm and bool(typed(self.reason) or not plan.reason_required)

    def _typed(self, _: Any) -> None:
        disabled = not self._may_apply()
        if self._apply.disabled != disabled:
            self._apply.disabled = disabled

    def _form_changed(self, _: Any) -> None:
        chosen = self.change.value
        self.image.visible = chosen == IMAGE
        self.replicas.visible = chosen == SCALE
        self.role.visible = chosen in (IMAGE, SCALE)
        self._offer_roles()
        if self._plan is None:
            self.card.show_snippet(SNIPPETS[chosen], **({"service": self.service.value} if self.service.value else {}))

    def _offer_roles(self) -> None:
        roles = [role.name for one in self._services if name_of(one) == self.service.value for role in one.roles]
        first = "Whole RoleSets" if self.change.value == SCALE else "Every role"
        options = {first: inputs.ALL, **{role: role for role in roles}}
        if options != self.role.options:
            self.role.param.update(options=options, value=self.role.value if self.role.value in roles else inputs.ALL)

    def _parameters(self) -> dict[str, Any]:
        if self.change.value == IMAGE:
            return {"image": typed(self.image), "role": self.role.value}
        return {"replicas": self.replicas.value, "role": self.role.value} if self.change.value == SCALE else {}

    def _complain(self, content: str) -> None:
        set_html(self._problem, content)
        self._problem.visible = bool(content)


def name_of(service: ServiceView) -> str:
    return f"{service.namespace}/{service.name}"


def typed(widget: Any) -> str:
    """What stands in a field now, whether or not the browser has left it."""
    return str(widget.value_input or widget.value or "").strip()


def _heading(plan: ActionPlan) -> str:
    return f'<p class="sub-title">{text.escape(plan.action)} of {text.escape(plan.namespace)}/{text.escape(plan.service)}</p>'
