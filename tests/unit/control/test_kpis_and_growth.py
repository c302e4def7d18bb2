"""Figures of the last minute and counters of the last ten. Not here: where the records come from."""

from __future__ import annotations

import pytest

from backend.control.growth import Growth
from backend.control.kpis import TrafficWindow, is_error
from tests.fakes.records import AT, record, records


def test_without_requests_nothing_is_known():
    assert TrafficWindow().kpis(AT) == (0.0, 0.0, None, None)


def test_rates_are_over_ten_full_seconds_and_the_rest_over_a_minute():
    window = TrafficWindow()
    window.add(records(100, total_ms=0.0))
    window.add([record(200 + number, at=AT + 95, total_ms=0.0, outcome="timeout", status=504) for number in range(5)])
    kpis = window.kpis(AT + 100)
    assert kpis.requests_per_s == pytest.approx((10 + 5) / 10)
    assert kpis.errors_per_s == pytest.approx(0.5)
    assert kpis.ttft_p95_ms == 25.0
    assert kpis.hit_rate == pytest.approx(128 / 200)
    assert window.kpis(AT + 300) == (0.0, 0.0, None, None)


def test_p95_is_the_slow_end():
    window = TrafficWindow()
    window.add(record(number, at=AT, total_ms=0.0, ttft_ms=float(number)) for number in range(100))
    assert window.kpis(AT + 1).ttft_p95_ms == 95.0


def test_a_request_counts_when_it_ends():
    window = TrafficWindow()
    window.add([record(at=AT - 300, total_ms=295_000.0)])
    assert window.kpis(AT).requests_per_s == pytest.approx(0.1)


ERRORS = [
    ("ok", {}, False),
    ("client_left", {"outcome": "client_gone", "status": 0}, False),
    ("nonsense_refused", {"outcome": "refused", "status": 400}, False),
    ("no_pod_ready", {"outcome": "refused", "status": 503}, True),
    ("engine_reset", {"outcome": "upstream_reset", "status": 502}, True),
    ("cut_in_the_middle", {"outcome": "truncated", "status": 200}, True),
]


@pytest.mark.parametrize(("fields", "expected"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS])
def test_an_error_is_the_fleets_fault(fields, expected):
    assert is_error(record(**fields)) is expected


def test_a_policy_is_used_for_a_minute_after_its_last_request():
    window = TrafficWindow()
    window.add([record(at=AT)])
    assert window.uses("prefix-cache", AT + 59)
    assert not window.uses("prefix-cache", AT + 61)
    assert not window.uses("random", AT)


def test_a_counter_counts_from_where_it_was_first_seen():
    growth = Growth()
    assert growth.update({"x": 100}, 0) == {}
    assert growth.update({"x": 103}, 1) == {"x": 3}


def test_growth_is_forgotten_after_ten_minutes():
    growth = Growth()
    growth.update({"x": 0}, 0)
    for second in range(0, 1300, 10):
        grown = growth.update({"x": 5 if second >= 100 else 0}, second)
        assert bool(grown) == (100 <= second < 700), second


def test_a_restarted_counter_goes_on_from_zero():
    growth = Growth()
    growth.update({"x": 50}, 0)
    assert growth.update({"x": 2}, 1) == {"x": 2}


def test_a_counter_that_is_gone_is_forgotten():
    growth = Growth()
    growth.update({"x": 0}, 0)
    growth.update({"x": 5}, 1)
    assert growth.update({}, 2) == {}
    assert growth.update({"x": 9}, 3) == {}
