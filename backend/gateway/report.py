"""What remains of a finished request: its decision record, its counters, and a log line when something went wrong."""

from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING

from backend.api.decisions import DecisionRecord, Outcome
from backend.gateway import metrics
from backend.gateway.classify import classify

if TYPE_CHECKING:
    from backend.gateway.exchange import Exchange
    from backend.gateway.service import Gateway

log = logging.getLogger(__name__)


def finished(gateway: Gateway, exchange: Exchange, outcome: Outcome, policy: str) -> None:
    record = _record(gateway, exchange, outcome, policy)
    metrics.count(gateway.counters, record)
    if outcome not in ("ok", "client_gone"):
        level = logging.INFO if outcome == "refused" and record.status < 500 else logging.WARNING
        log.log(level, "request %s: %s %d, %s", record.id, outcome, record.status, record.error)
    evidence = exchange.evidence
    if evidence is None or exchange.asked is None:
        gateway.records.put(record)
        return
    if record.cached_tokens is not None and record.cached_tokens != record.predicted_tokens:
        evidence.stored_after, evidence.removed_after = gateway.prefix.counters(record.chosen)
    record.hit_class = classify(record.predicted_tokens, record.cached_tokens, record.block_size, evidence)
    if record.hit_class == "unknown":
        gateway.records.put_doubtful(record, evidence)
    else:
        gateway.records.put(record)


def _record(gateway: Gateway, exchange: Exchange, outcome: Outcome, policy: str) -> DecisionRecord:
    request, asked, decision, pod = exchange.request, exchange.asked, exchange.decision, exchange.chosen
    now = perf_counter()
    record = DecisionRecord(
        id=f"{exchange.trace_id}-{exchange.id[:8]}" if exchange.trace_id else exchange.id,
        at=request.at,
        path=request.head.path.decode("latin-1"),
        user=request.head.user,
        worker=gateway.row,
        policy=policy,
        attempts=exchange.attempts,
        status=exchange.status,
        outcome=outcome,
        total_ms=(now - request.began) * 1e3,
        request_bytes=len(request.body),
        response_bytes=exchange.response_bytes,
    )
    if exchange.error and outcome != "ok":
        record.error = exchange.error
    if asked is not None:
        record.model = asked.model
        record.stream = asked.stream
    if decision is not None:
        view, fleet, _ = decision.inputs
        record.reason = decision.reason
        record.candidates = list(fleet.candidates)
        record.terms = decision.terms
        record.prompt_tokens = view.prompt_tokens
        record.index_state = exchange.index_state  # type: ignore[assignment]
        record.predicted_tokens = exchange.predicted
        record.in_flight = exchange.in_flight
        record.decide_ms = (exchange.decided_at - request.began) * 1e3
    if pod is not None:
        record.chosen = pod.name
        record.pod_ip = pod.ip
        if exchange.predicted is not None:
            record.block_size = gateway.prefix.block_size(pod.name)
    if exchange.connected_at:
        record.connect_ms = (exchange.connected_at - exchange.decided_at) * 1e3
    _times_and_usage(record, exchange)
    return record


def _times_and_usage(record: DecisionRecord, exchange: Exchange) -> None:
    notes, usage = exchange.notes, exchange.usage
    if usage is not None:
        record.cached_tokens = usage.cached
        record.usage_prompt_tokens = usage.prompt
        record.completion_tokens = usage.completion
    if not exchange.first_at:
        return
    first = notes.token_at if record.stream and notes is not None and notes.token_at else exchange.first_at
    record.ttft_ms = (first - exchange.sent_at) * 1e3
    if notes is not None and notes.token_at:
        count = record.completion_tokens or notes.events
        if count > 1 and notes.last_at > notes.token_at:
            record.itl_ms = (notes.last_at - notes.token_at) / (count - 1) * 1e3
