"""An informer's copy is what the server has, and its handlers hear of every change, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from backend.core.metrics import Registry
from backend.kube.backoff import Backoff
from backend.kube.client import KubeClient, ObjectList, WatchEvent
from backend.kube.errors import ClusterUnreachable, status_error
from backend.kube.figures import KubeFigures
from backend.kube.informer import Informer
from backend.kube.resources import PODS, Object, key_of, uid_of, version_of
from backend.kube.store import Store
from tests.fakes.kubeapi import FakeKubeApi, Fault, kube_api, write_kubeconfig
from tests.fakes.waiting import eventually

__all__ = ["kube_api"]

QUICK = Backoff(first_s=0.005, longest_s=0.05)


class Heard:
    """A handler that makes its own copy out of what it is told, and refuses what cannot follow."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.told: list[tuple[str, str]] = []

    def __call__(self, kind: str, old: Object | None, new: Object | None) -> None:
        key = key_of(new or old or {})
        self.told.append((kind, key[1]))
        match kind:
            case "added":
                assert old is None
                assert key not in self.objects
            case "modified":
                assert old is not None
                assert new is not None
                assert self.objects[key] == old
                assert uid_of(old) == uid_of(new)
                assert old is new or int(version_of(old)) < int(version_of(new))
            case "deleted":
                assert new is None
                del self.objects[key]
        if new is not None:
            self.objects[key] = new


@contextlib.asynccontextmanager
async def following(api: FakeKubeApi, folder: Path, **options: Any) -> AsyncIterator[tuple[Informer, Heard, Registry]]:
    registry = Registry()
    client = KubeClient.from_kubeconfig(write_kubeconfig(folder / "config", api.url), figures=KubeFigures(registry))
    informer = Informer(client, PODS, backoff=QUICK, **options)
    heard = Heard()
    informer.add_handler(heard)
    task = asyncio.create_task(informer.run())
    try:
        async with asyncio.timeout(10):
            await informer.synced.wait()
        yield informer, heard, registry
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()


def truth(api: FakeKubeApi) -> dict[tuple[str, str], Object]:
    added = {"kind": "Pod", "apiVersion": "v1"}
    return {place[1:]: added | obj for place, obj in api.objects.items()}


def copied(informer: Informer) -> dict[tuple[str, str], Object]:
    return {key_of(obj): {"kind": "Pod", "apiVersion": "v1"} | obj for obj in informer.list()}


async def test_changes_are_told_with_what_was_before_and_the_copy_is_right_by_then(kube_api: FakeKubeApi, tmp_path: Path) -> None:
    await kube_api.put("v1/pods", "fleet", "a", phase="Pending")
    async with following(kube_api, tmp_path, indexes={"phase": lambda obj: [obj["phase"]]}) as (informer, heard, _):
        assert heard.told == [("added", "a")]
        seen: list[Any] = []
        informer.add_handler(lambda kind, old, new: seen.append((kind, informer.get("fleet", "a"))))
        assert [kind for kind, _ in seen] == ["added"], "who comes later is told what is known"
        await kube_api.put("v1/pods", "fleet", "a", phase="Running")
        await eventually(lambda: len(seen) == 2)
        assert seen[1][1]["phase"] == "Running"
        assert [obj["phase"] for obj in informer.by_index("phase", "Running")] == ["Running"]
        assert not informer.by_index("phase", "Pending")
        await kube_api.remove("v1/pods", "fleet", "a")
        await eventually(lambda: informer.get("fleet", "a") is None)
        assert heard.told == [("added", "a"), ("modified", "a"), ("deleted", "a")]
        assert not informer.by_index("phase", "Running")
        assert informer.age_s < 5


async def test_what_was_deleted_while_nobody_watched_is_told_after_the_relist(kube_api: FakeKubeApi, tmp_path: Path) -> None:
    for name in ("stays", "goes", "returns"):
        await kube_api.put("v1/pods", "fleet", name)
    async with following(kube_api, tmp_path) as (informer, heard, registry):
        heard.told.clear()
        await kube_api.stop()
        await kube_api.remove("v1/pods", "fleet", "goes")
        await kube_api.remove("v1/pods", "fleet", "returns")
        await kube_api.put("v1/pods", "fleet", "returns")
        kube_api.forget_history()
        await eventually(lambda: bool(informer.problem))
        assert kube_api.url in informer.problem
        await kube_api.start()
        await eventually(lambda: copied(informer) == truth(kube_api))
        assert heard.told == [("deleted", "goes"), ("deleted", "returns"), ("added", "returns")]
        await eventually(lambda: not informer.problem)
        text = registry.render().decode()
        assert 'kube_relists_total{cause="start",resource="pods"} 1.0' in text
        assert "kube_informer_objects" in text


async def test_a_server_that_came_back_with_an_older_state_is_believed(kube_api: FakeKubeApi, tmp_path: Path) -> None:
    await kube_api.put("v1/pods", "fleet", "a", phase="Pending")
    backup = copy.deepcopy((kube_api.objects, kube_api.version))
    async with following(kube_api, tmp_path) as (informer, _, _registry):
        for number in range(5):
            await kube_api.put("v1/pods", "fleet", f"later-{number}")
        await eventually(lambda: len(informer) == 6)
        await kube_api.stop()
        kube_api.objects, kube_api.version = backup
        kube_api.history.clear()
        await eventually(lambda: bool(informer.problem))
        await kube_api.start()
        await eventually(lambda: len(informer) == 1)
        await kube_api.put("v1/pods", "fleet", "new")
        await eventually(lambda: informer.get("fleet", "new") is not None)


async def test_bookmarks_carry_a_silent_watch_over_a_compaction_without_a_list(kube_api: FakeKubeApi, tmp_path: Path) -> None:
    kube_api.bookmark_s = 0.02
    await kube_api.put("v1/pods", "fleet", "a")
    async with following(kube_api, tmp_path) as (informer, _, registry):
        await eventually(lambda: any("watch" in path for _, path in kube_api.requests))
        kube_api.forget_history()
        await eventually(lambda: informer._version == str(kube_api.version))
        await kube_api.break_watches()
        await eventually(lambda: "kube_watch_restarts_total{" in registry.render().decode())
        await kube_api.put("v1/pods", "fleet", "b")
        await eventually(lambda: len(informer) == 2)
        assert sum("watch" not in path for _, path in kube_api.requests) == 1, "one list in all"


async def test_refusals_are_shown_and_outlasted(kube_api: FakeKubeApi, tmp_path: Path) -> None:
    kube_api.faults.append(Fault(403, times=3, path="watch", reason="Forbidden"))
    async with following(kube_api, tmp_path) as (informer, _, _registry):
        await eventually(lambda: "Forbidden" in informer.problem)
        await eventually(lambda: not informer.problem)
        await kube_api.put("v1/pods", "fleet", "a")
        await eventually(lambda: len(informer) == 1)


async def test_selected_and_namespaced_is_what_was_asked_for(kube_api: FakeKubeApi, tmp_path: Path) -> None:
    await kube_api.put("v1/pods", "fleet", "a", metadata={"labels": {"app": "x"}})
    await kube_api.put("v1/pods", "fleet", "b")
    await kube_api.put("v1/pods", "other", "c", metadata={"labels": {"app": "x"}})
    async with following(kube_api, tmp_path, namespace="fleet", labels="app=x") as (informer, _, _registry):
        await kube_api.put("v1/pods", "other", "d", metadata={"labels": {"app": "x"}})
        await kube_api.put("v1/pods", "fleet", "e", metadata={"labels": {"app": "x"}})
        await eventually(lambda: len(informer) == 2)
        assert sorted(key_of(obj)[1] for obj in informer.list("fleet")) == ["a", "e"]
        assert not informer.list("other")


CHANGES = st.lists(st.tuples(st.sampled_from(["touch", "toggle", "renew"]), st.sampled_from("abc")), max_size=4)
TROUBLES = st.sampled_from(["none", "break", "compact", "restart", "away", "refuse"])
ROUNDS = st.lists(st.tuples(CHANGES, TROUBLES, CHANGES, st.booleans()), min_size=1, max_size=6)
"""Changes that are told, trouble, changes while it lasts, and whether the copy may come to rest first."""


# Not shrunk: every failing example waits for seconds for a state that does not come.
@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(rounds=ROUNDS, event_410=st.booleans(), bookmarks=st.booleans())
def test_after_any_sequence_of_events_breaks_and_relists_the_copy_is_the_servers_state(
    rounds: list[tuple[list[tuple[str, str]], str, list[tuple[str, str]], bool]],
    event_410: bool,
    bookmarks: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    asyncio.run(_check(rounds, event_410, bookmarks, tmp_path_factory.mktemp("informer")))


async def _check(
    rounds: list[tuple[list[tuple[str, str]], str, list[tuple[str, str]], bool]], event_410: bool, bookmarks: bool, folder: Path
) -> None:
    api = FakeKubeApi()
    api.event_410, api.bookmark_s = event_410, 0.005 if bookmarks else 0.0
    for name in "ab":
        await api.put("v1/pods", "fleet", name)
    await api.start()
    try:
        async with following(api, folder) as (informer, heard, _):
            for before, trouble, during, rests in rounds:
                await _change(api, before)
                if rests:
                    await eventually(lambda: copied(informer) == truth(api), seconds=3)
                await _trouble(api, trouble, during)
            await eventually(lambda: copied(informer) == truth(api), seconds=3)
            assert {key: {"kind": "Pod", "apiVersion": "v1"} | obj for key, obj in heard.objects.items()} == truth(api)
    finally:
        await api.stop()


async def _change(api: FakeKubeApi, changes: list[tuple[str, str]]) -> None:
    """Touch changes or makes an object, toggle removes or makes it, renew makes another one of its name."""
    for what, name in changes:
        place = ("v1/pods", "fleet", name)
        there = place in api.objects
        if there and what != "touch":
            await api.remove(*place)
        if not there or what != "toggle":
            await api.put(*place, number=api.version)


async def _trouble(api: FakeKubeApi, trouble: str, during: list[tuple[str, str]]) -> None:
    if trouble in ("restart", "away"):
        await api.stop()
    if trouble == "refuse":
        api.faults.append(Fault(500, times=2))
    await _change(api, during)
    if trouble in ("compact", "away"):
        api.forget_history()
    if trouble in ("break", "compact", "refuse"):
        await api.break_watches()
    if trouble in ("restart", "away"):
        await api.start()


class Scripted:
    """A source that answers by script, without sockets: for what happens over minutes of virtual time."""

    def __init__(self, answers: list[str]) -> None:
        self.figures = KubeFigures()
        self.reconnect = Backoff(first_s=0.8, longest_s=30.0)
        self.answers, self.asked = answers, []
        self.version = 0

    async def list(self, *_: Any, **__: Any) -> ObjectList:
        self._note("list")
        self.version += 1
        return ObjectList([pod("a", self.version)], str(self.version))

    async def watch(self, *_: Any, on_open: Callable[[], None] | None = None, **__: Any) -> AsyncGenerator[WatchEvent, None]:
        self._note("watch")
        answer = self.answers.pop(0) if self.answers else "hold"
        if answer == "away":
            raise ClusterUnreachable("https://nowhere", "no connection", unsent=True)
        if answer == "expired":
            raise status_error({"code": 410, "reason": "Expired"}, what="WATCH")
        assert on_open is not None
        on_open()
        if answer == "hold":
            await asyncio.Event().wait()
        if answer == "minute":
            await asyncio.sleep(60)
        if answer == "event":
            self.version += 1
            yield WatchEvent("MODIFIED", pod("a", self.version))

    def _note(self, what: str) -> None:
        self.asked.append((what, round(asyncio.get_running_loop().time(), 1)))


def pod(name: str, version: int) -> Object:
    return {"metadata": {"name": name, "namespace": "fleet", "uid": "1", "resourceVersion": str(version)}}


async def run_for(informer: Informer, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await informer.run()


@pytest.mark.looptime
async def test_a_server_that_is_away_is_asked_less_and_less_often_and_never_seldom() -> None:
    source = Scripted(["away"] * 12)
    await run_for(Informer(source, PODS), 600)
    times = [at for what, at in source.asked if what == "watch"]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 0.3 <= gaps[0] <= 0.9
    assert all(15 <= gap <= 30.1 for gap in gaps[7:])


@pytest.mark.looptime
async def test_an_expired_version_is_listed_again_at_once_but_not_without_end() -> None:
    source = Scripted(["minute", "expired", "expired", "expired", "hold"])
    await run_for(Informer(source, PODS), 600)
    assert source.asked[:4] == [("list", 0.0), ("watch", 0.0), ("watch", 60.0), ("list", 60.0)]
    lists = [at for what, at in source.asked if what == "list"]
    assert len(lists) == 4
    assert lists[3] - lists[1] > 1.0, "a server that forgets at once is not asked in a loop"


@pytest.mark.looptime
async def test_watches_that_end_by_their_time_go_on_without_a_pause_and_empty_ones_do_not() -> None:
    source = Scripted(["minute", "minute", "event", "short", "short", "hold"])
    await run_for(Informer(source, PODS), 600)
    times = [at for what, at in source.asked if what == "watch"]
    assert times[:4] == [0.0, 60.0, 120.0, 120.0]
    assert times[4] > 120.2
    assert sum(what == "list" for what, _ in source.asked) == 1


@pytest.mark.looptime
async def test_age_says_for_how_long_nothing_was_heard() -> None:
    informer = Informer(Scripted(["hold"]), PODS)
    assert informer.age_s == float("inf")
    await run_for(informer, 90)
    assert informer.age_s == 90


@pytest.mark.looptime
async def test_a_resync_tells_everything_again() -> None:
    informer = Informer(Scripted(["hold"]), PODS, resync_s=30)
    told: list[str] = []
    informer.add_handler(lambda kind, old, new: told.append(kind))
    await run_for(informer, 100)
    assert told == ["added", "modified", "modified", "modified"]


@pytest.mark.looptime
async def test_a_handler_that_fails_ends_the_run_hides_nothing_from_others_and_is_told_all_again() -> None:
    informer = Informer(Scripted(["event", "hold"]), PODS)
    told: list[str] = []
    failing = [True]

    def fails(kind: str, old: Object | None, new: Object | None) -> None:
        if failing.pop() if failing else False:
            raise ValueError("broken handler")
        told.append(f"first {kind}")

    informer.add_handler(fails)
    informer.add_handler(lambda kind, old, new: told.append(f"second {kind}"))
    with pytest.raises(BaseExceptionGroup):
        await informer.run()
    assert told == ["second added"]
    await run_for(informer, 10)
    assert told[1:3] == ["first modified", "second modified"]


def test_nothing_that_was_handed_out_is_ever_changed() -> None:
    store = Store({"name": lambda obj: [obj["metadata"]["name"]]})
    first, second = pod("a", 1), pod("a", 2)
    copies = copy.deepcopy((first, second))
    store.put(first)
    store.put(second)
    store.replace([])
    assert (first, second) == copies
    assert store.by_index("name", "a") == []
