"""Which pair `pd` picks, case by case. Not here: which pods may be a pair at all (test_pairing), both legs (tests/behaviour/routing)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.core.settings import PairSettings, RoutingSettings
from backend.gateway.model import NoCandidate
from backend.gateway.policies import pd, prefix_cache
from tests.fakes.fleet import fleet, pairs, request

SETTINGS = RoutingSettings()
A, B = "a@1", "b@1"

HIT, SKIPPED, NOBODY = "prefix_match", "prefix_match_skipped", "least_request_fallback"

CASES = [
    # id, prefill (group, load), decode, matched tokens, chance, expected pair, reason
    ("the_holder_computes",                     ((A, 0), (A, 0)),         ((A, 0),),                (0, 64),    0.0, (1, 0), HIT),
    ("a_little_load_does_not_outweigh_a_hit",   ((A, 0), (A, 3)),         ((A, 0),),                (0, 64),    0.0, (1, 0), HIT),
    ("load_breaks_a_tie_of_hits",               ((A, 2), (A, 1)),         ((A, 0),),                (64, 64),   0.0, (1, 0), HIT),
    ("an_overloaded_holder_is_passed_over",     ((A, 9), (A, 1), (A, 1)), ((A, 0),),                (64, 0, 0), 0.0, (1, 0), SKIPPED),
    ("nobody_holds_it_the_idle_computes",       ((A, 2), (A, 0)),         ((A, 0),),                (0, 0),     0.0, (1, 0), NOBODY),
    ("above_sixteen_only_the_idle_computes",    ((A, 17), (A, 0)),        ((A, 0),),                (64, 0),    0.0, (1, 0), SKIPPED),
    ("sixteen_is_still_balanced",               ((A, 16), (A, 0)),        ((A, 0),),                (64, 0),    0.0, (0, 0), HIT),
    ("the_idle_decode_of_the_roleset",          ((A, 0),),                ((A, 3), (A, 1)),         (0,),       0.0, (0, 1), NOBODY),
    ("the_holders_roleset_decodes",             ((A, 0), (B, 0)),         ((A, 0), (B, 1)),         (0, 128),   0.0, (1, 1), HIT),
    ("load_decides_between_rolesets",           ((A, 0), (B, 0)),         ((A, 2), (B, 1)),         (0, 0),     0.0, (1, 1), NOBODY),
    ("a_crowded_decode_turns_its_roleset_away", ((A, 0), (B, 0)),         ((A, 16), (B, 0)),        (128, 0),   0.0, (1, 1), SKIPPED),
    ("a_busy_prefill_turns_its_roleset_away",   ((A, 20), (B, 0)),        ((A, 0), (B, 5)),         (128, 0),   0.0, (1, 1), SKIPPED),
    ("crowded_but_alone",                       ((A, 0), (A, 30)),        ((A, 40), ("c@1", 0)),    (0, 0),     0.0, (0, 0), NOBODY),
    ("never_across_revisions",                  (("a@1", 0), ("a@2", 9)), (("a@2", 9), ("a@3", 0)), (128, 0),   0.0, (1, 0), SKIPPED),
    ("an_unchanged_role_belongs_to_both",       (("a@1 a@2", 0), ("a@2", 1)), (("a@1", 1), ("a@2", 0)), (0, 0), 0.0, (0, 1), NOBODY),
    ("ties_go_by_chance_low",                   ((A, 0), (A, 0), (B, 0)), ((A, 0), (B, 0)),         (0, 0, 0),  0.2, (0, 0), NOBODY),
    ("ties_go_by_chance_middle",                ((A, 0), (A, 0), (B, 0)), ((A, 0), (B, 0)),         (0, 0, 0),  0.3, (1, 0), NOBODY),
    ("ties_go_by_chance_high",                  ((A, 0), (A, 0), (B, 0)), ((A, 0), (B, 0)),         (0, 0, 0),  0.9, (2, 1), NOBODY),
]  # fmt: skip


@pytest.mark.parametrize(
    ("prefill", "decode", "matched", "chance", "expected", "reason"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_pd_picks(
    prefill: Sequence[tuple[str, int]],
    decode: Sequence[tuple[str, int]],
    matched: Sequence[int],
    chance: float,
    expected: tuple[int, int],
    reason: str,
) -> None:
    decision = pd.choose_pair(request(matched_tokens=matched, random=chance), pairs(prefill, decode), SETTINGS)
    assert ((decision.prefill, decision.pod), decision.reason) == (expected, reason)


@pytest.mark.parametrize("problem", ["index_stale", "tokenize_timeout", ""])
def test_without_an_index_load_alone_decides_and_the_reason_says_why(problem: str) -> None:
    decision = pd.choose_pair(request(index_problem=problem), pairs(((A, 3), (A, 1)), ((A, 0),)), SETTINGS)
    assert (decision.prefill, decision.reason) == (1, problem or "index_absent")
    assert "matched_tokens" not in decision.prefill_terms


@pytest.mark.parametrize(
    ("prefill", "decode"), [((), ()), (((A, 0),), ()), ((), ((A, 0),)), ((("a@1", 0),), (("a@2", 0),))], ids=["none", "p", "d", "revisions"]
)
def test_without_a_pair_there_is_no_candidate(prefill: Sequence[tuple[str, int]], decode: Sequence[tuple[str, int]]) -> None:
    with pytest.raises(NoCandidate):
        pd.choose_pair(request(matched_tokens=(0,) * len(prefill)), pairs(prefill, decode), SETTINGS)


def test_a_model_whose_pods_do_both_is_routed_as_prefix_cache_does_it() -> None:
    view, pods = request(matched_tokens=(0, 64)), fleet((0, 0))
    assert pd.choose(view, pods, SETTINGS) == prefix_cache.choose(view, pods, SETTINGS.prefix_cache)


def test_both_halves_explain_themselves() -> None:
    decision = pd.choose_pair(request(matched_tokens=(64, 0)), pairs(((A, 1), (A, 2)), ((A, 1), (A, 4))), SETTINGS)
    assert decision.prefill_terms == {"matched_tokens": [64, 0], "in_flight": [1, 2], "score": [0.5, 6.0], "passed_over": [0, 0]}
    assert decision.terms == {"in_flight": [1, 4], "score": [1 / 16, 4 / 16], "passed_over": [0, 0]}


loads = st.lists(st.tuples(st.sampled_from(["a@1", "a@2", "a@1 a@2", "b@1", "c@1"]), st.integers(0, 40)), max_size=8)
chances = st.floats(0, 1, exclude_max=True)


@given(prefill=loads, decode=loads, data=st.data(), chance=chances)
def test_any_fleet_with_a_pair_gets_one_and_only_of_one_group(
    prefill: list[tuple[str, int]], decode: list[tuple[str, int]], data: st.DataObject, chance: float
) -> None:
    matched = data.draw(st.none() | st.lists(st.integers(0, 4096), min_size=len(prefill), max_size=len(prefill)))
    view = pairs(prefill, decode)
    asked = request(matched_tokens=matched, random=chance)
    if not set(chain(*view.groups)) & set(chain(*view.prefill_groups)):
        with pytest.raises(NoCandidate):
            pd.choose_pair(asked, view, SETTINGS)
        return
    decision = pd.choose_pair(asked, view, SETTINGS)
    assert decision.group in view.prefill_groups[decision.prefill]
    assert decision.group in view.groups[decision.pod]
    assert pd.choose(*decision.inputs) == decision  # type: ignore[arg-type]


def test_a_recorded_decision_is_taken_again_under_other_settings() -> None:
    first = pd.choose_pair(request(matched_tokens=(64, 0)), pairs(((A, 9), (A, 0)), ((A, 0),)), SETTINGS)
    recorded = msgspec.json.encode((*first.inputs[:2],))
    asked, view = msgspec.json.decode(recorded, type=tuple[type(first.inputs[0]), type(first.inputs[1])])
    assert pd.choose_pair(asked, view, SETTINGS).prefill == first.prefill == 0
    assert pd.choose_pair(asked, view, RoutingSettings(pd=PairSettings(prefill_spread=4))).prefill == 1
