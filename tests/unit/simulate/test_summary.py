"""Summing up a replay."""

from __future__ import annotations

import msgspec
import pytest

from backend.simulate.loadgen import RequestResult
from backend.simulate.summary import Collector, Summary, percentiles
from backend.simulate.traces import TraceRequest


def collected() -> Summary:
    collector = Collector()
    for at in range(4):
        collector.sent(TraceRequest(0, 1024, 5, (1, 2 + at)))
    for at, cached in enumerate((0, 512, 512)):
        collector.add(
            RequestResult(
                index=at, status=200, ttft_s=0.1 * (at + 1), itl_s=0.01, e2e_s=1.0, prompt_tokens=1024, cached_tokens=cached,
                completion_tokens=5, pod=f"vllm-{at % 2}",
            )
        )  # fmt: skip
    collector.add(RequestResult(index=3, status=503, error="http_503", message="no pod", e2e_s=0.001))
    return collector.summary(2.0, trace="t", policy="prefix-cache")


def test_hit_rate_is_cached_over_prompt_tokens_of_the_answered():
    summary = collected()
    assert summary.hit_rate == pytest.approx(1024 / 3072)
    assert summary.ceiling == summary.ceiling_tokens == pytest.approx(3 / 8)


def test_failed_requests_count_by_class_and_do_not_touch_the_times():
    summary = collected()
    assert (summary.requests, summary.ok, summary.errors) == (4, 3, {"http_503": 1})
    assert (summary.ttft.count, summary.ttft.p50_ms, summary.ttft.p99_ms) == (3, pytest.approx(200), pytest.approx(300))
    assert summary.first_error == "http_503: no pod"


def test_an_engine_that_tells_no_cached_tokens_leaves_the_hit_rate_open():
    collector = Collector()
    collector.add(RequestResult(index=0, status=200, prompt_tokens=10, cached_tokens=None))
    assert collector.summary(1.0).hit_rate is None
    assert "not told by the engine" in collector.summary(1.0).text()


def test_the_text_has_every_figure():
    text = collected().text()
    for part in ("4 requests of t with policy prefix-cache", "33.33%", "37.50%", "1 http_503", "TTFT", "ITL", "E2E", "vllm-0", "66.7%"):
        assert part in text


def test_the_summary_survives_json():
    summary = collected()
    assert msgspec.json.decode(msgspec.json.encode(summary), type=Summary) == summary


def test_nothing_answered_is_a_summary_too():
    assert "0 requests" in Collector().summary(0.0).text()


@pytest.mark.parametrize(
    ("samples", "expected"),
    [([], (None, None)), ([1.0], (1000.0, 1000.0)), ([0.001 * at for at in range(1, 101)], (50.0, 99.0))],
    ids=["none", "one", "a_hundred"],
)
def test_percentiles_are_values_that_were_seen(samples, expected):
    found = percentiles(samples)
    assert (found.p50_ms, found.p99_ms) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
