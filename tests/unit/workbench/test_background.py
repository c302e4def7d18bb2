"""Replays in the background: they go on until stopped, stopping gives nothing up, and none outlives its workbench."""

from __future__ import annotations

import time

import pytest

from workbench import errors

BRISK = {"speed": 1000, "prompt_tokens": 16, "output_tokens": 4, "check": False}


def until(condition, seconds=10.0):
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_traffic_goes_round_and_round_while_something_else_is_done(stack):
    traffic = stack.workbench.start_replay("conversation-sample", limit=2, **BRISK)
    until(lambda: len(stack.gateway.requests) >= 5)
    assert traffic.running
    assert stack.workbench.fleet.df().height == 2
    assert "in the background, running" in repr(traffic)
    sent = traffic.stop()
    assert not traffic.running
    assert sent.summary.ok == sent.df().height == len(stack.gateway.requests)


def test_stopping_waits_for_the_requests_under_way(stack):
    stack.gateway.pause_s = 0.2
    traffic = stack.workbench.start_replay("conversation-sample", rate=20, **BRISK)
    until(lambda: stack.gateway.in_flight >= 2)
    sent = traffic.stop(timeout=10)
    assert stack.gateway.in_flight == 0
    assert (sent.summary.ok, sent.summary.errors) == (len(stack.gateway.requests), {})


def test_stop_tells_what_ended_it_before(stack):
    stack.gateway.models = ("a", "b")
    traffic = stack.workbench.start_replay("conversation-sample", **BRISK)
    until(lambda: not traffic.running)
    with pytest.raises(errors.UsageError, match="a, b"):
        traffic.stop()


def test_a_block_stops_it_and_an_error_in_the_block_is_not_held_up(stack):
    with stack.workbench.start_replay("conversation-sample", rate=50, **BRISK) as traffic:
        until(lambda: stack.gateway.requests)
    assert not traffic.running
    stack.gateway.behaviour = dict.fromkeys(range(1000), "silent")
    with pytest.raises(ZeroDivisionError), stack.workbench.start_replay("conversation-sample", rate=50, **BRISK) as traffic:
        raise ZeroDivisionError
    assert not traffic.running


def test_none_outlives_its_workbench(stack):
    traffic = stack.workbench.start_replay("conversation-sample", rate=50, **BRISK)
    until(lambda: stack.gateway.requests)
    stack.workbench.close()
    assert not traffic.running
    until(lambda: stack.gateway.in_flight == 0)
