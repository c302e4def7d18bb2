"""What remains of finished requests: decision records, counters, and a log line where something went wrong. Made for a batch at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from time import perf_counter, time
from typing import TYPE_CHECKING

from backend.api.decisions import DecisionRecord, PrefillChoice
from backend.gateway import metrics
from backend.gateway.classify import Evidence, classify
from backend.gateway.model import PairView
from backend.gateway.pair_exchange import PairExchange

if TYPE_CHECKING:
    from backend.gateway.exchange import Exchange
    from backend.gateway.service import Gateway

log = logging.getLogger(__name__)

_NO_TERMS: dict[str, list[float]] = {}


def settle(gateway: Gateway, finished: Sequence[Exchange]) -> None:
    """Every request of `finished` counted, and its record handed to the publisher."""
    clock_offset = time() - perf_counter()
    records: list[DecisionRecord] = []
    for exchange in finished:
        try:
            record = _record(gateway, exchange, clock_offset)
            if isinstance(exchange, PairExchange):
                record.prefill = _prefill(exchange)
            _publish(gateway, record, exchange)
            records.append(record)
        except Exception:
            # The edge of a request that is over: what is wrong with one must not cost the others their records.
            log.exception("the record of request %s is lost", exchange.own_id.decode())
            gateway.count_lost_records(1)
    metrics.count(gateway.counters, records)


def _publish(gateway: Gateway, record: DecisionRecord, exchange: Exchange) -> None:
    if record.outcome != "ok" and record.outcome != "client_gone":
        level = logging.INFO if record.outcome == "refused" and record.status < 500 else logging.WARNING
        log.log(level, "request %s: %s %d, %s", record.id, record.outcome, record.status, record.error)
    predicted, cached = record.predicted_tokens, record.cached_tokens
    if predicted == cached:
        record.hit_class = "exact" if predicted is not None else "unpredicted"
    elif predicted is not None and cached is not None:
        others = record.in_flight if record.prefill is None else record.prefill.in_flight
        evidence = Evidence(*exchange.source[1:], *exchange.counts_after, others)
        record.hit_class = classify(predicted, cached, record.block_size, evidence)
        if record.hit_class == "unknown":
            return gateway.records.put_doubtful(record, evidence)
    return gateway.records.put(record)


def _prefill(exchange: PairExchange) -> PrefillChoice | None:
    pair, leg = exchange.pair, exchange.leg
    if pair is None or leg is None:
        return None
    pairs = pair.inputs[1]
    assert isinstance(pairs, PairView)
    return PrefillChoice(
        chosen=leg.pod.name,
        pod_ip=leg.pod.ip,
        group=pair.group,
        candidates=pairs.prefill.candidates,  # type: ignore[arg-type]
        groups=list(map(" ".join, pairs.prefill_groups)),
        decode_groups=list(map(" ".join, pairs.groups)),
        terms=pair.prefill_terms,  # type: ignore[arg-type]
        attempts=list(exchange.prefill_attempts),
        in_flight=pairs.prefill.in_flight[pair.prefill],
        wait_ms=(leg.ended_at - leg.sent_at) * 1e3 if leg.status else None,
        error=exchange.prefill_error,
    )


def _record(gateway: Gateway, exchange: Exchange, clock_offset: float) -> DecisionRecord:
    head, asked, decision, pod, began = exchange.head, exchange.asked, exchange.decision, exchange.chosen, exchange.began
    notes, told = exchange.notes, exchange.tokens
    name, model, stream = exchange.own_id.decode(), "", False
    reason, prompt_tokens, in_flight, decide_ms = "", 0, 0, 0.0
    candidates: Sequence[str] = ()
    terms: Mapping[str, Sequence[float]] = _NO_TERMS
    if head.trace_id:
        name = f"{head.trace_id.decode()}-{name[:8]}"
    if asked is not None:
        model, stream = asked.model, asked.stream
    if decision is not None:
        view, fleet, _ = decision.inputs
        reason, terms, candidates = decision.reason, decision.terms, fleet.candidates
        prompt_tokens, in_flight = view.prompt_tokens, fleet.in_flight[decision.pod]
        decide_ms = (exchange.decided_at - began) * 1e3
    first = exchange.first_at
    if stream and notes is not None and notes.token_at:
        first = notes.token_at
    record = DecisionRecord(
        id=name,
        at=began + clock_offset,
        model=model,
        path=head.path_text,
        stream=stream,
        user=head.user,
        worker=gateway.row,
        policy=exchange._policy.name,
        reason=reason,
        candidates=candidates,  # type: ignore[arg-type]
        terms=terms,  # type: ignore[arg-type]
        chosen=pod.name if pod is not None else "",
        pod_ip=pod.ip if pod is not None else "",
        attempts=list(exchange.attempts) if exchange.attempts else [],
        prompt_tokens=prompt_tokens,
        block_size=exchange.source[0],
        predicted_tokens=exchange.predicted,
        index_state=exchange.index_state if decision is not None else "absent",
        in_flight=in_flight,
        status=exchange.status,
        outcome=exchange.outcome,
        error=exchange.error if exchange.outcome != "ok" else "",
        cached_tokens=told.cached,
        usage_prompt_tokens=told.prompt,
        completion_tokens=told.completion,
        decide_ms=decide_ms,
        connect_ms=(exchange.connected_at - exchange.decided_at) * 1e3 if exchange.connected_at else 0.0,
        ttft_ms=(first - exchange.sent_at) * 1e3 if first else None,
        total_ms=(exchange.ended_at - began) * 1e3,
        request_bytes=exchange.request_bytes,
        response_bytes=exchange.response_bytes,
    )
    if notes is not None and notes.last_at > notes.token_at:
        count = record.completion_tokens or notes.events
        if count > 1:
            record.itl_ms = (notes.last_at - notes.token_at) / (count - 1) * 1e3
    return record
