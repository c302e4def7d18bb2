"""What the gateway counts, and the Prometheus text of it: sums over all workers, AIBrix's names where it has one.

Finished requests are counted a batch at a time (`Gateway.settle`); everything that can be derived from those is derived when somebody asks.
Series, by their first word, then labels:
  request    model, policy, reason, status, outcome
  hit        model, hit class
  ignored_header  name
  bucket     model, share of the prompt that the chosen pod was promised to hold
  tokens     model, kind (prompt, completion, cached)
  prefill    model, how the leg ended, HTTP status
  pair       role, model, pod
  decide, ttft    upper bound in seconds; *_us: their sums
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from backend.api.decisions import DecisionRecord
from backend.core.metrics import CONTENT_TYPE, Registry
from backend.gateway.series import OVERFLOW, Counters, Series, totals
from backend.gateway.targets import DECODE, PREFILL

if TYPE_CHECKING:
    from backend.gateway.service import Gateway

__all__ = ["CONTENT_TYPE", "count", "count_hit", "render"]

DECIDE_BOUNDS = (20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 5e-3, 20e-3, 100e-3, 1.0)
TTFT_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_DECIDE = [("decide", repr(bound)) for bound in DECIDE_BOUNDS] + [("decide", "+Inf")]
_TTFT = [("ttft", repr(bound)) for bound in TTFT_BOUNDS] + [("ttft", "+Inf")]
_MODEL = attrgetter("model")
_TOKENS = (
    ("prompt", attrgetter("usage_prompt_tokens")),
    ("completion", attrgetter("completion_tokens")),
    ("cached", attrgetter("cached_tokens")),
)
_NO_MATCH, *_MATCH_BUCKETS = ("0", "1-25", "26-50", "51-75", "76-100")


def count(counters: Counters, records: Sequence[DecisionRecord]) -> None:
    """Everything that finished requests add, summed over the batch first: most of them went alike."""
    for (model, policy, reason, status, outcome, bucket, hit), number in Counter(map(_how_it_went, records)).items():
        counters.add(("request", model, policy, reason, str(status), outcome), number)
        if bucket:
            counters.add(("bucket", model, bucket), number)
            if hit != "unknown":  # else it is counted when that is settled
                counters.add(("hit", model, hit), number)
    _count_times(counters, "decide", _DECIDE, DECIDE_BOUNDS, [record.decide_ms for record in records if record.reason])
    _count_times(counters, "ttft", _TTFT, TTFT_BOUNDS, [record.ttft_ms for record in records if record.ttft_ms is not None])
    _count_tokens(counters, records)
    for record in records:
        if record.prefill is not None:
            counters.add(("pair", "prefill", record.model, record.prefill.chosen))
            counters.add(("pair", "decode", record.model, record.chosen))


def _how_it_went(record: DecisionRecord) -> tuple[str, str, str, int, str, str, str]:
    # A model that does not exist is a client's text: it must not make series.
    model = record.model if record.candidates else ""
    predicted, prompt = record.predicted_tokens, record.prompt_tokens
    if predicted is None:
        bucket = ""
    elif predicted <= 0 or prompt <= 0:
        bucket = _NO_MATCH
    else:
        bucket = _MATCH_BUCKETS[(predicted * 100 - 1) // (prompt * 25)] if predicted <= prompt else _MATCH_BUCKETS[-1]
    return model, record.policy, record.reason, record.status, record.outcome, bucket, record.hit_class


def _count_tokens(counters: Counters, records: Sequence[DecisionRecord]) -> None:
    for model in set(map(_MODEL, records)):
        told = [record for record in records if record.model == model and record.usage_prompt_tokens is not None]
        for kind, amount in _TOKENS:
            number = sum(filter(None, map(amount, told)))
            if number:
                counters.add(("tokens", model, kind), number)


def _count_times(counters: Counters, kind: str, series: Sequence[Series], bounds: Sequence[float], times_ms: list[float]) -> None:
    """A histogram: sorted once, so that a bound is looked for in the times instead of each time among the bounds."""
    times_ms.sort()
    below = 0
    for one, bound in zip(series, bounds, strict=False):
        upto = bisect_right(times_ms, bound * 1e3)
        if upto > below:
            counters.add(one, upto - below)
            below = upto
    if len(times_ms) > below:
        counters.add(series[-1], len(times_ms) - below)
    counters.add((f"{kind}_us",), int(sum(times_ms) * 1e3))


def count_hit(counters: Counters, record: DecisionRecord) -> None:
    """For a record whose class of hit was not settled when it was counted."""
    counters.add(("hit", record.model, record.hit_class))


def render(gateway: Gateway) -> bytes:
    gateway.registry_view.gateway = gateway
    return gateway.registry.render()


class GatewayCollector(Collector):
    """All rows at the moment of a scrape."""

    def __init__(self, registry: Registry) -> None:
        self.gateway: Gateway | None = None
        registry.collector.register(self)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        if self.gateway is None:
            return
        sums = totals(self.gateway.folder)
        yield from _requests(sums)
        yield from _routing(sums)
        yield from _times(sums)
        yield from _plain(sums)
        yield from _pairs(sums)
        yield from _in_flight(self.gateway)


def _having(sums: dict[Series, int], kind: str) -> Iterator[tuple[Series, int]]:
    return ((series[1:], value) for series, value in sums.items() if series[0] == kind)


def _requests(sums: dict[Series, int]) -> Iterator[Metric]:
    finished = CounterMetricFamily(
        "gateway_requests", "Requests by how they ended.", labels=("model", "policy", "reason", "status", "outcome")
    )
    total = CounterMetricFamily("gateway_request", "Requests.")
    success: dict[tuple[str, ...], int] = {}
    fail: dict[tuple[str, ...], int] = {}
    number = 0
    for (model, policy, reason, status, outcome), value in _having(sums, "request"):
        finished.add_metric((model, policy, reason, status, outcome), value)
        number += value
        kind = (model, f"gateway_{outcome}", status)
        group = success if outcome == "ok" else fail
        group[kind] = group.get(kind, 0) + value
    total.add_metric((), number)
    yield finished
    yield total
    for name, group in (("success", success), ("fail", fail)):
        family = CounterMetricFamily(
            f"gateway_request_model_{name}", "Requests, as AIBrix counts them.", labels=("model", "status", "status_code")
        )
        for labels, value in group.items():
            family.add_metric(labels, value)
        yield family


def _routing(sums: dict[Series, int]) -> Iterator[Metric]:
    selection = CounterMetricFamily(
        "aibrix_prefix_cache_routing_selection", "How prefix-cache chose.", labels=("model", "selection", "using_kv_sync")
    )
    chosen: dict[tuple[str, str], int] = {}
    for (model, policy, reason, _, _), value in _having(sums, "request"):
        if policy == "prefix-cache" and reason:
            chosen[model, reason] = chosen.get((model, reason), 0) + value
    for (model, reason), value in chosen.items():
        selection.add_metric((model, reason, "true"), value)
    yield selection
    match = CounterMetricFamily(
        "aibrix_prefix_cache_routing_decisions",
        "Decisions by the share of the prompt that the chosen pod was promised to hold.",
        labels=("model", "match_percent_bucket", "using_kv_sync"),
    )
    for (model, bucket), value in _having(sums, "bucket"):
        match.add_metric((model, bucket, "true"), value)
    yield match
    errors = CounterMetricFamily("aibrix_prefix_cache_routing_errors", "Decisions that had to degrade.", labels=("reason",))
    for (reason,), value in _having(sums, "routing_error"):
        errors.add_metric((reason,), value)
    yield errors
    hits = CounterMetricFamily("gateway_predictions", "Promised against real prefix hits.", labels=("model", "hit_class"))
    for labels, value in _having(sums, "hit"):
        hits.add_metric(labels, value)
    yield hits


def _times(sums: dict[Series, int]) -> Iterator[Metric]:
    for name, kind, series, text in (
        ("gateway_decision_seconds", "decide", _DECIDE, "Request read to pod chosen, tokenizing included."),
        ("gateway_time_to_first_token_seconds", "ttft", _TTFT, "Forwarded to first token (streams) or first byte (others)."),
    ):
        running, buckets = 0, []
        for one in series:
            running += sums.get(one, 0)
            buckets.append((one[1], running))
        family = HistogramMetricFamily(name, text)
        family.add_metric((), buckets, sums.get((f"{kind}_us",), 0) / 1e6)
        yield family


def _plain(sums: dict[Series, int]) -> Iterator[Metric]:
    tokens = CounterMetricFamily("gateway_tokens", "Tokens as engines reported them.", labels=("model", "kind"))
    for labels, value in _having(sums, "tokens"):
        tokens.add_metric(labels, value)
    yield tokens
    retries = CounterMetricFamily("gateway_retries", "Requests given to another pod before their first byte.", labels=("reason",))
    for labels, value in _having(sums, "retry"):
        retries.add_metric(labels, value)
    yield retries
    ignored = CounterMetricFamily("gateway_ignored_headers", "Headers of AIBrix that have no effect here.", labels=("header",))
    for labels, value in _having(sums, "ignored_header"):
        ignored.add_metric(labels, value)
    yield ignored
    for name, kind, text in (
        ("gateway_records_dropped", "records_dropped", "Decision records lost: the stream server was away, or it could not be written."),
        ("gateway_malformed_requests", "malformed", "Messages refused before they were a request: malformed, too large, too slow."),
        ("gateway_worker_restarts", "worker_restarts", "Workers that died and were started again."),
        ("gateway_metric_series_dropped", OVERFLOW[0], "Additions to series for which there was no room."),
    ):
        family = CounterMetricFamily(name, text)
        family.add_metric((), sums.get((kind,), 0))
        yield family


def _pairs(sums: dict[Series, int]) -> Iterator[Metric]:
    success = CounterMetricFamily("gateway_prefill_request_success", "Prefill legs that were answered.", labels=("model",))
    fail = CounterMetricFamily("gateway_prefill_request_fail", "Prefill legs that failed.", labels=("model", "status", "status_code"))
    for (model, how, status), value in _having(sums, "prefill"):
        if how == "ok":
            success.add_metric((model,), value)
        else:
            fail.add_metric((model, how, status), value)
    yield success
    yield fail
    selected = {
        role: CounterMetricFamily(f"pd_selected_{role}_pod", f"Requests by the {role} pod chosen.", labels=("model", "pod"))
        for role in (PREFILL, DECODE)
    }
    for (role, model, pod), value in _having(sums, "pair"):
        selected[role].add_metric((model, pod), value)
    yield from selected.values()


def _in_flight(gateway: Gateway) -> Iterator[Metric]:
    pods = GaugeMetricFamily("gateway_pod_in_flight_requests", "Requests on a pod, all workers.", labels=("model", "pod"))
    prefills = GaugeMetricFamily("gateway_prefill_outstanding_requests", "Prefills under way.", labels=("model",))
    models: dict[str, int] = {}
    outstanding: dict[str, int] = {}
    rows = gateway.counts.used_rows()
    values = gateway.counts.in_flight([row.slot for row in gateway.targets.rows], rows)
    for row, value in zip(gateway.targets.rows, values, strict=True):
        pods.add_metric((row.pod.model, row.pod.name), value)
        models[row.pod.model] = models.get(row.pod.model, 0) + value
        if row.pod.place.role == PREFILL:
            outstanding[row.pod.model] = outstanding.get(row.pod.model, 0) + value
    yield pods
    for model, value in outstanding.items():
        prefills.add_metric((model,), value)
    yield prefills
    by_model = GaugeMetricFamily("gateway_model_in_flight_requests", "Requests on all pods of a model.", labels=("model",))
    for model, value in models.items():
        by_model.add_metric((model,), value)
    yield by_model
    everything = GaugeMetricFamily("gateway_in_flight_requests", "Requests on all pods.")
    everything.add_metric((), sum(values))
    yield everything
    workers = GaugeMetricFamily("gateway_workers", "Workers that have a row of counts.")
    workers.add_metric((), len(rows))
    yield workers
