"""What a returning viewer gets, and what becomes of a slow one. Not here: the bytes on the wire (tests/behaviour/test_control_stream)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.api import routes
from backend.control.events import QUEUED, TOPICS, EventHub
from backend.control.streaming import parse_since, parse_topics
from backend.core.errors import InvalidRequest

NAMES = sorted(TOPICS)
FLEET, DECISIONS = routes.EVENT_FLEET, routes.EVENT_DECISIONS


@given(
    published=st.lists(st.sampled_from(NAMES), max_size=200),
    since=st.integers(0, 210),
    wanted=st.sets(st.sampled_from(NAMES), min_size=1),
)
def test_a_returning_viewer_gets_all_it_missed_or_is_told_to_start_over(published, since, wanted):
    hub = EventHub(0.0)
    events = [hub.publish(topic, number) for number, topic in enumerate(published)]
    missed = hub.backfill(wanted, since)
    expected = [event for event in events if event.version > since and event.topic in wanted]
    if missed.reset:
        too_old = any(sum(event.topic == topic for event in expected) > TOPICS[topic] for topic in wanted)
        assert too_old or since > hub.version
    else:
        assert missed.events == expected


def test_versions_of_an_earlier_life_mean_reset():
    hub = EventHub(1000.0)
    hub.publish(FLEET, {})
    assert hub.backfill([FLEET], 999_000).reset
    assert not hub.backfill([FLEET], 1_000_000).reset
    assert hub.backfill([FLEET], 1_000_002).reset


def test_a_quiet_topic_does_not_age():
    hub = EventHub(0.0)
    for number in range(1000):
        hub.publish(DECISIONS, number)
    assert not hub.backfill([FLEET], 0).reset
    assert hub.backfill([FLEET, DECISIONS], 0).reset


async def test_a_slow_viewer_is_dropped_and_counted_others_are_not():
    hub = EventHub(0.0)
    slow, fast = hub.listen([FLEET]), hub.listen([FLEET])
    for number in range(QUEUED + 1):
        hub.publish(FLEET, number)
        fast.queue.get_nowait()
    assert (hub.dropped, hub.listeners) == (1, 1)
    rest = [slow.queue.get_nowait() for _ in range(slow.queue.qsize())]
    assert rest[-1] is None


async def test_a_viewer_hears_its_topics_only():
    hub = EventHub(0.0)
    listener = hub.listen([DECISIONS])
    hub.publish(FLEET, {})
    hub.publish(DECISIONS, [])
    assert listener.queue.qsize() == 1


def test_unknown_topics_and_versions_are_refused():
    with pytest.raises(InvalidRequest, match="nonsense"):
        parse_topics("fleet,nonsense")
    with pytest.raises(InvalidRequest, match="since"):
        parse_since("-1")
    assert parse_topics("") == frozenset(TOPICS)
    assert parse_since("") is None
