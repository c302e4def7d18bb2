"""Router: where requests go, live, and why one of them went where it went."""

from __future__ import annotations

import math
from typing import Any

import panel as pn

from apps.components import inputs, text, why
from apps.components.card import Card, block, set_html
from apps.components.table import MONO, NAME, STATE, Column, LiveTable, Value, number, time_spent
from apps.core.hub import Hub
from apps.core.snapshot import Snapshot
from apps.core.theme import Theme
from apps.core.view import View
from backend.api.decisions import DecisionRecord

COLUMNS = (
    Column("time", "Finished, UTC", width=114),
    Column("id", "Request", MONO, width=118),
    Column("model", "Model"),
    Column("policy", "Policy", width=104),
    Column("pod", "Pod", NAME),
    Column("reason", "Reason"),
    Column("predicted", "Predicted", number(), right=True, numeric=True, width=92),
    Column("cached", "Cached", number(), right=True, numeric=True, width=72),
    Column("hit_class", "Compared", width=108),
    Column("ttft", "TTFT", time_spent(), right=True, numeric=True, width=74),
    Column("total", "Total", time_spent(), right=True, numeric=True, width=78),
    Column("outcome", "Outcome", STATE, width=130),
)
PAGE_SIZE = 15
WINDOW = 150
"""Newest decisions that the table pages through; older ones are a query of the workbench."""


class RouterView(View):
    title = "Router"
    path = "router"

    def __init__(self, hub: Hub, theme: Theme) -> None:
        super().__init__(hub, theme)
        self._decisions: tuple[DecisionRecord, ...] | None = None
        self._by_id: dict[str, DecisionRecord] = {}
        self._rows: dict[str, tuple[Value, ...]] = {}
        """Rows of the decisions on show: a decision is worded once, when it is new."""
        self._paused = False
        self._pod = inputs.select("pods", width=220)
        self._policy = inputs.select("policies")
        self._outcome = inputs.select("outcomes")
        self._pause = inputs.button("Pause", self._toggle)
        self._empty = block(_no_decisions(None))
        self._table = LiveTable(COLUMNS, page_size=PAGE_SIZE, placeholder="No decision matches these filters.", on_pick=self._pick)
        filters = pn.Row(self._pod, self._policy, self._outcome, self._pause, margin=0)
        self._card = Card("Decisions", "decisions", filters, self._empty, self._table.widget)
        self._story = block(why.NOTHING_CHOSEN)
        self._candidates = block("", visible=False, margin=(12, 0, 0, 0))
        self._plot = pn.pane.HoloViews(theme=why.plot_theme(theme), sizing_mode="stretch_width", margin=(8, 0, 0, 0), visible=False)
        self._why_card = Card("Why this pod", "explain", self._story, self._candidates, self._plot)
        self.layout = pn.Column(self._card.layout, self._why_card.layout, margin=0)
        self._filters = {"pod": self._pod, "policy": self._policy, "outcome": self._outcome}
        inputs.keep_in_address(self._filters)
        for widget in self._filters.values():
            widget.param.watch(self._filtered, "value")

    def refresh(self, snapshot: Snapshot) -> None:
        if self._paused or snapshot.decisions is self._decisions:
            return
        self._decisions = snapshot.decisions
        self._show()

    def _filtered(self, _: Any) -> None:
        self._show()

    def _toggle(self, _: Any) -> None:
        self._set_paused(not self._paused)

    def _set_paused(self, paused: bool) -> None:
        self._paused = paused
        self._pause.label = "Resume" if paused else "Pause"
        self._note()

    def _show(self) -> None:
        records = self._decisions or ()
        self._empty.visible = not records
        self._table.widget.visible = bool(records)
        set_html(self._empty, _no_decisions(self._decisions))
        inputs.offer(self._pod, "pods", [record.chosen for record in records])
        inputs.offer(self._policy, "policies", [record.policy for record in records])
        inputs.offer(self._outcome, "outcomes", [record.outcome for record in records])
        fitting = [record for record in records if self._fits(record)][:WINDOW]
        known, rows = self._by_id, self._rows
        self._rows = {record.id: rows[record.id] if known.get(record.id) is record else _row(record) for record in fitting}
        self._by_id = {record.id: record for record in fitting}
        self._table.update(list(self._rows.items()))
        self._note()

    def _note(self) -> None:
        shown = len(self._by_id)
        newest = f"The newest {text.plural(shown, 'decision')}, newest first. Hits in tokens." if shown else ""
        self._card.note = f"{newest} <b>Paused</b>: new ones wait." if self._paused else newest

    def _fits(self, record: DecisionRecord) -> bool:
        return (
            self._pod.value in (inputs.ALL, record.chosen)
            and self._policy.value in (inputs.ALL, record.policy)
            and self._outcome.value in (inputs.ALL, record.outcome)
        )

    def _pick(self, request_id: str) -> None:
        """Explain one decision, and hold the list still while somebody reads."""
        record = self._by_id.get(request_id)
        if record is None:
            return
        self._set_paused(True)
        self._why_card.fill_snippet(request=request_id)
        set_html(self._story, why.story(record))
        set_html(self._candidates, why.candidates(record))
        self._candidates.visible = True
        drawn = why.plot(record, self.theme)
        self._plot.visible = drawn is not None
        if drawn is not None:
            self._plot.object = drawn


def _row(record: DecisionRecord) -> tuple[Value, ...]:
    return (
        text.clock(record.at + record.total_ms / 1000),
        record.id,
        record.model or text.NONE,
        record.policy or text.NONE,
        record.chosen or text.NONE,
        record.reason.replace("_", " ") or text.NONE,
        _number(record.predicted_tokens),
        _number(record.cached_tokens),
        record.hit_class.replace("_", " "),
        _number(record.ttft_ms),
        _number(record.total_ms),
        record.outcome,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(round(value, 1))


def _no_decisions(records: tuple[DecisionRecord, ...] | None) -> str:
    if records is None:
        return text.state_box("Waiting for the first decisions", "<span class='muted'>Control has not answered yet.</span>", sign="…")
    return text.state_box(
        "No requests yet",
        "<span class='muted'>Every request through the gateway appears here within half a second. "
        "<code>workbench replay TRACE</code> sends some.</span>",
    )
