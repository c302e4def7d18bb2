"""A decision told in sentences, where two pods shared the request. Not here: one pod's (test_shows)."""

from __future__ import annotations

from backend.api.decisions import PrefillChoice
from tests.fakes.records import record
from workbench.explanation import Explanation

PREFILL = PrefillChoice(
    chosen="p-1",
    group="rs@r1",
    candidates=["p-0", "p-1"],
    groups=["rs@r1", "rs@r1"],
    terms={"score": [1, 0.5]},
    attempts=["p-0"],
    wait_ms=12.4,
)


def test_both_pods_of_a_pair_are_told() -> None:
    explanation = Explanation(record(policy="pd", prefill=PREFILL))
    assert "p-1 of 2 computed the prompt after p-0 failed, in 12 ms; both are of rs@r1." in explanation.story()
    assert explanation.prefill_df().rows() == [("p-0", "rs@r1", False, 1.0), ("p-1", "rs@r1", True, 0.5)]


def test_one_pod_alone_has_nothing_to_add() -> None:
    explanation = Explanation(record())
    assert not any("computed the prompt" in line for line in explanation.story())
    assert explanation.prefill_df().is_empty()
