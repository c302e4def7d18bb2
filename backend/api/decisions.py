"""Why a request went where it went: what was known, what was chosen, what became of it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from backend.api.fleet import PodView

Count = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""What a column of 64 bits holds; engines have been seen to report more."""

Moment = Annotated[float, msgspec.Meta(ge=0.0, le=250e9)]
"""Seconds since 1970, up to the last year that calendars of programs know (9999)."""

TRACE_DIGITS = 32
"""Hex digits of a trace id; the gateway's own ids have 16."""

Outcome = Literal["ok", "client_gone", "upstream_error", "upstream_reset", "timeout", "refused", "aborted", "truncated"]
"""refused: by the gateway itself; aborted: the engine was draining; truncated: the engine went away in mid-answer."""

HitClass = Literal["exact", "within_block", "raced", "evicted", "unknown", "unpredicted"]
"""raced: somebody stored those blocks after the decision; evicted: blocks were removed after it; unpredicted: nothing to
compare, since no index was asked or the engine did not report its hit."""


class PrefillChoice(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """The other half of a decision for a model whose prompts are computed by other pods than its answers."""

    chosen: str = ""
    pod_ip: str = ""
    group: str = ""
    """RoleSet and revision that both pods belong to, as `roleset@revision`: its name, or where they are told its roles' templates."""
    candidates: list[str] = []
    groups: list[str] = []
    """Of each candidate, several with blanks between them; a pair has one in common."""
    decode_groups: list[str] = []
    """Of each candidate of the decode pod."""
    terms: dict[str, list[float]] = {}
    """One list a score term, in the order of `candidates`."""
    attempts: list[str] = []
    """Prefill pods that were tried before."""
    in_flight: Count = 0
    """Requests of all workers on the prefill pod when it was chosen, this one not counted."""
    wait_ms: float | None = None
    """Sending its leg to the end of its answer; None when none came."""
    error: str = ""
    """What went wrong with its leg, whatever became of the request."""


class DecisionRecord(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """One request through the gateway. `terms` has one list a score term, in the order of `candidates`."""

    id: str
    at: Moment
    """Arrival, seconds since 1970."""
    model: str = ""
    path: str = ""
    stream: bool = False
    user: str = ""
    worker: Count = 0
    policy: str = ""
    reason: str = ""
    """Why the policy chose so, from its closed list: prefix_match, prefix_match_skipped, least_request_fallback, ..."""
    candidates: list[str] = []
    terms: dict[str, list[float]] = {}
    chosen: str = ""
    pod_ip: str = ""
    attempts: list[str] = []
    """Pods that were tried before `chosen` and failed before their first byte."""
    prompt_tokens: Count = 0
    """Counted by the gateway before routing (0: not tokenized)."""
    block_size: Count = 0
    """Tokens a block of the chosen pod, as its events say; 0 when unknown."""
    predicted_tokens: Count | None = None
    """Prefix hit that the index promised for the chosen pod, fixed before the request was forwarded."""
    index_state: Literal["live", "stale", "absent"] = "absent"
    in_flight: Count = 0
    """Requests of all workers on the chosen pod when it was chosen, this one not counted."""
    status: Count = 0
    """HTTP status that the client saw; 0 when it left before."""
    outcome: Outcome = "ok"
    error: str = ""
    cached_tokens: Count | None = None
    """Prefix hit that the engine reported."""
    usage_prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    hit_class: HitClass = "unpredicted"
    decide_ms: float = 0.0
    """Head and body read to pod chosen, tokenizing included."""
    connect_ms: float = 0.0
    ttft_ms: float | None = None
    """Forwarding to first token (streams) or first byte (others)."""
    itl_ms: float | None = None
    """Mean gap between tokens of a stream."""
    total_ms: float = 0.0
    """Arrival to last byte."""
    request_bytes: Count = 0
    response_bytes: Count = 0
    prefill: PrefillChoice | None = None
    """Set when another pod than `chosen` computed the prompt: then the promised and the reported prefix hit are that pod's."""


def client_id(record_id: str) -> str:
    """The `request-id` that the client of a record saw: the trace alone when it sent a `traceparent`, which may have many requests.

    >>> client_id("0af7651916cd43dd8448eb211c80319c-7d1e88f0"), client_id("5f0c9a0b1d2e3f40")
    ('0af7651916cd43dd8448eb211c80319c', '5f0c9a0b1d2e3f40')
    """
    head, dash, _ = record_id.partition("-")
    return head if dash and is_trace(head) else record_id


def is_trace(request_id: str) -> bool:
    """Whether a `request-id` is a trace's and not one of the gateway's own."""
    return len(request_id) == TRACE_DIGITS and all(digit in "0123456789abcdef" for digit in request_id)


class DecisionPage(msgspec.Struct, kw_only=True):
    """Newest first. `next` is passed as `before=` for older ones; None at the end."""

    items: list[DecisionRecord]
    next: str | None = None


class PodDetail(PodView, kw_only=True):
    """One pod with the newest decisions that chose it."""

    decisions: list[DecisionRecord] = []
