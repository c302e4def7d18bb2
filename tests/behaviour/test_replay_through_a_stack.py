"""Replays through a whole stack, by command and from Python: promised prefix hits come true, and what was started is ended."""

from __future__ import annotations

import json
import subprocess
import sys

import polars as pl
import pytest

import workbench
from backend import launch
from tests.fakes.stack import environment, own_stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with own_stack(tmp_path_factory.mktemp("replay"), "--no-dashboard", "--no-traffic", pods=2, speed=50.0) as running:
        yield running


@pytest.fixture
def wb(stack):
    with workbench.connect(stack.state) as connected:
        yield connected


def command(stack, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "workbench", *words, "--state", str(stack.state)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False, env=environment())


def test_one_request_after_the_other_every_promise_comes_true(wb):
    replayed = wb.replay("conversation-sample", limit=60, speed=1000, max_in_flight=1, output_tokens=2, progress=False)
    assert (replayed.summary.ok, replayed.summary.errors) == (60, {})
    assert replayed.prediction.missing == 0
    assert replayed.prediction.checked == 60
    assert replayed.prediction.classes.get("unknown", 0) == 0
    assert replayed.prediction.true_share >= 0.95, replayed.prediction.text()


def test_the_decision_records_tell_the_same_as_the_answers(wb):
    replayed = wb.replay("conversation-sample", limit=20, offset=100, speed=1000, output_tokens=2, policy="random", progress=False)
    told = replayed.df().select("id", "pod", "cached_tokens", "completion_tokens").sort("id")
    recorded = wb.router.decisions(limit=20, policy="random").df()
    assert recorded.height == 20
    assert recorded.select("id", pl.col("chosen").alias("pod"), "cached_tokens", "completion_tokens").sort("id").equals(told)


def test_the_map_and_the_probe_know_what_was_sent(wb):
    from backend.simulate import traces

    (request,) = traces.read_mooncake(traces.find("conversation-sample"), 1, offset=150)
    wb.replay("conversation-sample", limit=1, offset=150, output_tokens=2, progress=False)
    best = wb.cache.probe(traces.prompt_tokens(request))[0]
    assert best.matched_tokens >= request.input_length // 64 * 64 - 64
    assert sum(wb.cache.map().data.totals) >= best.matched_tokens // 64
    assert set(wb.cache.sources().df()["status"]) == {"live"}


def test_the_command_replays_and_explains(stack):
    done = command(stack, "replay", "conversation-sample", "--limit", "5", "--speed", "100", "--output-tokens", "2", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert (printed["summary"]["ok"], printed["prediction"]["missing"]) == (5, 0)
    told = command(stack, "explain", "last")
    assert told.returncode == 0
    assert "← chosen" in told.stdout
    assert command(stack, "explain", "no-such-id").returncode == 1


def test_an_unknown_policy_or_model_is_a_failed_replay_that_says_why(stack):
    done = command(stack, "replay", "conversation-sample", "--limit", "1", "--model", "nothing", "--json")
    assert done.returncode == 1
    assert "nothing" in json.loads(done.stdout)["summary"]["first_error"]


def test_leaving_a_stack_that_was_there_before_does_not_end_it(stack):
    workbench.connect(stack.state).close()
    assert stack.process.poll() is None


def test_connect_starts_a_stack_where_none_runs_and_close_ends_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORKBENCH_STATE", raising=False)
    with workbench.connect() as wb:
        state = tmp_path / ".workbench"
        assert launch.find(state) is not None
        assert wb.fleet.df()["ready"].all()
    assert launch.find(state) is None
    assert "close() ends it" in capsys.readouterr().out
