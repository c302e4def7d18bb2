"""The objects of the laptop's cluster, from within the process: what is stored, told, refused, and what survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backend.core.clock import ManualClock
from backend.core.errors import NotFound, StateFolderError
from backend.localkube.api.collector import Collector
from backend.localkube.api.status import ApiError
from backend.localkube.objects import Objects
from tests.contract.kubernetes.kubecontract.objects import crd

Json = dict[str, Any]


def pod(name: str, **spec: Any) -> Json:
    body = {"containers": [{"name": "main", "image": "engine:1"}], **spec}
    return {"metadata": {"name": name, "namespace": "default"}, "spec": body}


def told(objects: Objects, resource: str) -> list[tuple[str, str]]:
    """Collects (change, name) of every write from now on."""
    heard: list[tuple[str, str]] = []
    objects.subscribe(resource, lambda change, value: heard.append((change, value["metadata"]["name"])))
    return heard


def test_a_new_object_has_identity_and_defaults():
    made = Objects(clock=ManualClock(1_700_000_000)).create("pods", pod("a"))
    assert (made["kind"], made["apiVersion"], made["metadata"]["creationTimestamp"]) == ("Pod", "v1", "2023-11-14T22:13:20Z")
    assert (made["spec"]["restartPolicy"], made["status"]["phase"]) == ("Always", "Pending")


def test_what_is_handed_out_may_be_changed_without_harm():
    objects = Objects()
    first = objects.create("pods", pod("a"))
    first["spec"]["containers"][0]["image"] = "other"
    objects.list("pods")[0]["spec"].clear()
    found = objects.get("pods", "default", "a")
    assert found is not None
    assert found["spec"]["containers"][0]["image"] == "engine:1"


def test_a_changed_copy_is_a_change_and_the_same_copy_is_none():
    objects = Objects()
    copy = objects.create("pods", pod("a"))
    heard = told(objects, "pods")
    assert objects.update_status("pods", copy)["metadata"]["resourceVersion"] == copy["metadata"]["resourceVersion"]
    copy["status"]["phase"] = "Running"
    assert objects.update_status("pods", copy)["status"]["phase"] == "Running"
    assert heard == [("modified", "a")]


def test_a_stale_copy_is_refused_and_one_without_version_is_not():
    objects = Objects()
    stale = objects.create("pods", pod("a"))
    fresh = {**stale, "status": {"phase": "Running"}}
    objects.update_status("pods", fresh)
    with pytest.raises(ApiError) as refused:
        objects.update_status("pods", stale)
    assert (refused.value.code, refused.value.reason) == (409, "Conflict")
    del stale["metadata"]["resourceVersion"]
    objects.update_status("pods", {**stale, "status": {"phase": "Failed"}})


def test_a_bound_pod_waits_for_its_node_and_an_unbound_one_does_not():
    objects = Objects()
    objects.create("pods", pod("bound", nodeName="local-0"))
    objects.create("pods", pod("free"))
    heard = told(objects, "pods")
    objects.delete("pods", "default", "bound", grace_s=20)
    objects.delete("pods", "default", "free")
    found = objects.get("pods", "default", "bound")
    assert found is not None
    assert found["metadata"]["deletionGracePeriodSeconds"] == 20
    objects.delete("pods", "default", "bound", grace_s=0)
    assert heard == [("modified", "bound"), ("deleted", "free"), ("modified", "bound"), ("deleted", "bound")]


def test_binding_gives_a_node_once():
    objects = Objects()
    objects.create("pods", pod("a"))
    objects.bind("default", "a", "local-0")
    bound = objects.get("pods", "default", "a")
    assert bound is not None
    assert bound["spec"]["nodeName"] == "local-0"
    assert bound["status"]["conditions"][0]["type"] == "PodScheduled"
    with pytest.raises(ApiError, match="already assigned"):
        objects.bind("default", "a", "local-1")


def test_writes_of_a_listener_are_told_after_the_one_it_heard_of():
    objects = Objects()
    order: list[tuple[str, str]] = []

    def first(change: str, value: Json) -> None:
        order.append(("first", change))
        if change == "added":
            objects.update_status("pods", {**value, "status": {"phase": "Running"}})

    objects.subscribe("pods", first)
    objects.subscribe("pods", lambda change, _: order.append(("second", change)))
    objects.create("pods", pod("a"))
    assert order == [("first", "added"), ("second", "added"), ("first", "modified"), ("second", "modified")]


def test_a_listener_that_fails_keeps_neither_the_write_nor_the_others_from_happening(caplog: pytest.LogCaptureFixture):
    objects = Objects()

    def broken(change: str, value: Json) -> None:
        raise RuntimeError(change)

    objects.subscribe("pods", broken)
    heard = told(objects, "pods")
    objects.create("pods", pod("a"))
    assert heard == [("added", "a")]
    assert "a listener failed" in caplog.text


def test_who_has_unsubscribed_hears_nothing():
    objects = Objects()
    heard: list[str] = []
    objects.subscribe("pods", lambda change, _: heard.append(change))()
    objects.create("pods", pod("a"))
    assert heard == []


def test_a_hook_changes_and_refuses():
    objects = Objects()

    def hook(operation: str, kind: Any, new: Json | None, old: Json | None) -> Json | None:
        if operation != "CREATE" or kind.key != "pods" or new is None:
            return None
        if new["metadata"]["name"] == "bad":
            raise ApiError(403, "Forbidden", "not this one")
        return {**new, "metadata": {**new["metadata"], "labels": {"seen": "yes"}}}

    objects.hooks.append(hook)
    assert objects.create("pods", pod("good"))["metadata"]["labels"] == {"seen": "yes"}
    with pytest.raises(ApiError, match="not this one"):
        objects.create("pods", pod("bad"))
    assert objects.get("pods", "default", "bad") is None


def test_events_are_forgotten_an_hour_after_they_were_last_renewed():
    clock = ManualClock(1_700_000_000)
    objects = Objects(clock=clock)
    for name, last in (("old", "2023-11-14T22:13:20Z"), ("renewed", "2023-11-14T23:13:20Z")):
        about = {"kind": "Pod", "name": "a", "namespace": "default"}
        objects.create("events", {"metadata": {"name": name, "namespace": "default"}, "involvedObject": about, "lastTimestamp": last})
    clock.advance(3700)
    Collector(objects).forget_events()
    assert [event["metadata"]["name"] for event in objects.list("events")] == ["renewed"]


def test_a_resource_that_is_not_served_is_named():
    with pytest.raises(NotFound, match=r"widgets\.contract\.dev"):
        Objects().create("widgets.contract.dev", {"metadata": {"name": "w"}})


def test_everything_is_there_after_a_restart_under_far_greater_versions(tmp_path: Path):
    file = tmp_path / "cluster.sqlite"
    objects = Objects(file)
    objects.create("customresourcedefinitions.apiextensions.k8s.io", crd())
    widget = {"metadata": {"name": "w", "namespace": "default"}, "spec": {"size": "small"}}
    before = objects.create("widgets.contract.dev", widget)
    last = objects.store.version
    objects.close()
    again = Objects(file)
    assert again.get("widgets.contract.dev", "default", "w") == before
    assert again.store.version > last + 100_000
    with pytest.raises(ApiError) as expired:
        again.store.since("widgets.contract.dev", last)
    assert expired.value.code == 410
    again.close()


def test_two_clusters_do_not_share_a_state_file(tmp_path: Path):
    file = tmp_path / "cluster.sqlite"
    first = Objects(file)
    with pytest.raises(StateFolderError, match="cannot be used"):
        Objects(file)
    first.close()


def test_a_damaged_state_file_says_what_to_do(tmp_path: Path):
    file = tmp_path / "cluster.sqlite"
    file.write_bytes(b"no database at all" * 1000)
    with pytest.raises(StateFolderError, match="Move it away"):
        Objects(file)


@pytest.mark.parametrize("text", ["yesterday", "2026-02-30T00:00:00Z", "2026-01-01", "2026-01-01T00:00:00"])
def test_a_time_that_is_none_is_refused(text: str):
    lease = {"metadata": {"name": "l", "namespace": "default"}, "spec": {"renewTime": text}}
    with pytest.raises(ApiError, match="RFC 3339") as refused:
        Objects().create("leases.coordination.k8s.io", lease)
    assert refused.value.code == 400
