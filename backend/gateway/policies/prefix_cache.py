"""Prefix-cache routing: the pod that already holds most of the prompt, unless it is overloaded.

Owns the decision only. Never reads a clock, a socket or a random source that it was not given, so a recorded request can be decided
again. Behaviour: AIBrix `prefix-cache`, current release, with the event index: nothing is inserted at routing time, since the engine
itself tells what it stored. Without matches from an index it degrades to least requests, and its reason says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from operator import mul

from backend.core.settings import PrefixCacheSettings
from backend.gateway.model import Decision, FleetView, NoCandidate, RequestView
from backend.gateway.policies import ties

__all__ = ["NAME", "PrefixCacheSettings", "choose"]

NAME = "prefix-cache"


def choose(request: RequestView, fleet: FleetView, settings: PrefixCacheSettings) -> Decision:
    """Pick a pod for `request`; an overloaded fleet still gets an answer.

    Reasons: prefix_match; prefix_match_skipped (somebody holds it, all of them overloaded); least_request_fallback (nobody holds it);
    or the view's `index_problem`. Raises NoCandidate when `fleet` is empty.
    """
    if not fleet.candidates:
        raise NoCandidate("There is no pod to choose from.")
    in_flight, matched = fleet.in_flight, request.matched_tokens
    if matched is None:
        winner = ties.least_of(in_flight, request.random)
        return Decision(NAME, winner, request.index_problem or "index_absent", {"in_flight": in_flight}, (request, fleet, settings))

    least, most = min(in_flight), max(in_flight)
    limit = float(least) if least == most else overload_limit(in_flight, settings.deviation_factor)
    # Strictly above the bound, as upstream: then only the least loaded pods may match.
    ceiling = min(limit, least) if most - least > settings.imbalance_requests else limit

    best_match, best_load, tied = 0, 0, []
    for index, tokens in enumerate(matched):
        if tokens <= 0 or tokens < best_match:
            continue
        load = in_flight[index]
        if load > ceiling:
            continue
        if tokens > best_match or load < best_load:
            best_match, best_load, tied = tokens, load, [index]
        elif load == best_load:
            tied.append(index)

    terms: dict[str, Sequence[float]] = {"matched_tokens": matched, "in_flight": in_flight, "limit": [limit] * len(in_flight)}
    if tied:
        winner, reason = ties.pick(tied, request.random), "prefix_match"
    else:
        winner = ties.least_of(in_flight, request.random)
        reason = "prefix_match_skipped" if any(matched) else "least_request_fallback"
    return Decision(NAME, winner, reason, terms, (request, fleet, settings))


def overload_limit(in_flight: Sequence[int], factor: float) -> float:
    """Mean plus `factor` sample deviations (n - 1, as upstream: with two pods the population form would call neither overloaded)."""
    count, total = len(in_flight), sum(in_flight)
    # Whole numbers until the root: nothing is rounded away, and nothing is looped over in Python.
    return total / count + factor * sqrt((count * sum(map(mul, in_flight, in_flight)) - total * total) / (count * (count - 1)))
