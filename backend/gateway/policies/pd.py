"""P/D routing: a prefill pod by prefix hit and load, a decode pod by load, both of one RoleSet and one revision. AIBrix `pd`.

Owns the decision only, like the other policies. Scores follow AIBrix's current ones: prefill `prefix_cache`, decode `least_request` over
the gateway's own counts, and the pair with the least sum. Different from upstream:
- pods of two revisions are no pair, and a role is a label, not a part of a name;
- what is passed over (an overloaded prefill, a crowded decode) is taken after all when nothing else would make a pair;
- a miss is measured from the best hit there is, so that load decides between RoleSets when nobody holds the prompt;
- a decode's load counts against the spread that would be an imbalance: one running request does not outweigh a whole prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, compress
from typing import TypeVar

from backend.core.settings import PairSettings, RoutingSettings
from backend.gateway.model import Decision, FleetView, NoCandidate, PairDecision, PairView, RequestView
from backend.gateway.policies import prefix_cache

__all__ = ["NAME", "PairSettings", "choose", "choose_pair"]

NAME = "pd"
Key = TypeVar("Key", str, int)
_MISS_WEIGHT = 0.1
"""A percent of the prompt that must be computed weighs as much as a tenth of the largest load (AIBrix)."""


def choose(request: RequestView, fleet: FleetView, settings: RoutingSettings) -> Decision:
    """A model whose pods do both is routed as `prefix-cache` does it. Raises NoCandidate."""
    if isinstance(fleet, PairView):
        return choose_pair(request, fleet, settings)
    return prefix_cache.choose(request, fleet, settings.prefix_cache)


def choose_pair(request: RequestView, pairs: PairView, settings: RoutingSettings) -> PairDecision:
    """Reasons: prefix_match; prefix_match_skipped (somebody holds it, another was chosen); least_request_fallback (nobody holds it); or
    the view's `index_problem`. Raises NoCandidate when no prefill and decode candidate belong together."""
    prefill, groups = pairs.prefill, pairs.prefill_groups
    prefill_load, decode_load = prefill.in_flight, pairs.in_flight
    able = set(chain(*groups)) & set(chain(*pairs.groups))
    if not able:
        raise NoCandidate("There is no pair of a prefill and a decode pod of one RoleSet and one revision.")
    prefill_open = [not able.isdisjoint(names) for names in groups]
    decode_open = [not able.isdisjoint(names) for names in pairs.groups]
    prefill_limit, decode_limit = (
        _prefill_limit(prefill_load, prefill_open, settings.pd),
        _decode_limit(decode_load, decode_open, settings.pd),
    )
    prefill_open = _restricted(prefill_open, lambda at: prefill_load[at] <= prefill_limit)
    decode_open = _restricted(decode_open, _paired(pairs.groups, compress(groups, prefill_open)))
    decode_open = _restricted(decode_open, lambda at: decode_load[at] <= decode_limit)
    prefill_open = _restricted(prefill_open, _paired(groups, compress(pairs.groups, decode_open)))

    prefill_score = _prefill_scores(request, prefill_load)
    most = max(*decode_load, settings.pd.decode_spread, 1)
    decode_score = [load / most for load in decode_load]
    prefill_best = _best_by_group(groups, prefill_score, prefill_open)
    decode_best = _best_by_group(pairs.groups, decode_score, decode_open)
    winner, chance = _draw(_pair_scores(prefill_best, decode_best), request.random)
    prefill_pod, chance = _draw(_of_group(groups, prefill_score, prefill_open, winner), chance)
    decode_pod, _ = _draw(_of_group(pairs.groups, decode_score, decode_open, winner), chance)
    matched = request.matched_tokens
    terms: dict[str, Sequence[float]] = {"in_flight": prefill_load, "score": prefill_score, "passed_over": _closed(prefill_open)}
    if matched is not None:
        terms = {"matched_tokens": matched, **terms}
    return PairDecision(
        policy=NAME,
        pod=decode_pod,
        reason=_reason(request, prefill_pod),
        terms={"in_flight": decode_load, "score": decode_score, "passed_over": _closed(decode_open)},
        inputs=(request, pairs, settings),
        prefill=prefill_pod,
        prefill_terms=terms,
        group=winner,
    )


def _prefill_limit(load: Sequence[int], able: Sequence[bool], settings: PairSettings) -> float:
    """Running prefills up to which a pod may be chosen: the least when they are spread too far, else mean + factor x deviation."""
    loads = list(compress(load, able))
    least, most = min(loads), max(loads)
    if least == most or most - least > settings.prefill_spread:
        return least
    return prefix_cache.overload_limit(loads, settings.deviation_factor)


def _decode_limit(load: Sequence[int], able: Sequence[bool], settings: PairSettings) -> float:
    loads = list(compress(load, able))
    least, most = min(loads), max(loads)
    return least if most - least >= settings.decode_spread else most


def _restricted(open_now: list[bool], keeps: Callable[[int], bool]) -> list[bool]:
    """Those of `open_now` that `keeps` lets through, or all of them if it would leave none."""
    kept = [is_open and keeps(at) for at, is_open in enumerate(open_now)]
    return kept if any(kept) else open_now


def _paired(groups: Sequence[Sequence[str]], others: Iterable[Sequence[str]]) -> Callable[[int], bool]:
    having = set(chain(*others))
    return lambda at: not having.isdisjoint(groups[at])


def _prefill_scores(request: RequestView, load: Sequence[int]) -> list[float]:
    """Percent of the prompt less than the best pod holds, weighted, plus the share of the largest load; lower is better."""
    most, matched = max(*load, 1), request.matched_tokens
    if matched is None:
        return [count / most for count in load]
    length = max(request.prompt_tokens, *matched, 1)
    best = max(matched)
    return [100 * _MISS_WEIGHT * (best - tokens) / length + count / most for tokens, count in zip(matched, load, strict=True)]


def _pair_scores(prefill_best: dict[str, float], decode_best: dict[str, float]) -> dict[str, float]:
    most = max(1.0, *(score for group, score in prefill_best.items() if group in decode_best))
    return {group: score / most + decode_best[group] for group, score in prefill_best.items() if group in decode_best}


def _best_by_group(groups: Sequence[Sequence[str]], score: Sequence[float], is_open: Sequence[bool]) -> dict[str, float]:
    best: dict[str, float] = {}
    for names, value in compress(zip(groups, score, strict=True), is_open):
        for name in names:
            if value < best.get(name, value + 1):
                best[name] = value
    return best


def _of_group(groups: Sequence[Sequence[str]], score: Sequence[float], is_open: Sequence[bool], group: str) -> dict[int, float]:
    return {at: score[at] for at, names in enumerate(groups) if group in names and is_open[at]}


def _draw(scores: dict[Key, float], random: float) -> tuple[Key, float]:
    """The one with the least score, ties by chance, and a random number for the next draw: what is left of `random` is as good."""
    least = min(scores.values())
    tied = [key for key, score in scores.items() if score == least]
    scaled = random * len(tied)
    return tied[int(scaled)], scaled - int(scaled)


def _closed(is_open: Sequence[bool]) -> list[float]:
    return [0.0 if one else 1.0 for one in is_open]


def _reason(request: RequestView, prefill_pod: int) -> str:
    matched = request.matched_tokens
    if matched is None:
        return request.index_problem or "index_absent"
    if matched[prefill_pod] > 0:
        return "prefix_match"
    return "prefix_match_skipped" if any(matched) else "least_request_fallback"
