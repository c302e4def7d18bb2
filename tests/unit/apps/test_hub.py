"""The hub: one subscription, versions that grow only with changes, honest ages, comes back from every loss. In virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from apps.core import hub as hubs
from apps.core.hub import Change, FeedLost, Hub
from apps.core.snapshot import QUIET_AFTER_S, Connection, Rollouts, Trend, Trouble, mean_prompt_tokens
from backend.api.actions import Operation
from backend.api.cache import CacheMap, ProbeRequest, ProbeResult
from backend.api.decisions import DecisionRecord
from backend.api.fleet import FleetSnapshot, Pod, PodLoad, PodView
from workbench.services import AsyncServices


def fleet(version: int = 1, pods: int = 1) -> FleetSnapshot:
    return FleetSnapshot(
        version=version, at=float(version), pods=[PodView(pod=Pod(name=f"p{at}", ip="127.0.0.1"), load=PodLoad()) for at in range(pods)]
    )


def decision(name: str, at: float = 0.0) -> DecisionRecord:
    return DecisionRecord(id=name, at=at)


class ScriptedFeed:
    """Plays one script a connection: a Change is delivered, a float is a pause, a text is the reason of a loss."""

    def __init__(self, *scripts: list[Change | float | str]) -> None:
        self.scripts = list(scripts)
        self.connections = 0
        self.maps = 0
        self.map_error = ""
        self.looks = 0
        self.no_cluster = False
        self.bins: list[int] = []

    async def changes(self, heard: Callable[[], None]) -> AsyncGenerator[Change, None]:
        self.connections += 1
        for step in self.scripts.pop(0) if self.scripts else ["nothing answers"]:
            if isinstance(step, str):
                raise FeedLost(step)
            if isinstance(step, float):
                await asyncio.sleep(step)
                heard()
            else:
                yield step
        await asyncio.sleep(3600)

    async def cache_map(self, bins: int) -> CacheMap:
        self.maps += 1
        self.bins.append(bins)
        if self.map_error:
            raise FeedLost(self.map_error)
        return CacheMap(at=0.0, version=self.maps, pods=[], bins=bins, blocks=[], totals=[], distinct=0, copies=0)

    async def probe(self, request: ProbeRequest) -> ProbeResult:
        raise FeedLost("not in this test")

    async def decision(self, request_id: str) -> DecisionRecord:
        raise FeedLost("not in this test")

    async def rollouts(self) -> Rollouts:
        self.looks += 1
        if self.no_cluster:
            raise FeedLost("This stack has no cluster.", "Name one.")
        return Rollouts()

    def acting(self, user: str) -> AbstractAsyncContextManager[AsyncServices]:
        raise FeedLost("not in this test")

    async def close(self) -> None:
        return None


def make(*scripts: list[Change | float | str]) -> tuple[Hub, ScriptedFeed]:
    feed = ScriptedFeed(*scripts)
    return Hub(feed, clock=lambda: asyncio.get_running_loop().time()), feed


async def run_for(hub: Hub, seconds: float) -> None:
    task = asyncio.create_task(hub.run())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.looptime
async def test_a_snapshot_is_the_same_object_until_something_changes() -> None:
    hub, _ = make()
    hub.apply(Change(fleet=fleet(1), decisions=[decision("a")]))
    first = hub.snapshot()
    assert hub.snapshot() is first
    hub.apply(Change(fleet=fleet(2)))
    second = hub.snapshot()
    assert second.version > first.version
    assert second.decisions is first.decisions, "a part that did not change stays the same object"
    assert second.fleet is not first.fleet


@pytest.mark.looptime
async def test_a_sign_of_life_alone_makes_no_new_version() -> None:
    hub, _ = make([Change(fleet=fleet()), 1.0, 1.0, 1.0])
    await run_for(hub, 0.5)
    version = hub.snapshot().version
    hub2, _ = make([Change(fleet=fleet()), 1.0, 1.0, 1.0])
    await run_for(hub2, 3.5)
    assert hub2.snapshot().version == version
    assert hub2.connection.age(hub2.clock()) == pytest.approx(0.5)


@pytest.mark.looptime
async def test_decisions_are_newest_first_bounded_and_never_twice() -> None:
    hub, _ = make()
    hub.apply(Change(decisions=[decision(f"{at}", float(at)) for at in range(hubs.KEPT_DECISIONS)]))
    hub.apply(Change(decisions=[decision("999", 999.0), decision("new", 5000.0)]))
    decisions = hub.snapshot().decisions
    assert decisions is not None
    assert decisions[0].id == "new"
    assert len(decisions) == hubs.KEPT_DECISIONS
    assert len({record.id for record in decisions}) == len(decisions)


@pytest.mark.looptime
async def test_a_lost_control_is_lost_at_once_and_its_state_is_kept() -> None:
    hub, _ = make([Change(fleet=fleet(7)), "the connection broke"])
    await run_for(hub, 1.0)
    snapshot = hub.snapshot()
    assert snapshot.connection.state == "lost"
    assert "nothing answers" in snapshot.connection.reason
    assert snapshot.fleet is not None
    assert snapshot.fleet.version == 7


@pytest.mark.looptime
async def test_it_tries_again_with_growing_pauses_and_is_live_when_control_is_back() -> None:
    hub, feed = make(["down"], ["down"], ["down"], [Change(fleet=fleet())])
    await run_for(hub, 0.25 + 0.5 + 1.0 + 0.1)
    assert feed.connections == 4
    assert hub.connection.state == "live"


@pytest.mark.looptime
async def test_it_never_waits_longer_than_three_seconds() -> None:
    hub, feed = make()
    await run_for(hub, 60.0)
    assert feed.connections >= 60 / hubs.LONGEST_DELAY_S


@pytest.mark.parametrize(
    ("state", "heard_at", "now", "shown"),
    [
        ("connecting", None, 5.0, "connecting"),
        ("live", 10.0, 10.0 + QUIET_AFTER_S, "live"),
        ("live", 10.0, 10.1 + QUIET_AFTER_S, "quiet"),
        ("lost", 10.0, 10.5, "lost"),
    ],
    ids=["before_the_first_byte", "fresh", "a_silent_stream_is_not_live", "lost_is_lost_however_young"],
)
def test_what_a_page_may_claim(state: str, heard_at: float | None, now: float, shown: str) -> None:
    assert Connection(state, heard_at).shown(now) == shown  # type: ignore[arg-type]


class Viewer:
    """Somebody who looks at the map."""


@pytest.mark.looptime
async def test_the_map_is_polled_only_while_somebody_looks() -> None:
    hub, feed = make([Change(fleet=fleet())])
    task = asyncio.create_task(hub.run())
    await asyncio.sleep(10)
    assert feed.maps == 0
    viewer = Viewer()
    hub.watch_map(viewer)
    await asyncio.sleep(5.5)
    assert feed.maps == 6
    hub.unwatch_map(viewer)
    await asyncio.sleep(10)
    assert feed.maps == 6
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.looptime
async def test_services_are_asked_for_while_somebody_looks_and_at_once_when_an_operation_moves() -> None:
    hub, feed = make([Change(fleet=fleet())])
    task = asyncio.create_task(hub.run())
    await asyncio.sleep(10)
    assert feed.looks == 0
    viewer = Viewer()
    hub.watch_rollouts(viewer)
    await asyncio.sleep(5)
    assert feed.looks == 3
    hub.apply(Change(operation=Operation(id="o", plan_id="p", action="scale", namespace="default", service="a")))
    await asyncio.sleep(0.1)
    assert feed.looks == 4
    feed.no_cluster = True
    await asyncio.sleep(3)
    snapshot = hub.snapshot()
    assert (snapshot.rollouts, snapshot.rollouts_trouble) == (Rollouts(), Trouble("This stack has no cluster.", "Name one."))
    hub.unwatch_rollouts(viewer)
    looks = feed.looks
    await asyncio.sleep(20)
    assert feed.looks <= looks + 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.looptime
async def test_a_viewer_that_is_gone_stops_the_polling_without_saying_so() -> None:
    hub, feed = make([Change(fleet=fleet())])
    task = asyncio.create_task(hub.run())
    viewer = Viewer()
    hub.watch_map(viewer)
    await asyncio.sleep(2.5)
    del viewer
    gc.collect()
    await asyncio.sleep(10)
    assert feed.maps == 3
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.looptime
async def test_an_index_that_is_away_leaves_the_last_map_and_its_reason() -> None:
    hub, feed = make([Change(fleet=fleet())])
    viewer = Viewer()
    hub.watch_map(viewer)
    task = asyncio.create_task(hub.run())
    await asyncio.sleep(1.5)
    feed.map_error = "kvindex does not answer"
    await asyncio.sleep(1.0)
    snapshot = hub.snapshot()
    assert (snapshot.cache_map is not None, snapshot.cache_map_error) == (True, "kvindex does not answer")
    feed.map_error = ""
    await asyncio.sleep(1.0)
    assert hub.snapshot().cache_map_error == ""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(("pods", "bins"), [(1, 256), (128, 256), (256, 128), (1024, 32), (5000, 32)])
@pytest.mark.looptime
async def test_buckets_shrink_so_that_a_map_stays_small(pods: int, bins: int) -> None:
    hub, feed = make([Change(fleet=fleet(pods=pods))])
    viewer = Viewer()
    hub.watch_map(viewer)
    await run_for(hub, 1.5)
    assert feed.bins[-1] == bins


def test_prompt_tokens_are_a_mean_since_one_scrape_alone_is_mostly_zero() -> None:
    rates = [{"a": 9000.0, "gone": 1.0}, {"a": 0.0}, {"a": 600.0, "new": 90.0}, {"a": 0.0, "new": 30.0}]
    still = Trend(
        at=0.0, ready=1, requests_per_s=0.0, ttft_p95_ms=None, kv_usage=0.0, hit_rate=None, errors_per_s=0.0, prompt_tokens_per_s={}
    )
    trends = tuple(dataclasses.replace(still, at=at * 15.0, prompt_tokens_per_s=rate) for at, rate in enumerate(rates))
    assert mean_prompt_tokens(trends, seconds=30.0) == {"a": 300.0, "new": 60.0}
    assert mean_prompt_tokens((), seconds=30.0) == {}


async def test_decisions_stand_by_their_end_even_when_a_later_batch_brings_an_earlier_one() -> None:
    hub, _ = make([])
    hub.apply(Change(decisions=[decision("late", at=9.0), decision("early", at=1.0)]))
    before = hub.snapshot().decisions
    hub.apply(Change(fleet=fleet(2)))
    assert hub.snapshot().decisions is before, "what did not change is the same object"
    hub.apply(Change(decisions=[decision("between", at=5.0)]))
    assert [record.id for record in hub.snapshot().decisions or ()] == ["late", "between", "early"]
