"""Watches: order, resumption, selectors, bookmarks, initial events."""

from __future__ import annotations

import itertools
import json
import time
import zlib

import pytest

from tests.contract.kubernetes.kubecontract.client import AS_METADATA_LIST, AS_TABLE, Api, Event, Json, Watch, expect, refused
from tests.contract.kubernetes.kubecontract.objects import CONFIGMAPS, PODS, SECRETS, WIDGETS, Resource, configmap, pod, widget

INITIAL_END = "k8s.io/initial-events-end"


def secret(name: str, **labels: str) -> Json:
    return SECRETS.body(name, metadata={"labels": labels}, data={"a": "Yg=="})


def shape(event: Event) -> tuple[str, str]:
    return event["type"], event["object"]["metadata"]["name"]


def version(item: Json) -> int:
    return int(item["metadata"]["resourceVersion"])


def current(api: Api, ns: str, resource: Resource = SECRETS) -> str:
    """The version of a list, from which a watch can start."""
    return expect(api.get(resource.at(ns)))["metadata"]["resourceVersion"]


def test_watch_without_version(api: Api, ns: str) -> None:
    """Item 75: without a version the watch begins with an ADDED per object, then goes live."""
    for name in ("b", "a"):
        expect(api.post(SECRETS.at(ns), secret(name)), 201)
    with api.watch(SECRETS.at(ns)) as watch:
        assert watch.response.headers["content-type"] == "application/json"
        assert watch.response.headers["transfer-encoding"] == "chunked"
        assert sorted(shape(event) for event in watch.take(2)) == [("ADDED", "a"), ("ADDED", "b")]
        expect(api.post(SECRETS.at(ns), secret("c")), 201)
        event = watch.next()
    assert shape(event) == ("ADDED", "c")
    assert (event["object"]["kind"], event["object"]["apiVersion"]) == ("Secret", "v1")


def test_watch_with_version_zero(api: Api, ns: str) -> None:
    """Item 75: resourceVersion=0 also begins with what is there."""
    expect(api.post(SECRETS.at(ns), secret("a")), 201)
    with api.watch(SECRETS.at(ns), resourceVersion="0") as watch:
        assert shape(watch.next()) == ("ADDED", "a")


def test_watch_from_a_version(api: Api, ns: str) -> None:
    """Item 76: from version N exactly the later changes come, in order, none twice."""
    expect(api.post(SECRETS.at(ns), secret("before")), 201)
    start = current(api, ns)
    expect(api.post(SECRETS.at(ns), secret("a")), 201)
    for value in ("1", "2"):
        expect(api.merge(SECRETS.at(ns, "a"), {"metadata": {"labels": {"v": value}}}))
    expect(api.delete(SECRETS.at(ns, "a")))
    with api.watch(SECRETS.at(ns), resourceVersion=start) as watch:
        events = watch.take(4)
        expect(api.post(SECRETS.at(ns), secret("live")), 201)
        events.append(watch.next())
    assert [event["type"] for event in events] == ["ADDED", "MODIFIED", "MODIFIED", "DELETED", "ADDED"]
    versions = [version(event["object"]) for event in events]
    assert versions == sorted(set(versions))
    assert versions[0] > int(start)


def test_watch_from_an_events_version(api: Api, ns: str) -> None:
    """Item 76: the version of an event can be resumed from, and does not come again."""
    first = expect(api.post(SECRETS.at(ns), secret("a")), 201)["metadata"]["resourceVersion"]
    expect(api.post(SECRETS.at(ns), secret("b")), 201)
    with api.watch(SECRETS.at(ns), resourceVersion=first) as watch:
        assert shape(watch.next()) == ("ADDED", "b")


def test_watch_of_custom_resources(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 76: custom resources are watched the same way."""
    stored = expect(api.post(WIDGETS.at(ns), widget("w")), 201)
    with api.watch(WIDGETS.at(ns), resourceVersion=stored["metadata"]["resourceVersion"]) as watch:
        expect(api.merge(WIDGETS.at(ns, "w", "status"), {"status": {"phase": "Ready"}}))
        expect(api.delete(WIDGETS.at(ns, "w")))
        events = watch.take(2)
    assert [shape(event) for event in events] == [("MODIFIED", "w"), ("DELETED", "w")]
    assert events[1]["object"]["status"] == {"phase": "Ready"}


def test_watch_from_an_expired_version(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 77: a version before the known history is one ERROR event with a 410 Status, or HTTP 410."""
    with api.watch(WIDGETS.at(ns), resourceVersion="1") as watch:
        if watch.response.status_code == 200:
            events = list(watch)
            assert [event["type"] for event in events] == ["ERROR"]
            status = events[0]["object"]
        else:
            watch.response.read()
            status = watch.response.json()
    assert (status["kind"], status["code"], status["reason"]) == ("Status", 410, "Expired")
    assert status["message"].startswith("too old resource version: 1 (")


@pytest.mark.slow
def test_watch_from_the_future(api: Api, ns: str) -> None:
    """Item 77: a version ahead of the server: refused with 504 or silent, but nothing is invented."""
    with api.watch(SECRETS.at(ns), resourceVersion="999999999", timeoutSeconds=1) as watch:
        if watch.response.status_code != 200:
            watch.response.read()
            refused(watch.response, 504, "Timeout")
        else:
            assert {event["type"] for event in watch} <= {"ERROR"}


def test_broken_watch_version(api: Api, ns: str) -> None:
    """Item 77: a version that is no number is refused (1.37 answers 500, where 400 would be right)."""
    with api.watch(SECRETS.at(ns), resourceVersion="new") as watch:
        watch.response.read()
        assert watch.response.status_code in (400, 422, 500)


def test_selector_transitions(api: Api, ns: str) -> None:
    """Item 78: an object that stops matching is DELETED in its new version and old state, and ADDED on coming back."""
    stored = expect(api.post(SECRETS.at(ns), secret("a", color="red")), 201)
    path = SECRETS.at(ns, "a")
    query = {"labelSelector": "color=red", "resourceVersion": stored["metadata"]["resourceVersion"]}
    with api.watch(SECRETS.at(ns), **query) as watch:
        expect(api.merge(path, {"metadata": {"labels": {"more": "x"}}}))
        blue = expect(api.merge(path, {"metadata": {"labels": {"color": "blue"}}}))
        expect(api.merge(path, {"metadata": {"labels": {"more": "y"}}}))
        red = expect(api.merge(path, {"metadata": {"labels": {"color": "red"}}}))
        events = watch.take(3)
    assert [event["type"] for event in events] == ["MODIFIED", "DELETED", "ADDED"]
    assert version(events[1]["object"]) == version(blue)
    assert events[1]["object"]["metadata"]["labels"]["color"] == "red"
    assert events[2]["object"] == red


def test_field_selector_transitions(api: Api, ns: str) -> None:
    """Item 78: field selectors make the same transitions: a pod leaves `status.phase=Pending`."""
    stored = expect(api.post(PODS.at(ns), pod("p")), 201)
    query = {"fieldSelector": "status.phase=Pending", "resourceVersion": stored["metadata"]["resourceVersion"]}
    with api.watch(PODS.at(ns), **query) as watch:
        expect(api.merge(PODS.at(ns, "p", "status"), {"status": {"phase": "Running"}}))
        assert shape(watch.next()) == ("DELETED", "p")


def test_deleted_event(api: Api, ns: str) -> None:
    """Item 79: DELETED carries the last state under a version greater than any before."""
    expect(api.post(SECRETS.at(ns), secret("a")), 201)
    last = expect(api.merge(SECRETS.at(ns, "a"), {"metadata": {"labels": {"v": "9"}}}))
    with api.watch(SECRETS.at(ns), resourceVersion=last["metadata"]["resourceVersion"]) as watch:
        expect(api.delete(SECRETS.at(ns, "a")))
        event = watch.next()
    assert event["type"] == "DELETED"
    assert version(event["object"]) > version(last)
    assert event["object"]["metadata"]["labels"] == {"v": "9"}
    assert version(event["object"]) <= int(current(api, ns))


@pytest.mark.slow
def test_watch_timeout(api: Api, ns: str) -> None:
    """Item 80: timeoutSeconds ends the stream cleanly."""
    started = time.monotonic()
    with api.watch(SECRETS.at(ns), timeoutSeconds=2) as watch:
        assert watch.response.status_code == 200
        assert list(watch) == []
    assert 1.5 < time.monotonic() - started < 5


@pytest.mark.slow
def test_bookmarks(api: Api, ns: str) -> None:
    """Item 81: before the timeout a BOOKMARK with nothing but a version; resuming from it loses nothing."""
    with api.watch(SECRETS.at(ns), timeoutSeconds=3, allowWatchBookmarks="true") as watch:
        expect(api.post(SECRETS.at(ns), secret("a")), 201)
        events = list(watch)
    added = next(event["object"] for event in events if event["type"] == "ADDED")
    bookmarks = [event["object"] for event in events if event["type"] == "BOOKMARK"]
    assert [event["type"] for event in events if event["type"] != "BOOKMARK"] == ["ADDED"]
    assert bookmarks
    assert (bookmarks[-1]["kind"], bookmarks[-1]["apiVersion"]) == ("Secret", "v1")
    assert set(bookmarks[-1]["metadata"]) - {"creationTimestamp"} == {"resourceVersion"}
    assert version(bookmarks[-1]) >= version(added)
    assert [version(event["object"]) for event in events] == sorted(version(event["object"]) for event in events)
    expect(api.post(SECRETS.at(ns), secret("b")), 201)
    with api.watch(SECRETS.at(ns), resourceVersion=bookmarks[-1]["metadata"]["resourceVersion"]) as watch:
        assert shape(watch.next()) == ("ADDED", "b")


def initial(watch: Watch) -> list[Event]:
    """The events up to and with the bookmark that ends the initial ones."""
    events = []
    for event in watch:
        events.append(event)
        if event["type"] == "BOOKMARK" and INITIAL_END in event["object"]["metadata"].get("annotations", {}):
            return events
    raise AssertionError("no bookmark ended the initial events")


@pytest.mark.parametrize("query", [{}, {"resourceVersion": "0"}], ids=["latest", "any"])
def test_initial_events(api: Api, ns: str, query: dict[str, str]) -> None:
    """Item 82: sendInitialEvents brings an ADDED for each object, then an annotated BOOKMARK, then live events."""
    for name in ("a", "b"):
        expect(api.post(SECRETS.at(ns), secret(name)), 201)
    params = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    with api.watch(SECRETS.at(ns), **params, **query) as watch:
        events = initial(watch)
        expect(api.post(SECRETS.at(ns), secret("c")), 201)
        live = watch.next()
    assert [shape(event) for event in events[:-1]] == [("ADDED", "a"), ("ADDED", "b")]
    end = events[-1]["object"]
    assert end["metadata"]["annotations"] == {INITIAL_END: "true"}
    assert version(end) >= max(version(event["object"]) for event in events[:-1])
    assert shape(live) == ("ADDED", "c")


def test_compressed_initial_events(api: Api, ns: str) -> None:
    """Item 82: with gzip allowed the stream may be several gzip members; a client has to read on after the first."""
    expect(api.post(SECRETS.at(ns), secret("a")), 201)
    params = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    with api.watch(SECRETS.at(ns), **params, encoding="gzip") as watch:
        chunks = watch.response.iter_raw()
        compressed = watch.response.headers.get("content-encoding") == "gzip"
        decoder = zlib.decompressobj(wbits=31)
        text = b""
        while b'"c"' not in text:
            if INITIAL_END.encode() in text and b'"b"' not in text:
                expect(api.post(SECRETS.at(ns), secret("b")), 201)
                expect(api.post(SECRETS.at(ns), secret("c")), 201)
            chunk = next(chunks)
            while compressed and chunk:
                text += decoder.decompress(chunk)
                chunk = decoder.unused_data
                decoder = zlib.decompressobj(wbits=31) if decoder.eof else decoder
            text += chunk
    kinds = [json.loads(line)["type"] for line in text.splitlines() if line.endswith(b"}")]
    assert kinds[:2] == ["ADDED", "BOOKMARK"]
    assert [kind for kind in kinds[2:] if kind != "BOOKMARK"] == ["ADDED", "ADDED"]


def test_initial_events_of_custom_resources(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 82: custom resources as well; an empty set is only the bookmark."""
    params = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    with api.watch(WIDGETS.at(ns), **params) as watch:
        events = initial(watch)
    assert [event["type"] for event in events] == ["BOOKMARK"]
    assert (events[0]["object"]["kind"], events[0]["object"]["apiVersion"]) == ("Widget", "contract.dev/v1")


def test_initial_events_not_older_than_a_write(api: Api, ns: str) -> None:
    """Item 82: with a version the initial state is at least that fresh."""
    stored = expect(api.post(SECRETS.at(ns), secret("a")), 201)
    params = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    with api.watch(SECRETS.at(ns), **params, resourceVersion=stored["metadata"]["resourceVersion"]) as watch:
        assert [event["type"] for event in initial(watch)] == ["ADDED", "BOOKMARK"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"sendInitialEvents": "true", "allowWatchBookmarks": "true"}, "resourceVersionMatch"),
        ({"resourceVersionMatch": "NotOlderThan"}, "resourceVersionMatch"),
        (
            {"sendInitialEvents": "true", "resourceVersionMatch": "Exact", "allowWatchBookmarks": "true"},
            "resourceVersionMatch",
        ),
    ],
    ids=["no-match", "no-initial", "exact"],
)
def test_bad_initial_events(api: Api, ns: str, query: dict[str, str], field: str) -> None:
    """Item 82: sendInitialEvents and resourceVersionMatch=NotOlderThan only come together."""
    with api.watch(SECRETS.at(ns), **query) as watch:
        watch.response.read()
        status = refused(watch.response, 422, "Invalid")
    assert field in {cause["field"] for cause in status["details"]["causes"]}


def test_watch_of_one_name(api: Api, ns: str) -> None:
    """Item 83: a watch of metadata.name sees this object only."""
    start = current(api, ns)
    with api.watch(SECRETS.at(ns), fieldSelector="metadata.name=b", resourceVersion=start) as watch:
        for name in ("a", "b"):
            expect(api.post(SECRETS.at(ns), secret(name)), 201)
        assert shape(watch.next()) == ("ADDED", "b")


def test_watch_by_the_old_path(api: Api, ns: str) -> None:
    """Item 83: the deprecated /watch/ paths still work."""
    expect(api.post(SECRETS.at(ns), secret("a")), 201)
    with api.watch(f"/api/v1/watch/namespaces/{ns}/secrets/a") as watch:
        assert shape(watch.next()) == ("ADDED", "a")


def test_watch_parameter_spelling(api: Api, ns: str) -> None:
    """Item 83: `watch=1` is as good as `watch=true`."""
    expect(api.post(SECRETS.at(ns), secret("a")), 201)
    with api.watch(SECRETS.at(ns), watch="1") as watch:
        assert shape(watch.next()) == ("ADDED", "a")


def test_watch_as_table(api: Api, ns: str) -> None:
    """Item 84: as Tables the columns come with the first event only."""
    for name in ("a", "b"):
        expect(api.post(SECRETS.at(ns), secret(name)), 201)
    with api.watch(SECRETS.at(ns), accept=AS_TABLE) as watch:
        first, second = watch.take(2)
    assert first["type"] == second["type"] == "ADDED"
    assert first["object"]["kind"] == second["object"]["kind"] == "Table"
    assert [column["name"] for column in first["object"]["columnDefinitions"]] == ["Name", "Type", "Data", "Age"]
    assert not second["object"].get("columnDefinitions")
    assert {event["object"]["rows"][0]["cells"][0] for event in (first, second)} == {"a", "b"}


def test_watch_of_metadata(api: Api, ns: str) -> None:
    """Item 84: metadata-only watches have PartialObjectMetadata in their events."""
    expect(api.post(SECRETS.at(ns), secret("a")), 201)
    with api.watch(SECRETS.at(ns), accept=AS_METADATA_LIST.replace("MetadataList", "Metadata")) as watch:
        item = watch.next()["object"]
    assert (item["kind"], item["apiVersion"]) == ("PartialObjectMetadata", "meta.k8s.io/v1")
    assert "data" not in item


def test_watch_stays_in_its_namespace(api: Api, ns: str, other_ns: str) -> None:
    """Item 85: a namespaced watch sees nothing of other namespaces; one across all sees both."""
    start = current(api, ns)
    with (
        api.watch(SECRETS.at(ns), resourceVersion=start) as mine,
        api.watch(SECRETS.at(), resourceVersion=start, labelSelector=f"test={ns}") as every,
    ):
        for namespace in (other_ns, ns):
            expect(api.post(SECRETS.at(namespace), secret("a", test=ns)), 201)
        assert mine.next()["object"]["metadata"]["namespace"] == ns
        assert [event["object"]["metadata"]["namespace"] for event in every.take(2)] == [other_ns, ns]


def test_two_watches_see_one_order(api: Api, ns: str) -> None:
    """Item 76: all watches of a resource see the same events in the same order."""
    start = current(api, ns)
    with (
        api.watch(SECRETS.at(ns), resourceVersion=start) as first,
        api.watch(SECRETS.at(ns), resourceVersion=start) as second,
    ):
        for name in ("a", "b", "c"):
            expect(api.post(SECRETS.at(ns), secret(name)), 201)
        expect(api.delete(SECRETS.at(ns)))
        seen = first.take(6)
        assert seen == second.take(6)
    assert all(version(one["object"]) < version(two["object"]) for one, two in itertools.pairwise(seen))


def test_versions_are_common_to_all_kinds(api: Api, ns: str) -> None:
    """Item 76: versions grow over all kinds together, so a list's version is good for any later write."""
    one = version(expect(api.post(SECRETS.at(ns), secret("a")), 201))
    two = version(expect(api.post(CONFIGMAPS.at(ns), configmap("a")), 201))
    three = version(expect(api.merge(SECRETS.at(ns, "a"), {"data": {"b": "Yg=="}})))
    assert one < two < three
