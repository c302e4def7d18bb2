"""Rollouts: StormServices, a change planned, confirmed and applied, its operation step by step, and who did what."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import panel as pn

from apps.components import inputs, rollouttext, text
from apps.components.card import Card, block, set_html
from apps.components.table import NAME, STATE, Column, LiveTable, Value, number
from apps.core.hub import Hub
from apps.core.snapshot import Rollouts, Snapshot, Trouble
from apps.core.theme import Theme
from apps.core.view import View
from apps.pages.operating import OperationCard
from apps.pages.planning import PlanCard, name_of
from backend.api.actions import AuditRecord, Operation, ServiceView
from workbench.services import AsyncServices

SERVICES = (
    Column("service", "Service", NAME),
    Column("state", "State", STATE, width=104),
    Column("mode", "Mode", width=76),
    Column("replicas", "RoleSets", number(), right=True, numeric=True, width=82),
    Column("roles", "Ready by role"),
    Column("images", "Image", NAME),
    Column("revision", "Revision", NAME, width=130),
    Column("operation", "Operation", NAME, width=110),
    Column("message", "Trouble"),
)
OPERATIONS = (
    Column("at", "Begun, UTC", width=106),
    Column("service", "Service", NAME),
    Column("summary", "Change"),
    Column("state", "State", STATE, width=104),
    Column("steps", "Steps", right=True, width=70),
    Column("user", "By", width=130),
    Column("message", "Message"),
)
AUDIT = (
    Column("at", "At, UTC", width=96),
    Column("user", "Who", width=130),
    Column("source", "From", width=90),
    Column("action", "Did", width=92),
    Column("target", "To", NAME),
    Column("outcome", "Outcome", STATE, width=104),
    Column("message", "Message"),
    Column("reason", "Reason"),
)
PAGE_SIZE = 8


class RolloutsView(View):
    title = "Rollouts"
    path = "rollouts"

    def __init__(self, hub: Hub, theme: Theme) -> None:
        super().__init__(hub, theme)
        self._seen: tuple[Rollouts | None, Trouble | None] | None = None
        self._empty = block(rollouttext.waiting())
        self._services = LiveTable(SERVICES, page_size=PAGE_SIZE, placeholder="No StormService.", on_pick=self._pick)
        self._services_card = Card("Services", "services", self._empty, self._services.widget)
        self.planning = PlanCard(self._acting, self._applied)
        self.operating = OperationCard(self._acting, on_told=self.hub.see_operation, on_plan=self.planning.show)
        self._operations = LiveTable(OPERATIONS, page_size=PAGE_SIZE, placeholder="No operation yet.", on_pick=self.operating.choose)
        self._operations_empty = block(rollouttext.NO_OPERATIONS)
        self._operations_card = Card("Operations", "operations", self._operations_empty, self._operations.widget)
        self._audit = LiveTable(AUDIT, page_size=PAGE_SIZE, placeholder="Nothing was done yet.", on_pick=self._nothing)
        self._audit_empty = block(rollouttext.NO_AUDIT)
        self._audit_card = Card("Audit", "audit", self._audit_empty, self._audit.widget)
        cards = (self._services_card, self.planning.card, self.operating.card, self._operations_card, self._audit_card)
        kept = {"service": self.planning.service, "plan": self.planning.kept_plan, "operation": self.operating.chosen}
        self.layout = pn.Column(*(card.layout for card in cards), margin=0)
        inputs.keep_in_address(kept)
        hub.watch_rollouts(self)
        if self.planning.kept_plan.value:
            pn.state.onload(self.planning.restore)

    def refresh(self, snapshot: Snapshot) -> None:
        seen = (snapshot.rollouts, snapshot.rollouts_trouble)
        if self._seen is not None and seen[0] is self._seen[0] and seen[1] is self._seen[1]:
            return
        self._seen = seen
        self._show(*seen)

    def close(self) -> None:
        self.hub.unwatch_rollouts(self)

    def _show(self, found: Rollouts | None, trouble: Trouble | None) -> None:
        services = found.services if found else ()
        set_html(self._empty, _no_services(found, trouble))
        self._empty.visible = trouble is not None or not services
        dim = {"filter": "grayscale(1) opacity(.5)"} if trouble else {}
        for table in (self._services, self._operations, self._audit):
            if table.widget.styles != dim:
                table.widget.styles = dim
        _fill(self._services, [(name_of(one), _service_row(one)) for one in services])
        ready = sum(one.ready for one in services)
        self._services_card.note = (
            f"{ready} of {text.plural(len(services), 'service')} ready. Choose one to plan a change." if services else ""
        )
        self.planning.offer(services)
        if found is None:
            return
        self.operating.follow(found.operations)
        _fill(self._operations, [(one.id, _operation_row(one)) for one in found.operations], self._operations_empty)
        self._operations_card.note = "The newest applied plans, newest first. A click shows one above." if found.operations else ""
        _fill(self._audit, [(one.id, _audit_row(one)) for one in found.audit], self._audit_empty)
        self._audit_card.note = "Every act, newest first; written before the act and completed after it." if found.audit else ""

    def _acting(self) -> AbstractAsyncContextManager[AsyncServices]:
        return self.hub.feed.acting(self.user)

    def _applied(self, operation: Operation) -> None:
        self.hub.see_operation(operation)
        self.operating.choose(operation.id)

    def _pick(self, name: str) -> None:
        self.planning.service.value = name

    def _nothing(self, _: str) -> None:
        """Audit records have no details beyond their row."""


def _fill(table: LiveTable, rows: list[tuple[str, tuple[Value, ...]]], empty: Any = None) -> None:
    """Rows where there are some, else the empty state."""
    table.widget.visible = bool(rows)
    if empty is not None:
        empty.visible = not rows
    table.update(rows)


def _no_services(found: Rollouts | None, trouble: Trouble | None) -> str:
    if trouble is not None:
        title = "There are no services to show" if found is None else "Control does not tell; this is what it told last"
        return rollouttext.trouble(title, trouble.reason, trouble.fix)
    return rollouttext.waiting() if found is None else rollouttext.NO_SERVICES


def _service_row(one: ServiceView) -> tuple[Value, ...]:
    return (
        name_of(one),
        rollouttext.service_state(one),
        one.mode,
        float(one.replicas),
        ", ".join(f"{role.name} {role.ready}/{role.wanted}" for role in one.roles),
        ", ".join(dict.fromkeys(image for role in one.roles for image in role.images)),
        one.update_revision or one.revision or text.NONE,
        one.operation or text.NONE,
        one.message,
    )


def _operation_row(one: Operation) -> tuple[Value, ...]:
    return (
        text.clock(one.started_at)[:-4],
        f"{one.namespace}/{one.service}",
        one.summary or one.action,
        one.state,
        f"{one.steps_done}/{one.steps_total}",
        one.by.user or text.NONE,
        one.message,
    )


def _audit_row(one: AuditRecord) -> tuple[Value, ...]:
    return (text.clock(one.at)[:-4], one.user or text.NONE, one.source, one.action, one.target, one.outcome, one.message, one.reason)
