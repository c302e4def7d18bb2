"""Cache map: which pod holds which part of the prefix space, what the fleet shares, and whether the index can be trusted."""

from __future__ import annotations

import math
import time
from typing import Any

import msgspec
import panel as pn

from apps.components import cachetext, inputs, text
from apps.components.card import Card, block, set_html
from apps.components.heatmap import HeatMap
from apps.components.table import NAME, STATE, Column, LiveTable, Value, number
from apps.core.hub import FeedLost, Hub
from apps.core.snapshot import Snapshot
from apps.core.theme import Theme
from apps.core.view import View
from backend.api.cache import CacheMap, ProbeRequest, SourceState

SOURCES = (
    Column("pod", "Pod", NAME),
    Column("rank", "Rank", number(), right=True, numeric=True, width=60),
    Column("status", "Status", STATE, width=112),
    Column("blocks", "Blocks", number(), right=True, numeric=True, width=80),
    Column("block_size", "Block size", number(), right=True, numeric=True, width=90),
    Column("lag", "Lag", number(1, "ms"), right=True, numeric=True, width=82),
    Column("event", "Last event", right=True, width=98),
    Column("batches", "Batches", number(), right=True, numeric=True, width=80),
    Column("gaps", "Gaps", number(), right=True, numeric=True, width=64),
    Column("missed", "Missed", number(), right=True, numeric=True, width=72),
    Column("restarts", "Restarts", number(), right=True, numeric=True, width=80),
    Column("skipped", "Unreadable", number(), right=True, numeric=True, width=102),
    Column("reason", "Reason"),
)
SHOW_PLOT, SHOW_TABLE = "Plot", "Table"


class CacheView(View):
    title = "Cache map"
    path = "cache"

    def __init__(self, hub: Hub, theme: Theme) -> None:
        super().__init__(hub, theme)
        self._map: CacheMap | None = None
        self._sources_seen: tuple[SourceState, ...] | None = None
        self._heat = HeatMap(theme)
        self._choice = inputs.choose([SHOW_PLOT, SHOW_TABLE])
        self._choice.param.watch(self._chosen, "value")
        self._map_text = block(cachetext.waiting())
        self._map_table = block("", visible=False)
        self._map_card = Card("Blocks held, by pod and prefix", "cache-map", self._choice, self._map_text, self._heat.pane, self._map_table)
        self._shared = block(cachetext.waiting())
        self._shared_card = Card("Most shared prefixes", "shared", self._shared, margin=(0, 14, 14, 0))
        self._prompt = inputs.area("Paste a prompt, or token ids as [1, 2, 3]")
        self._model = inputs.select("models")
        self._probe_button = inputs.button("Probe", self._probe, primary=True)
        self._answer = block("")
        self._probe_card = Card(
            "Probe a prompt", "probe", self._prompt, pn.Row(self._probe_button, self._model, margin=0), self._answer,
            note="Which pod would find how much of it in its cache.",
        )  # fmt: skip
        self._sources_empty = block(cachetext.waiting())
        self._sources = LiveTable(SOURCES, page_size=25, placeholder="No event source.", on_pick=self._nothing)
        self._sources_card = Card("KV event sources", "sources", self._sources_empty, self._sources.widget)
        middle = pn.Row(self._shared_card.layout, self._probe_card.layout, margin=0)
        self.layout = pn.Column(self._map_card.layout, middle, self._sources_card.layout, margin=0)
        hub.watch_map(self)

    def refresh(self, snapshot: Snapshot) -> None:
        if snapshot.fleet is not None:
            inputs.offer(self._model, "models", [view.pod.model for view in snapshot.fleet.pods])
        self._show_map(snapshot)
        if snapshot.sources is not self._sources_seen:
            self._sources_seen = snapshot.sources
            self._show_sources()

    def close(self) -> None:
        self.hub.unwatch_map(self)

    def _show_map(self, snapshot: Snapshot) -> None:
        data, error = snapshot.cache_map, snapshot.cache_map_error
        stale = bool(error) or (data is not None and data.stale)
        set_html(self._map_text, cachetext.summary(data, error))
        dim = {"filter": "grayscale(1) opacity(.5)"} if stale else {}
        for pane in (self._heat.pane, self._map_table, self._shared):
            if pane.styles != dim:
                pane.styles = dim
        if data is None or data is self._map:
            return
        self._map = data
        self._heat.show(data)
        self._chosen(None)
        set_html(self._shared, cachetext.shared(data))
        self._shared_card.note = "Blocks that several pods hold, or that many blocks continue."

    def _chosen(self, _: Any) -> None:
        table = self._choice.value == SHOW_TABLE
        filled = self._map is not None and bool(self._map.copies)
        self._heat.pane.visible = filled and not table
        self._map_table.visible = filled and table
        if table and self._map is not None:
            set_html(self._map_table, cachetext.by_pod(self._map))

    def _show_sources(self) -> None:
        sources = self._sources_seen or ()
        self._sources.widget.visible = bool(sources)
        self._sources_empty.visible = not sources
        set_html(self._sources_empty, cachetext.waiting() if self._sources_seen is None else cachetext.NO_SOURCES)
        ordered = sorted(sources, key=lambda source: (text.natural(source.pod), source.rank))
        self._sources.update([(f"{source.pod}/{source.rank}", _source_row(source)) for source in ordered])
        live = sum(source.status == "live" for source in sources)
        self._sources_card.note = f"{live} of {text.plural(len(sources), 'source')} live" if sources else ""

    def _nothing(self, _: str) -> None:
        """Sources have no details beyond their row."""

    async def _probe(self, _: Any) -> None:
        prompt = self._prompt.value.strip()
        if not prompt:
            set_html(self._answer, text.state_box("Nothing to probe", "<span class='muted'>Paste a prompt first.</span>"))
            return
        set_html(self._answer, text.state_box("Asking the index", "", sign="…"))
        self._probe_card.fill_snippet(prompt=prompt if len(prompt) <= 200 else prompt[:200])
        try:
            result = await self.hub.feed.probe(probe_request(prompt, self._model.value))
        except FeedLost as error:
            set_html(self._answer, cachetext.probe_failed(str(error)))
            return
        set_html(self._answer, cachetext.probe_answer(result))


def probe_request(prompt: str, model: str) -> ProbeRequest:
    """Token ids when the text is a JSON list of them, else text for the engine's tokenizer."""
    try:
        tokens = msgspec.json.decode(prompt, type=list[int])
    except msgspec.MsgspecError:
        return ProbeRequest(model=model, prompt=prompt)
    return ProbeRequest(model=model, tokens=tokens)


def _source_row(source: SourceState) -> tuple[Value, ...]:
    age = text.duration(time.time() - source.last_event_at) if source.last_event_at else text.NONE
    return (
        source.pod,
        float(source.rank),
        source.status,
        float(source.blocks),
        float(source.block_size) if source.block_size else math.nan,
        math.nan if source.lag_ms is None else round(source.lag_ms, 1),
        age,
        float(source.batches),
        float(source.gaps),
        float(source.missed),
        float(source.restarts),
        float(sum(source.skipped.values())),
        source.reason or "; ".join(f"{number} {reason}" for reason, number in source.skipped.items()),
    )
