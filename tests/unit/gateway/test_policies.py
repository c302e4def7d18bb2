"""What each policy picks, case by case. Not here: how the index matches (tests/unit/kvindex), what the gateway does with a decision
(tests/behaviour/routing)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.core.settings import RoutingSettings
from backend.gateway.model import NoCandidate
from backend.gateway.policies import POLICIES, least_request, prefix_cache, uniform
from tests.fakes.fleet import fleet, request

SETTINGS = prefix_cache.PrefixCacheSettings()

CASES = [
    # id                                       matched tokens   in flight    random  expected  reason
    ("the_longest_match_wins",                 (64, 128, 0),    (1, 1, 1),   0.0,    1,        "prefix_match"),
    ("a_tie_goes_to_the_less_loaded",          (128, 128, 0),   (3, 1, 0),   0.0,    1,        "prefix_match"),
    ("a_full_tie_goes_by_chance_low",          (128, 128, 0),   (0, 0, 0),   0.49,   0,        "prefix_match"),
    ("a_full_tie_goes_by_chance_high",         (128, 128, 0),   (0, 0, 0),   0.5,    1,        "prefix_match"),
    ("an_overloaded_holder_is_passed_over",    (128, 0, 0),     (9, 2, 1),   0.0,    2,        "prefix_match_skipped"),
    ("a_worse_holder_is_better_than_none",     (128, 64, 0),    (8, 1, 1),   0.0,    1,        "prefix_match"),
    ("nobody_holds_it_least_loaded_wins",      (0, 0, 0),       (4, 2, 3),   0.0,    1,        "least_request_fallback"),
    ("nobody_holds_it_ties_go_by_chance",      (0, 0, 0),       (2, 2, 2),   0.99,   2,        "least_request_fallback"),
    ("a_spread_of_eight_is_still_balanced",    (0, 64, 0, 0),   (0, 2, 8, 8), 0.0,   1,        "prefix_match"),
    ("above_eight_only_the_idle_may_match",    (0, 64, 0, 0),   (0, 2, 9, 9), 0.0,   0,        "prefix_match_skipped"),
    ("imbalanced_but_the_idle_one_holds_it",   (64, 128, 0, 0), (0, 2, 9, 9), 0.0,   0,        "prefix_match"),
    ("one_pod_takes_all",                      (64,),           (50,),       0.0,    0,        "prefix_match"),
]  # fmt: skip


@pytest.mark.parametrize(("matched", "in_flight", "random", "expected", "reason"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_prefix_cache_picks(matched: tuple[int, ...], in_flight: tuple[int, ...], random: float, expected: int, reason: str) -> None:
    decision = prefix_cache.choose(request(matched_tokens=matched, random=random), fleet(in_flight=in_flight), SETTINGS)
    assert (decision.pod, decision.reason) == (expected, reason)


@pytest.mark.parametrize("problem", ["index_stale", "tokenize_timeout", ""])
def test_without_an_index_prefix_cache_takes_the_least_loaded_and_says_why(problem: str) -> None:
    decision = prefix_cache.choose(request(index_problem=problem), fleet(in_flight=(3, 1, 2)), SETTINGS)
    assert (decision.pod, decision.reason) == (1, problem or "index_absent")


def test_a_decision_can_be_taken_again_from_its_own_record() -> None:
    first = prefix_cache.choose(request(matched_tokens=(0, 0), random=0.7), fleet(in_flight=(2, 2)), SETTINGS)
    assert prefix_cache.choose(*first.inputs) == first  # type: ignore[arg-type]


def test_every_term_has_one_value_a_candidate() -> None:
    terms = prefix_cache.choose(request(matched_tokens=(64, 0)), fleet(in_flight=(1, 2)), SETTINGS).terms
    assert terms["matched_tokens"] == [64, 0]
    assert terms["in_flight"] == [1, 2]
    assert terms["limit"] == [pytest.approx(1.5 + 0.5**0.5)] * 2


@pytest.mark.parametrize(("in_flight", "random", "expected"), [((3, 1, 2), 0.0, 1), ((1, 1, 2), 0.6, 1), ((0, 0, 0), 0.99, 2)])
def test_least_request_takes_the_least_and_breaks_ties_by_chance(in_flight: tuple[int, ...], random: float, expected: int) -> None:
    assert least_request.choose(request(random=random), fleet(in_flight=in_flight)).pod == expected


@pytest.mark.parametrize(("random", "expected"), [(0.0, 0), (0.34, 1), (0.999, 2)])
def test_random_takes_each_alike(random: float, expected: int) -> None:
    assert uniform.choose(request(random=random), fleet(in_flight=(9, 0, 0))).pod == expected


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_an_empty_fleet_is_no_candidate(name: str) -> None:
    with pytest.raises(NoCandidate):
        POLICIES[name].choose(request(matched_tokens=()), fleet(in_flight=()), POLICIES[name].settings(RoutingSettings()))


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(data=st.data())
def test_any_fleet_gets_a_pod_that_exists(name: str, data: st.DataObject) -> None:
    in_flight = data.draw(st.lists(st.integers(0, 100), min_size=1, max_size=64))
    matched = data.draw(st.none() | st.lists(st.integers(0, 4096), min_size=len(in_flight), max_size=len(in_flight)))
    view = request(matched_tokens=matched, random=data.draw(st.floats(0, 1, exclude_max=True)))
    decision = POLICIES[name].choose(view, fleet(in_flight), POLICIES[name].settings(RoutingSettings()))
    assert 0 <= decision.pod < len(in_flight)
