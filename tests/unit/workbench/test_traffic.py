"""Replays by the workbench: summary, per-request table, and promised against reported prefix hits."""

from __future__ import annotations

import pytest

from tests.fakes.control_api import decision
from workbench import errors, traffic


def test_predictions_are_checked_against_the_decision_records(stack, fake):
    fake.decisions = [decision(at, at=9e9 + at, hit_class=("exact", "within_block", "evicted", "unpredicted")[at]) for at in (3, 2, 1, 0)]
    replayed = stack.workbench.replay("conversation-sample", limit=4, speed=1000, output_tokens=2, progress=False)
    assert replayed.summary.ok == 4
    assert replayed.prediction.classes == {"exact": 1, "within_block": 1, "evicted": 1, "unpredicted": 1}
    assert replayed.prediction.true_share == pytest.approx(2 / 3)
    assert "66.67% within one block of 3" in repr(replayed)


def test_requests_that_a_proxy_gave_a_trace_are_found_too(stack, fake, monkeypatch):
    # The client sees the trace alone; the gateway's record has a part of its own behind it, since a trace may have many requests.
    traces = [f"{number:032x}" for number in range(3)]
    monkeypatch.setattr(traffic, "SETTLE_S", 0.0)
    fake.decisions = [decision(at, id=f"{trace}-0000000{at}", at=9e9 + at, hit_class="exact") for at, trace in enumerate(traces)]
    found = stack.workbench._loop.run(traffic.predictions(stack.workbench._core, set(traces), 0.0))
    assert (found.classes, found.missing) == ({"exact": 3}, 0)


def test_records_that_never_come_are_counted(stack, fake, monkeypatch):
    monkeypatch.setattr(traffic, "SETTLE_S", 0.0)
    fake.decisions = []
    replayed = stack.workbench.replay("conversation-sample", limit=2, speed=1000, output_tokens=2, progress=False)
    assert (replayed.prediction.missing, replayed.prediction.true_share) == (2, None)


def test_each_request_is_a_row(stack):
    replayed = stack.workbench.replay("conversation-sample", limit=3, speed=1000, output_tokens=2, progress=False, check=False)
    assert sorted(replayed.df()["id"].to_list()) == ["r0", "r1", "r2"]
    assert "TTFT" in replayed._repr_mimebundle_()["text/html"]


def test_the_only_model_is_taken_and_one_of_many_has_to_be_named(stack):
    replayed = stack.workbench.replay("conversation-sample", limit=1, output_tokens=1, progress=False, check=False)
    assert (replayed.summary.ok, stack.gateway.requests[0]["model"]) == (1, "qwen3-8b")
    stack.gateway.models = ("a", "b")
    with pytest.raises(errors.UsageError, match="a, b"):
        stack.workbench.replay("conversation-sample", limit=1, progress=False)


def test_an_offset_behind_the_end_is_told(stack):
    with pytest.raises(errors.NotFound, match="no request from number 5000"):
        stack.workbench.replay("conversation-sample", offset=5000, progress=False)


def test_without_a_gateway_the_address_has_to_be_given(wb):
    with pytest.raises(errors.UsageError, match="url"):
        wb.replay("conversation-sample", limit=1, progress=False)


def test_prompts_can_be_cut_to_their_beginning(stack):
    stack.workbench.replay("conversation-sample", limit=3, speed=1000, prompt_tokens=600, output_tokens=1, progress=False, check=False)
    assert [len(request["prompt"]) for request in stack.gateway.requests] == [600] * 3
    with pytest.raises(errors.UsageError, match="prompt_tokens is -1"):
        stack.workbench.replay("conversation-sample", limit=1, prompt_tokens=-1, progress=False)
