"""Fleet: how many pods are ready, how loaded they are, how well their caches serve, and what needs somebody's attention."""

from __future__ import annotations

import math
import time
from typing import Any

import panel as pn

from apps.components import findings, inputs, kpi, text
from apps.components.card import Card, block, set_html
from apps.components.table import NAME, STATE, Column, LiveTable, Value, bar, number
from apps.core.hub import Hub
from apps.core.snapshot import Snapshot, mean_prompt_tokens
from apps.core.theme import Theme
from apps.core.view import View
from backend.api.findings import Finding
from backend.api.fleet import FleetSnapshot, PodView

COLUMNS = (
    Column("pod", "Pod", NAME),
    Column("state", "State", STATE, width=104),
    Column("model", "Model"),
    Column("engine", "Engine", width=108),
    Column("running", "Running", number(), right=True, numeric=True, width=78),
    Column("waiting", "Waiting", number(), right=True, numeric=True, width=78),
    Column("kv", "KV used", bar(), right=True, numeric=True, width=92),
    Column("hit", "Hit rate", bar(), right=True, numeric=True, width=92),
    Column("prompt", "Prompt tok/s", number(), right=True, numeric=True, width=114),
    Column("generated", "Gen. tok/s", number(), right=True, numeric=True, width=90),
    Column("restarts", "Restarts", number(), right=True, numeric=True, width=80),
    Column("age", "Age", right=True, width=66),
    Column("reason", "Reason"),
)
PAGE_SIZE = 25
MEAN_S = 30.0
"""Prompts come in bursts: between two scrapes most pods have none."""


class FleetView(View):
    title = "Fleet"
    path = "fleet"

    def __init__(self, hub: Hub, theme: Theme) -> None:
        super().__init__(hub, theme)
        self._fleet: FleetSnapshot | None = None
        self._prompt_tokens: dict[str, float] = {}
        self._picked = ""
        self._kpis = block(kpi.render(_kpis(Snapshot())))
        self._search = inputs.search("Search pods, press Enter")
        self._state = inputs.select("states")
        self._model = inputs.select("models")
        self._empty = block("", visible=False)
        self._table = LiveTable(COLUMNS, page_size=PAGE_SIZE, placeholder="No pod matches these filters.", on_pick=self._pick)
        self._detail = block("")
        self._detail_card = Card("Pod", "pod", self._detail)
        self._detail_card.layout.visible = False
        self._findings = block(findings.render(None))
        self._findings_card = Card("Findings", "findings", self._findings)
        self._glance_card = Card("At a glance", "fleet", self._kpis)
        filters = pn.Row(self._search, self._state, self._model, margin=0)
        self._pods_card = Card("Pods", "pods", filters, self._empty, self._table.widget)
        self.layout = pn.Column(
            self._glance_card.layout, self._pods_card.layout, self._detail_card.layout, self._findings_card.layout, margin=0
        )
        inputs.keep_in_address({"q": self._search, "state": self._state, "model": self._model})
        for widget in (self._search, self._state, self._model):
            widget.param.watch(self._filtered, "value")

    def refresh(self, snapshot: Snapshot) -> None:
        set_html(self._kpis, kpi.render(_kpis(snapshot)))
        set_html(self._findings, findings.render(snapshot.findings))
        self._findings_card.note = findings.summary(snapshot.findings)
        if snapshot.fleet is self._fleet:
            return
        self._fleet = snapshot.fleet
        self._prompt_tokens = mean_prompt_tokens(snapshot.trends, seconds=MEAN_S)
        if snapshot.fleet is not None:
            inputs.offer(self._state, "states", [view.pod.state for view in snapshot.fleet.pods])
            inputs.offer(self._model, "models", [view.pod.model for view in snapshot.fleet.pods])
        self._show_pods()
        self._show_detail()

    def _filtered(self, _: Any) -> None:
        self._show_pods()

    def _show_pods(self) -> None:
        pods = self._fleet.pods if self._fleet else []
        self._table.widget.visible = bool(pods)
        self._empty.visible = not pods
        set_html(self._empty, _no_pods(self._fleet))
        chosen = sorted((view for view in pods if self._fits(view)), key=lambda view: text.natural(view.pod.name))
        self._table.update([(view.pod.name, _row(view, self._prompt_tokens.get(view.pod.name))) for view in chosen])
        self._pods_card.note = _pods_note(len(chosen), len(pods)) if pods else ""

    def _fits(self, view: PodView) -> bool:
        pod = view.pod
        words = f"{pod.name} {pod.ip} {pod.version} {pod.revision} {pod.role} {pod.roleset}".lower()
        return (
            self._state.value in (inputs.ALL, pod.state)
            and self._model.value in (inputs.ALL, pod.model)
            and all(word in words for word in self._search.value.lower().split())
        )

    def _pick(self, name: str) -> None:
        self._picked = name
        self._detail_card.fill_snippet(pod=name)
        self._show_detail()

    def _show_detail(self) -> None:
        if not self._picked or self._fleet is None:
            return
        view = next((view for view in self._fleet.pods if view.pod.name == self._picked), None)
        self._detail_card.note = f'<b class="num">{text.escape(self._picked)}</b>'
        gone = text.state_box("This pod is gone", "<span class='muted'>It left the fleet since you chose it.</span>", sign="◌")
        set_html(self._detail, gone if view is None else _detail(view))
        self._detail_card.layout.visible = True


def _row(view: PodView, prompt_tokens_per_s: float | None) -> tuple[Value, ...]:
    pod, load = view.pod, view.load
    fresh = load.state == "fresh"
    reason = pod.reason or (load.error if not fresh else "") or (f"no metric {', '.join(load.missing)}" if load.missing else "")

    def live(value: float | None) -> float:
        """A number that nobody has confirmed lately is shown as unknown, not as it was."""
        return value if fresh and value is not None else math.nan

    return (
        pod.name,
        pod.state,
        pod.model or text.NONE,
        f"{pod.engine} {pod.version}".strip(),
        live(load.running),
        live(load.waiting),
        live(round(load.kv_usage, 3)),
        live(None if load.hit_rate is None else round(load.hit_rate, 3)),
        live(None if prompt_tokens_per_s is None else round(prompt_tokens_per_s)),
        live(round(load.generation_tokens_per_s)),
        float(pod.restarts),
        text.duration(time.time() - pod.started_at) if pod.started_at else text.NONE,
        reason,
    )


def _pods_note(shown: int, total: int) -> str:
    return f"{text.plural(total, 'pod')}" if shown == total else f"{shown:,} of {text.plural(total, 'pod')}"


def _no_pods(fleet: FleetSnapshot | None) -> str:
    if fleet is None:
        return text.state_box("Waiting for the fleet", "<span class='muted'>Control has not answered yet.</span>", sign="…")
    return text.state_box(
        "No pods",
        "<span class='muted'>The fleet file is empty, or the pod runtime does not run. <code>workbench status</code> tells which; "
        "<code>workbench up --fleet FILE.yaml</code> starts a fleet of your own.</span>",
    )


def _detail(view: PodView) -> str:
    pod, load = view.pod, view.load
    facts = {
        "Address": pod.address,
        "Namespace": pod.namespace,
        "Role": pod.role or "prefill and decode",
        "RoleSet": pod.roleset,
        "Revision": pod.revision,
        "Image": pod.image,
        "Started": f"{text.clock(pod.started_at)[:-4]} UTC" if pod.started_at else "",
        "Process": str(pod.pid) if pod.pid else "",
        "Mean TTFT": text.milliseconds(None if load.ttft_mean_s is None else load.ttft_mean_s * 1000),
        "Finished requests": text.count(load.requests_finished),
        "Prompt tokens looked up": text.count(load.prefix_queries),
        "of them cached": text.count(load.prefix_hits),
        "Last scrape": f"{text.duration(time.time() - load.scraped_at)} ago" if load.scraped_at else "never",
        "Scrape error": load.error,
        "Missing metrics": ", ".join(load.missing),
        "Labels": ", ".join(f"{key}={value}" for key, value in pod.labels.items()),
        "Reason": pod.reason,
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{text.escape(value)}</dd></div>" for name, value in facts.items() if value)
    link = f'<p><a href="router?pod={text.escape(pod.name)}">Decisions that chose this pod</a></p>'
    return f"<dl>{items}</dl>{link}"


def _kpis(snapshot: Snapshot) -> list[kpi.Kpi]:
    fleet, trends = snapshot.fleet, snapshot.trends
    pods = fleet.pods if fleet else []
    ready = sum(view.pod.ready for view in pods)
    waiting = sum(view.load.waiting for view in pods if view.load.state == "fresh")
    used = trends[-1].kv_usage if trends else None
    not_ready = len(pods) - ready
    none = text.NONE
    return [
        kpi.Kpi(
            "Pods ready",
            f"{ready}/{len(pods)}" if fleet else none,
            sub=text.plural(not_ready, "pod is", "pods are") + " not ready" if not_ready else "all of them" if pods else "",
            tone="bad" if pods and not ready else "warn" if not_ready else "",
            line=[float(point.ready) for point in trends],
            ceiling=float(len(pods)) or None,
        ),
        kpi.Kpi(
            "Requests",
            text.rate(fleet.requests_per_s) if fleet else none,
            "/s",
            f"10 s mean · {waiting:.0f} waiting",
            line=[point.requests_per_s for point in trends],
        ),
        kpi.Kpi(
            "Errors",
            text.rate(fleet.errors_per_s) if fleet else none,
            "/s",
            "10 s mean",
            tone="bad" if fleet and fleet.errors_per_s > 0 else "",
            line=[point.errors_per_s for point in trends],
        ),
        kpi.Kpi(
            "TTFT, 95th percentile",
            *_split(text.milliseconds(fleet.ttft_p95_ms if fleet else None)),
            "last minute" if fleet and fleet.ttft_p95_ms is not None else "no recent request",
            line=[point.ttft_p95_ms for point in trends],
        ),
        kpi.Kpi(
            "KV blocks in use",
            *_split(text.percent(used)),
            "mean of ready pods",
            tone="warn" if used is not None and used > 0.9 else "",
            line=[point.kv_usage for point in trends],
            ceiling=1.0,
        ),
        kpi.Kpi(
            "Prefix hit rate",
            *_split(text.percent(fleet.hit_rate if fleet else None)),
            "of tokens, 1 min",
            line=[point.hit_rate for point in trends],
            ceiling=1.0,
        ),
        _findings_kpi(snapshot.findings),
    ]


def _findings_kpi(found: tuple[Finding, ...] | None) -> kpi.Kpi:
    errors = sum(finding.severity == "error" for finding in found or ())
    warnings = sum(finding.severity == "warning" for finding in found or ())
    tone = "bad" if errors else "warn" if warnings else ""
    value = text.NONE if found is None else str(len(found))
    return kpi.Kpi("Findings", value, sub=findings.summary(found) or "nothing to report", tone=tone)


def _split(words: str) -> tuple[str, str]:
    """Number and unit apart, since they are set in two sizes."""
    number_part, _, unit = words.partition(" ")
    return number_part, unit
