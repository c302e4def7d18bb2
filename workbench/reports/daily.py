"""The daily report: what 24 hours of a fleet were like. `compose` makes it from what was gathered; pure, no clock, no I/O."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.reports import drawing, figures, texts
from workbench.reports.gather import MOST_REQUESTS, Gathered, gather
from workbench.reports.model import Figure, Report, Section, Table, Window, moment

if TYPE_CHECKING:
    from workbench.client import AsyncWorkbench

NAME = "daily"
PODS_DRAWN = 16
NO_REQUESTS = "No request arrived in this time. `workbench replay conversation-sample` sends some."


async def daily(workbench: AsyncWorkbench, window: Window, *, now: float, most: int = MOST_REQUESTS) -> Report:
    """Ask and compose."""
    return compose(await gather(workbench, window, now=now, most=most))


def compose(found: Gathered) -> Report:
    facts = _facts(found)
    return Report(
        name=NAME,
        title="Daily report",
        window=found.window,
        made_at=found.read_at,
        figures=_headlines(facts),
        facts=facts,
        sections=[
            _requests(found),
            _latency(found),
            _hits(found, facts),
            _pods(found),
            _kv(found),
            _shared(found),
            _index(found),
            _errors(found),
            _findings(found),
            _fleet(found),
        ],
    )


def _facts(found: Gathered) -> dict[str, Any]:
    requests, pods = found.requests, found.fleet.rows if found.fleet is not None else []
    facts: dict[str, Any] = {"pods": len(pods), "pods_ready": sum(view.pod.ready for view in pods), "findings": len(found.findings or ())}
    if requests is None:
        return facts
    failed = requests.filter(figures.FAILED).height
    ttft = requests["ttft_ms"].drop_nulls()
    told = requests.drop_nulls(["cached_tokens", "usage_prompt_tokens"])
    prompt = int(told["usage_prompt_tokens"].sum())
    checked = requests.filter(pl.col("hit_class") != "unpredicted")
    true = checked.filter(pl.col("hit_class").is_in(figures.TRUE_CLASSES)).height
    return {
        **facts,
        "requests": requests.height,
        "failed": failed,
        "failed_share": failed / requests.height if requests.height else None,
        "ttft_p50_ms": ttft.quantile(0.5, "nearest"),
        "ttft_p95_ms": ttft.quantile(0.95, "nearest"),
        "prompt_tokens": prompt,
        "hit_rate": int(told["cached_tokens"].sum()) / prompt if prompt else None,
        "predictions": checked.height,
        "within_a_block": true / checked.height if checked.height else None,
        "complete": found.cut_at is None,
    }


def _headlines(facts: dict[str, Any]) -> list[Figure]:
    def share(name: str) -> str:
        value = facts.get(name)
        return "–" if value is None else f"{value:.1%}"

    ttft = facts.get("ttft_p95_ms")
    unread = "could not be read" if "requests" not in facts else ""
    return [
        Figure("Requests", f"{facts['requests']:,}" if not unread else "–", unread or ("" if facts["complete"] else "the newest only")),
        Figure("Failed", share("failed_share"), unread or f"{facts['failed']:,} requests"),
        Figure("TTFT p95", "–" if ttft is None else _time(ttft), unread or "time to first token"),
        Figure("Hit rate", share("hit_rate"), unread or f"of {facts['prompt_tokens']:,} prompt tokens"),
        Figure("Promise kept", share("within_a_block"), unread or f"within a block, {facts['predictions']:,} compared"),
        Figure("Pods ready", f"{facts['pods_ready']} of {facts['pods']}", "now"),
        Figure("Findings", str(facts["findings"]), "now"),
    ]


def _requests(found: Gathered) -> Section:
    title = "Requests"
    if found.requests is None:
        return Section(title, problem=found.problems["requests"])
    table, steps = figures.outcomes(found.requests), figures.steps(found.requests, found.window)
    lines = []
    if found.cut_at is not None:
        lines.append(f"There were too many to read: figures of requests begin at {moment(found.cut_at)} UTC.")
    if found.requests.height:
        most = steps.sort("requests", descending=True).row(0, named=True)
        span = figures.step_s(found.window)
        lines.append(
            f"{found.requests.height:,} requests, {found.requests.height / max(1e-9, found.window.hours):,.1f} an hour. "
            f"The busiest {_span(span)} began at {most['from']:%Y-%m-%d %H:%M} UTC with {most['requests']:,}."
        )
    drawn = ""
    if found.requests.height:
        others = (steps["requests"] - steps["answered"] - steps["failed"]).to_list()
        drawn = drawing.bars(
            _labels(steps, found.window),
            {"answered": steps["answered"].to_list(), "failed": steps["failed"].to_list(), "refused, or left by the client": others},
            alt=f"Requests by {_span(figures.step_s(found.window))}; the numbers are in the table by time.",
        )
    by_time = Table("by_time", steps.filter(pl.col("requests") > 0), NO_REQUESTS, folded=True)
    return Section(title, lines, drawn, [Table("requests", table, NO_REQUESTS), by_time])


def _latency(found: Gathered) -> Section:
    title = "Latency"
    if found.requests is None:
        return Section(title, problem=found.problems["requests"])
    steps = figures.steps(found.requests, found.window)
    drawn = ""
    if steps["ttft_p95_ms"].drop_nulls().len():
        drawn = drawing.lines(
            _labels(steps, found.window),
            {"TTFT p50 (ms)": steps["ttft_p50_ms"].to_list(), "TTFT p95 (ms)": steps["ttft_p95_ms"].to_list()},
            alt="Time to first token over time, median and 95th percentile, in milliseconds.",
        )
    lines = ["TTFT: forwarding to first token. ITL: mean gap between a stream's tokens. E2E: arrival to last byte of whole answers."]
    return Section(title, lines, drawn, [Table("latency", figures.latency(found.requests), NO_REQUESTS)])


def _hits(found: Gathered, facts: dict[str, Any]) -> Section:
    title = "Prefix hits and promises"
    if found.requests is None:
        return Section(title, problem=found.problems["requests"])
    lines = []
    if facts["hit_rate"] is not None:
        lines.append(f"{facts['hit_rate']:.2%} of {facts['prompt_tokens']:,} prompt tokens were cached, as the engines report.")
    if facts["within_a_block"] is not None:
        lines.append(f"{facts['within_a_block']:.2%} of {facts['predictions']:,} promises were true within one block.")
    elif found.requests.height:
        lines.append("No promise could be compared: the policy asked no index, or engines don't report their hits.")
    tables = [
        Table("hit_classes", figures.classes(found.requests, texts.CLASSES), NO_REQUESTS),
        Table("hits", figures.hits(found.requests), NO_REQUESTS, texts.POD_COLUMNS),
    ]
    return Section(title, lines, "", tables)


def _pods(found: Gathered) -> Section:
    title = "Busiest and idlest pods"
    if found.requests is None:
        return Section(title, problem=found.problems["requests"])
    known = [view.pod.name for view in found.fleet] if found.fleet is not None else []
    table = figures.pods(found.requests, known)
    lines, drawn = [], ""
    if found.requests.height and table.height:
        first, last = table.row(0, named=True), table.row(-1, named=True)
        lines.append(
            f"Busiest: {first['pod']} with {first['requests']:,} requests ({first['share']:.1%}). "
            f"Idlest: {last['pod']} with {last['requests']:,} ({last['share']:.1%})."
        )
        shown = table.head(PODS_DRAWN)
        items = [(row["pod"], float(row["requests"]), f"{row['requests']:,} ({row['share']:.1%})") for row in shown.iter_rows(named=True)]
        drawn = drawing.rows(items, alt="Requests by pod, busiest first.")
        if table.height > PODS_DRAWN:
            lines.append(f"The drawing shows the {PODS_DRAWN} busiest of {table.height:,} pods.")
    return Section(title, lines, drawn, [Table("pods", table, "The fleet has no pods.", texts.POD_COLUMNS)])


def _kv(found: Gathered) -> Section:
    title = "KV use"
    columns = ["pod", "kv_usage", "running", "waiting", "load_state"]
    table = found.fleet.df().select(columns) if found.fleet is not None else pl.DataFrame()
    lines = ["As it was when this report was made; engines keep no history of it."]
    if found.cache is not None:
        data = found.cache.data
        blocks = pl.DataFrame({"pod": data.pods, "blocks": data.totals}, schema={"pod": pl.String, "blocks": pl.Int64})
        table = table.join(blocks, on="pod", how="left")
        lines.append(
            f"{data.distinct:,} distinct blocks, {data.copies:,} copies: {found.cache.duplicate_ratio:.2f} a block."
            + (" The index's writer was away: this is its last state." if data.stale else "")
        )
    else:
        lines.append(f"Blocks held are not known: {found.problems.get('cache', 'the index was not read')}")
    meanings = {**texts.POD_COLUMNS, "blocks": "KV blocks that the index holds for the pod"}
    return Section(title, lines, "", [Table("kv", table, "The fleet has no pods.", meanings)])


def _shared(found: Gathered) -> Section:
    title = "Most shared prefixes"
    if found.cache is None:
        return Section(title, problem=found.problems.get("cache", ""))
    table = found.cache.shared().df()
    meanings = {"key": "hash of the block and all before it; prompts are not kept", "children": "blocks that continue it"}
    return Section(title, [], "", [Table("shared_prefixes", table, "No prefix is held by more than one pod.", meanings, shown=20)])


def _index(found: Gathered) -> Section:
    title = "Event index"
    if found.sources is None:
        return Section(title, problem=found.problems.get("sources", ""))
    columns = ["pod", "rank", "status", "lag_ms", "blocks", "batches", "gaps", "missed", "restarts", "reconnects", "skipped", "reason"]
    table = found.sources.df().select(columns)
    lines = ["Counted since the index began to follow each source; lag is that of the newest batch."]
    if table.height:
        live = table.filter(pl.col("status") == "live").height
        lines.append(
            f"{live} of {table.height} sources live, {table['gaps'].sum():,} gaps, "
            f"{table['missed'].sum():,} batches lost for good, {table['skipped'].sum():,} events left out."
        )
    empty = "No event source. Engines need the ZMQ publisher on: --kv-events-config."
    return Section(title, lines, "", [Table("index_sources", table, empty)])


def _errors(found: Gathered) -> Section:
    title = "Requests that did not end well"
    if found.requests is None:
        return Section(title, problem=found.problems["requests"])
    empty = "Every request was answered in full." if found.requests.height else NO_REQUESTS
    return Section(title, [], "", [Table("errors", figures.errors(found.requests, texts.OUTCOMES), empty)])


def _findings(found: Gathered) -> Section:
    lines = ["What was wrong or degraded when this report was made; findings that are gone are not kept."]
    table = found.findings.df().drop("id") if found.findings is not None else pl.DataFrame()
    return Section("Findings", lines, "", [Table("findings", table, "Nothing is wrong.")])


def _fleet(found: Gathered) -> Section:
    columns = ["pod", "state", "model", "engine", "version", "role", "ready", "restarts", "started_at", "reason"]
    everything = found.fleet.df() if found.fleet is not None else pl.DataFrame()
    seen = found.seen if found.seen is not None else pl.DataFrame(schema={"pod": pl.String, "first": pl.Datetime, "last": pl.Datetime})
    changes = figures.changes(everything, seen, found.window)
    lines = ["Known from start times and from the candidates of requests: a pod that came and went without a request leaves no trace here."]
    tables = [
        Table("fleet_changes", changes, "No pod started, went or was not ready."),
        Table("fleet", everything.select(columns), "The fleet has no pods."),
    ]
    return Section("What changed in the fleet", lines, "", tables)


def _labels(steps: pl.DataFrame, window: Window) -> list[str]:
    form = "%H:%M" if window.hours <= 48 else "%d %b"
    begins: list[datetime] = steps["from"].to_list()
    return [at.strftime(form) for at in begins]


def _time(milliseconds: float) -> str:
    return f"{milliseconds:,.0f} ms" if milliseconds < 10_000 else f"{milliseconds / 1000:,.1f} s"


def _span(seconds: int) -> str:
    """
    >>> _span(1800), _span(3600), _span(21600)
    ('30 minutes', 'hour', '6 hours')
    """
    if seconds < 3600:
        return "minute" if seconds == 60 else f"{seconds // 60} minutes"
    return "hour" if seconds == 3600 else f"{seconds // 3600} hours"
