"""The card of the Rollouts page that follows one operation and tells it what it may be told now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import panel as pn

from apps.components import inputs, rollouttext, text
from apps.components.card import Card, block, set_html
from apps.core.hub import FeedLost
from apps.pages.planning import Acting, typed
from backend.api.actions import ActionPlan, Operation, Verb

VERBS: tuple[Verb, ...] = ("pause", "resume", "abort", "undo")


class OperationCard:
    """Shows the chosen operation, or without a choice the newest that runs, or the newest. `chosen` stays in the page's address."""

    def __init__(self, acting: Acting, *, on_told: Callable[[Operation], None], on_plan: Callable[[ActionPlan], None]) -> None:
        self._acting = acting
        self._on_told = on_told
        self._on_plan = on_plan
        self._operation: Operation | None = None
        self._plans: dict[str, ActionPlan | None] = {}
        """By id; None while it is asked for, or when it is gone."""
        self._operations: Sequence[Operation] = ()
        self.chosen = pn.widgets.TextInput(visible=False)
        self._shown = block(rollouttext.NO_OPERATION)
        self._problem = block("", visible=False, margin=(8, 0, 0, 0))
        self.confirm = inputs.field("Confirm an abort", width=280)
        self.reason = inputs.field("Reason, for the audit", "Why", width=320)
        self._buttons = {verb: inputs.button(verb.capitalize(), self._verb(verb)) for verb in VERBS}
        fields = pn.Row(self.confirm, self.reason, margin=(10, 0, 0, 0))
        self._verbs = pn.Column(fields, pn.Row(*self._buttons.values(), margin=0), margin=0, visible=False)
        self.card = Card("Operation", "operation", self._shown, self._verbs, self._problem)
        self.confirm.param.watch(self._typed, ["value", "value_input"])

    def follow(self, operations: Sequence[Operation]) -> None:
        """Bring the card to `operations`, newest first."""
        self._operations = operations
        running = [one for one in operations if one.active]
        found = [one for one in operations if one.id == self.chosen.value] or running or list(operations[:1])
        if found:
            self._show(found[0])

    def choose(self, operation_id: str) -> None:
        self.chosen.value = operation_id
        self._complain("")
        self.follow(self._operations)

    def _show(self, operation: Operation) -> None:
        if self._operation is None or self._operation.id != operation.id:
            self.confirm.value = self.confirm.value_input = self.reason.value = self.reason.value_input = ""
            self.card.fill_snippet(operation=operation.id)
        self._operation = operation
        if operation.plan_id not in self._plans:
            self._plans[operation.plan_id] = None
            pn.state.execute(self._read_plan)
        self.card.note = f"<code>{text.escape(operation.id)}</code>"
        set_html(self._shown, rollouttext.operation(operation, self._plans[operation.plan_id]))
        for verb, button in self._buttons.items():
            _set(button, "visible", verb in operation.verbs)
        _set(self.confirm, "visible", "abort" in operation.verbs)
        _set(self.confirm, "label", f"Type {operation.service} to abort")
        _set(self._verbs, "visible", bool(operation.verbs))
        self._typed(None)

    async def _read_plan(self) -> None:
        """The plan of the operation on show: its steps. One that is gone leaves the card without them."""
        if self._operation is None:
            return
        plan_id = self._operation.plan_id
        try:
            async with self._acting() as services:
                self._plans[plan_id] = (await services.get_plan(plan_id)).plan
        except FeedLost:
            return
        if self._operation.plan_id == plan_id:
            set_html(self._shown, rollouttext.operation(self._operation, self._plans[plan_id]))

    def _verb(self, verb: Verb) -> Callable[[Any], Any]:
        async def tell(_: Any) -> None:
            operation = self._operation
            if operation is None:
                return
            if verb == "abort" and typed(self.confirm) != operation.service:
                self._complain(text.state_box("Not confirmed", "<span class='muted'>An abort takes pods away again: type the name.</span>"))
                return
            self._complain("")
            try:
                async with self._acting() as services:
                    if verb == "undo":
                        self._on_plan((await services.undo(operation.id, reason=typed(self.reason))).plan)
                        return
                    confirm = typed(self.confirm) if verb == "abort" else ""
                    self._on_told(await services.tell(operation.id, verb, confirm=confirm, reason=typed(self.reason)))
            except FeedLost as error:
                self._complain(rollouttext.trouble(f"{verb.capitalize()} was refused", str(error), error.fix))

        return tell

    def _typed(self, _: Any) -> None:
        _set(self._buttons["abort"], "disabled", self._operation is None or typed(self.confirm) != self._operation.service)

    def _complain(self, content: str) -> None:
        set_html(self._problem, content)
        self._problem.visible = bool(content)


def _set(widget: Any, name: str, value: Any) -> None:
    """Change it only when it differs: an equal assignment would still cost a message."""
    if getattr(widget, name) != value:
        setattr(widget, name, value)
