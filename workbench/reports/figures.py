"""Figures of requests, pods and the fleet as polars tables: pure, over the columns that `gather` keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workbench.reports.model import Window

GROUP = ("model", "policy")
PERCENTILES = (50, 90, 95, 99)
TRUE_CLASSES = ("exact", "within_block")
STEPS_S = (60, 300, 600, 900, 1800, 3600, 7200, 21600, 86400)
MOST_STEPS = 48
FAILED_OUTCOMES = ("upstream_error", "upstream_reset", "timeout", "aborted", "truncated")
FAILED = pl.col("outcome").is_in(FAILED_OUTCOMES) | (pl.col("status") >= 500)
"""The fleet's fault; a client that left or sent nonsense is not."""


def outcomes(requests: pl.DataFrame) -> pl.DataFrame:
    """Requests by model, policy and outcome."""
    counted = requests.group_by(*GROUP, "outcome").agg(pl.len().cast(pl.Int64).alias("requests"))
    share = (pl.col("requests") / pl.col("requests").sum()).alias("share")
    return counted.with_columns(share).sort("requests", *GROUP, "outcome", descending=[True, False, False, False])


def steps(requests: pl.DataFrame, window: Window) -> pl.DataFrame:
    """Requests, those answered and those failed, and times to first token by step of the window; steps without a request are rows too."""
    size = step_s(window)
    first = int(window.since // size * size)
    last = int(-(-window.until // size) * size)
    begins = pl.DataFrame({"from": range(first, max(last, first + size), size)}, schema={"from": pl.Int64})
    found = (
        requests.with_columns((pl.col("at").dt.epoch("s") // size * size).alias("from"))
        .group_by("from")
        .agg(
            pl.len().cast(pl.Int64).alias("requests"),
            ((pl.col("outcome") == "ok") & ~FAILED).sum().cast(pl.Int64).alias("answered"),
            FAILED.sum().cast(pl.Int64).alias("failed"),
            pl.col("ttft_ms").quantile(0.5, "nearest").alias("ttft_p50_ms"),
            pl.col("ttft_ms").quantile(0.95, "nearest").alias("ttft_p95_ms"),
        )
    )
    joined = begins.join(found, on="from", how="left", maintain_order="left")
    zeros = [pl.col(name).fill_null(0) for name in ("requests", "answered", "failed")]
    return joined.with_columns(pl.from_epoch("from", "s").cast(pl.Datetime("us", "UTC")), *zeros)


def step_s(window: Window) -> int:
    """The smallest round step of which the window has no more than `MOST_STEPS`."""
    return next((size for size in STEPS_S if (window.until - window.since) / size <= MOST_STEPS), STEPS_S[-1])


def latency(requests: pl.DataFrame) -> pl.DataFrame:
    """Percentiles in milliseconds by model, policy and measure; E2E of whole answers only, since a failure's length says nothing."""
    measures = {"TTFT": ("ttft_ms", pl.lit(True)), "ITL": ("itl_ms", pl.lit(True)), "E2E": ("total_ms", pl.col("outcome") == "ok")}
    parts = []
    for measure, (column, where) in measures.items():
        value = pl.col(column)
        parts.append(
            requests.filter(where & value.is_not_null())
            .group_by(*GROUP)
            .agg(
                pl.lit(measure).alias("measure"),
                pl.len().cast(pl.Int64).alias("requests"),
                value.mean().alias("mean_ms"),
                *(value.quantile(percent / 100, "nearest").alias(f"p{percent}_ms") for percent in PERCENTILES),
            )
        )
    order = pl.col("measure").cast(pl.Enum(list(measures)))
    return pl.concat(parts).sort(*GROUP, order)


def hits(requests: pl.DataFrame) -> pl.DataFrame:
    """Cached prompt tokens and how true the promises were, by model and policy."""
    return requests.group_by(*GROUP).agg(pl.len().cast(pl.Int64).alias("requests"), *_hit_figures()).sort(*GROUP)


def _hit_figures() -> list[pl.Expr]:
    told = pl.col("cached_tokens").is_not_null() & pl.col("usage_prompt_tokens").is_not_null()
    prompt, cached = (pl.col(name).filter(told).sum() for name in ("usage_prompt_tokens", "cached_tokens"))
    checked = (pl.col("hit_class") != "unpredicted").sum().cast(pl.Int64)
    return [
        prompt.alias("prompt_tokens"),
        cached.alias("cached_tokens"),
        _share(cached, prompt).alias("hit_rate"),
        checked.alias("predictions"),
        _share(pl.col("hit_class").is_in(TRUE_CLASSES).sum(), checked).alias("within_a_block"),
    ]


def _share(part: pl.Expr, whole: pl.Expr) -> pl.Expr:
    return pl.when(whole > 0).then(part / whole)


def classes(requests: pl.DataFrame, meanings: dict[str, str]) -> pl.DataFrame:
    """Requests by class of their prediction, in the order of `meanings`; shares are of those that could be compared."""
    counted = dict(requests.group_by("hit_class").len().iter_rows())
    checked = sum(count for name, count in counted.items() if name != "unpredicted")
    names = [name for name in (*meanings, *sorted(counted.keys() - meanings.keys())) if counted.get(name)]
    return pl.DataFrame(
        {
            "hit_class": names,
            "requests": [counted[name] for name in names],
            "share": [counted[name] / checked if name != "unpredicted" and checked else None for name in names],
            "meaning": [meanings.get(name, "") for name in names],
        },
        schema={"hit_class": pl.String, "requests": pl.Int64, "share": pl.Float64, "meaning": pl.String},
    )


def pods(requests: pl.DataFrame, known: Sequence[str]) -> pl.DataFrame:
    """What each pod did, busiest first; pods of the fleet that got nothing are rows with 0."""
    total = max(1, requests.filter(pl.col("chosen") != "").height)
    served = (
        requests.filter(pl.col("chosen") != "")
        .group_by(pl.col("chosen").alias("pod"))
        .agg(
            pl.len().cast(pl.Int64).alias("requests"),
            (pl.len() / total).alias("share"),
            FAILED.sum().cast(pl.Int64).alias("failed"),
            pl.col("completion_tokens").sum().alias("completion_tokens"),
            *_hit_figures()[:3],
            pl.col("in_flight").mean().alias("in_flight_mean"),
            pl.col("ttft_ms").quantile(0.95, "nearest").alias("ttft_p95_ms"),
        )
    )
    everyone = pl.DataFrame({"pod": sorted({*known, *served["pod"]})}, schema={"pod": pl.String})
    zeros = [pl.col(name).fill_null(0) for name in ("requests", "share", "failed", "completion_tokens", "prompt_tokens", "cached_tokens")]
    return everyone.join(served, on="pod", how="left").with_columns(zeros).sort(["requests", "pod"], descending=[True, False])


def errors(requests: pl.DataFrame, reasons: dict[str, tuple[str, str]]) -> pl.DataFrame:
    """Requests that did not end well, by outcome, status and pod, with what is known of such outcomes."""
    bad = requests.filter((pl.col("outcome") != "ok") | (pl.col("status") >= 400))
    counted = (
        bad.group_by("outcome", "status", pl.col("chosen").alias("pod"))
        .agg(pl.len().cast(pl.Int64).alias("requests"), pl.col("at").min().alias("first"), pl.col("at").max().alias("last"))
        .sort(["requests", "outcome", "pod"], descending=[True, False, False])
    )
    known = [reasons.get(outcome, ("", "")) for outcome in counted["outcome"]]
    texts: list[Any] = [
        pl.Series("cause", [cause for cause, _ in known], dtype=pl.String),
        pl.Series("fix", [fix for _, fix in known], dtype=pl.String),
    ]
    return counted.with_columns(texts)


def changes(fleet: pl.DataFrame, seen: pl.DataFrame, window: Window) -> pl.DataFrame:
    """What is known to have changed: pods that began in the window, pods that are gone, pods that are not ready.

    Known from the fleet as it is and from the candidates of requests: a pod that came and went without a request leaves no trace.
    """
    rows: list[tuple[str, str, Any, str]] = []
    now = {row["pod"]: row for row in fleet.iter_rows(named=True)}
    for name, row in now.items():
        at = row["started_at"]
        if at is not None and window.since <= at.timestamp() < window.until:
            detail = f"{row['engine']} {row['version']}".strip() + (
                f", restarted {row['restarts']} times so far" if row["restarts"] else ""
            )
            rows.append((name, "started again" if row["restarts"] else "started", at, detail))
        if not row["ready"]:
            rows.append((name, f"not ready ({row['state']})", None, row["reason"]))
    left = "not in the fleet any more; the time is its last request's"
    rows += [(row["pod"], "gone", row["last"], left) for row in seen.iter_rows(named=True) if row["pod"] not in now]
    kinds: dict[str, Any] = {"pod": pl.String, "change": pl.String, "at": pl.Datetime("us", "UTC"), "detail": pl.String}
    return pl.DataFrame(rows, schema=kinds, orient="row").sort("at", "pod", descending=[True, False], nulls_last=True)
