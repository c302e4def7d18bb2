"""The controllers against an API server on a real socket: they do what the plan says, once, whatever the server and its watches do."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from backend.core.supervise import Supervisor
from backend.kube.client import KubeClient
from backend.storm import names
from backend.storm.service import StormControllers
from tests.fakes.kubeapi import Fault, write_kubeconfig
from tests.fakes.storm import role, storm_service
from tests.fakes.stormcluster import SlowWatches, StormCluster, storm_cluster
from tests.fakes.waiting import eventually

__all__ = ["storm_cluster"]


@asynccontextmanager
async def _running(cluster: StormCluster, folder: Path, client_type: type[KubeClient] = KubeClient) -> AsyncIterator[StormControllers]:
    client = client_type.from_kubeconfig(write_kubeconfig(folder / "config", cluster.url))
    async with Supervisor("test") as tasks:
        controllers = StormControllers(client)
        controllers.start(tasks)
        yield controllers
        assert tasks.restarts == {}
    await client.close()


def _status(cluster: StormCluster, name: str = "svc") -> dict[str, Any]:
    return cluster.the(names.STORM_SERVICES, name).get("status") or {}


def _ready(cluster: StormCluster, name: str = "svc") -> bool:
    item = cluster.the(names.STORM_SERVICES, name)
    conditions = {entry["type"]: entry["status"] for entry in _status(cluster, name).get("conditions") or ()}
    return conditions.get("Ready") == "True" and _status(cluster, name)["observedGeneration"] == item["metadata"]["generation"]


def _images(cluster: StormCluster) -> Counter[str]:
    return Counter(pod["spec"]["containers"][0]["image"] for pod in cluster.items(names.PODS))


def _with_image(service: dict[str, Any], image: str) -> dict[str, Any]:
    roles = [
        {**entry, "template": {"spec": {"containers": [{"name": "engine", "image": image}]}}}
        for entry in service["spec"]["template"]["spec"]["roles"]
    ]
    template = {**service["spec"]["template"], "spec": {**service["spec"]["template"]["spec"], "roles": roles}}
    return {**service, "spec": {**service["spec"], "template": template}}


def _writes(cluster: StormCluster, method: str, word: str) -> int:
    return sum(seen == method and word in path for seen, path in cluster.requests)


def _all_seen(cluster: StormCluster, controllers: StormControllers) -> bool:
    """The watches have told everything there is."""
    return all(
        controllers.informers[resource].get("default", item["metadata"]["name"]) == item
        for resource in controllers.informers
        for item in cluster.items(resource)
    )


@pytest.mark.parametrize("in_place", [False, True], ids=["replica mode", "pooled"])
async def test_a_service_is_created_upgraded_and_deleted(storm_cluster: StormCluster, tmp_path: Path, in_place: bool) -> None:
    service = storm_service(role("prefill", 2), role("decode", 1), replicas=1 if in_place else 2, in_place=in_place)
    groups = 1 if in_place else 2
    async with _running(storm_cluster, tmp_path):
        await storm_cluster.apply(names.STORM_SERVICES, service)
        await eventually(lambda: _ready(storm_cluster))
        assert len(storm_cluster.items(names.PODS)) == 3 * groups
        assert storm_cluster.the(names.SERVICES, "svc")["spec"]["clusterIP"] == "None"
        await storm_cluster.apply(names.STORM_SERVICES, _with_image(service, "engine:v2"))
        await eventually(lambda: _ready(storm_cluster))
        assert _images(storm_cluster) == {"engine:v2": 3 * groups}
        assert len(storm_cluster.items(names.CONTROLLER_REVISIONS)) == 2
        await storm_cluster.end(names.STORM_SERVICES, "svc")
        await eventually(lambda: not any(storm_cluster.items(kind) for kind in (names.STORM_SERVICES, names.ROLE_SETS, names.PODS)))
        assert storm_cluster.items(names.SERVICES) == storm_cluster.items(names.CONTROLLER_REVISIONS) == []


async def test_slow_watches_never_double_an_action(storm_cluster: StormCluster, tmp_path: Path) -> None:
    """As observed elsewhere: up to 23 surplus pods from a cache that lags behind its own writes."""
    service = storm_service(role("prefill", 8, surge=2, unavailable=0), role("decode", 6, stateful=True), in_place=True, order="Parallel")
    async with _running(storm_cluster, tmp_path, SlowWatches):
        await storm_cluster.apply(names.STORM_SERVICES, service)
        await eventually(lambda: _ready(storm_cluster))
        assert storm_cluster.most == {"prefill": 8, "decode": 6}
        assert _writes(storm_cluster, "POST", "/pods") == 14
        await storm_cluster.apply(names.STORM_SERVICES, _with_image(service, "engine:v2"))
        await eventually(lambda: _ready(storm_cluster), 30)
        assert storm_cluster.most == {"prefill": 10, "decode": 6}
        assert _writes(storm_cluster, "POST", "/pods") == 28
        assert _writes(storm_cluster, "DELETE", "/pods") == 14


async def test_a_converged_service_is_left_alone(storm_cluster: StormCluster, tmp_path: Path) -> None:
    async with _running(storm_cluster, tmp_path) as controllers:
        await storm_cluster.apply(names.STORM_SERVICES, storm_service(role("prefill", 2)))
        await eventually(lambda: _ready(storm_cluster))
        await eventually(lambda: all("'status': 'True'" in str(item.get("status")) for item in storm_cluster.items(names.ROLE_SETS)))
        await eventually(lambda: not controllers.view.writes and _all_seen(storm_cluster, controllers))
        storm_cluster.requests.clear()
        item = storm_cluster.the(names.STORM_SERVICES, "svc")
        await storm_cluster.apply(names.STORM_SERVICES, {**item, "spec": {**item["spec"], "revisionHistoryLimit": 5}})
        await eventually(lambda: _ready(storm_cluster))
        assert [(method, path) for method, path in storm_cluster.requests if method != "GET"] == [
            ("PATCH", "/apis/orchestration.aibrix.ai/v1alpha1/namespaces/default/stormservices/svc/status")
        ]


async def test_many_pod_events_are_few_status_writes(storm_cluster: StormCluster, tmp_path: Path) -> None:
    async with _running(storm_cluster, tmp_path):
        await storm_cluster.apply(names.STORM_SERVICES, storm_service(role("prefill", 30)))
        await eventually(lambda: _ready(storm_cluster))
    assert _writes(storm_cluster, "PATCH", "/status") <= 12


async def test_a_create_whose_answer_got_lost_is_not_repeated(storm_cluster: StormCluster, tmp_path: Path) -> None:
    storm_cluster.lose_answers = 2
    async with _running(storm_cluster, tmp_path, SlowWatches):
        await storm_cluster.apply(names.STORM_SERVICES, storm_service(role("prefill", 3), role("decode", 2)))
        await eventually(lambda: _ready(storm_cluster))
    assert storm_cluster.most == {"prefill": 3, "decode": 2}


async def test_a_refusal_becomes_a_condition_and_an_event_and_heals_by_itself(storm_cluster: StormCluster, tmp_path: Path) -> None:
    storm_cluster.faults.append(Fault(403, times=4, method="POST", path="/pods", reason="Forbidden"))
    async with _running(storm_cluster, tmp_path):
        await storm_cluster.apply(names.STORM_SERVICES, storm_service(role("prefill", 2), role("decode", 2)))
        failure = lambda: [c["message"] for c in _status(storm_cluster).get("conditions", ()) if c["type"] == "ReplicaFailure"]  # noqa: E731
        await eventually(lambda: bool(failure()))
        assert "403" in failure()[0]
        await eventually(lambda: _ready(storm_cluster))
        assert failure() == []
    assert "FailedCreate" in {event["reason"] for event in storm_cluster.items("events")}


async def test_a_field_that_cannot_be_obeyed_is_told_by_condition_and_event(storm_cluster: StormCluster, tmp_path: Path) -> None:
    service = storm_service(role("prefill", 2), surge="25")
    async with _running(storm_cluster, tmp_path):
        await storm_cluster.apply(names.STORM_SERVICES, service)
        await eventually(lambda: any(event["reason"] == "InvalidSpec" for event in storm_cluster.items("events")))
        await eventually(lambda: "spec.updateStrategy.maxSurge" in str(_status(storm_cluster)))
        assert storm_cluster.items(names.ROLE_SETS) == []
        service["spec"]["updateStrategy"]["maxSurge"] = "25%"
        await storm_cluster.apply(names.STORM_SERVICES, {**service, "spec": dict(service["spec"])})
        await eventually(lambda: len(storm_cluster.items(names.PODS)) == 2)


async def test_a_controller_that_is_killed_half_way_is_followed_by_one_that_goes_on(storm_cluster: StormCluster, tmp_path: Path) -> None:
    service = storm_service(role("prefill", 4), role("decode", 4), in_place=True, order="Interleave")
    async with _running(storm_cluster, tmp_path):
        await storm_cluster.apply(names.STORM_SERVICES, service)
        await eventually(lambda: _ready(storm_cluster))
        await storm_cluster.apply(names.STORM_SERVICES, _with_image(service, "engine:v2"))
        await eventually(lambda: _images(storm_cluster)["engine:v2"] >= 2)
    async with _running(storm_cluster, tmp_path):
        await eventually(lambda: _ready(storm_cluster))
    assert _images(storm_cluster) == {"engine:v2": 8}
    assert storm_cluster.most == {"prefill": 4, "decode": 4}


async def test_watches_that_break_and_a_server_that_fails_only_delay(storm_cluster: StormCluster, tmp_path: Path) -> None:
    service = storm_service(role("prefill", 3), role("decode", 3), in_place=True)
    async with _running(storm_cluster, tmp_path):
        await storm_cluster.apply(names.STORM_SERVICES, service)
        await eventually(lambda: _ready(storm_cluster))
        await storm_cluster.apply(names.STORM_SERVICES, _with_image(service, "engine:v2"))
        storm_cluster.faults.append(Fault(500, times=5, method="POST"))
        storm_cluster.faults.append(Fault(409, times=3, method="PATCH", reason="Conflict"))
        await storm_cluster.break_watches()
        await eventually(lambda: _ready(storm_cluster), 20)
    assert _images(storm_cluster) == {"engine:v2": 6}
    assert storm_cluster.most == {"prefill": 3, "decode": 3}


async def test_a_pause_reaches_role_sets_that_are_on_their_way(storm_cluster: StormCluster, tmp_path: Path) -> None:
    service = storm_service(role("prefill", 6), in_place=True)
    async with _running(storm_cluster, tmp_path) as controllers:
        await storm_cluster.apply(names.STORM_SERVICES, service)
        await eventually(lambda: _ready(storm_cluster))
        upgraded = _with_image(service, "engine:v2")
        await storm_cluster.apply(names.STORM_SERVICES, upgraded)
        await eventually(lambda: _images(storm_cluster)["engine:v2"] >= 1)
        await storm_cluster.apply(names.STORM_SERVICES, {**upgraded, "spec": {**upgraded["spec"], "paused": True}})
        await eventually(lambda: "paused" in str(_status(storm_cluster).get("conditions")) and _status(storm_cluster)["readyReplicas"] == 1)
        assert _images(storm_cluster)["engine:v1"] >= 2
        await storm_cluster.apply(names.STORM_SERVICES, upgraded)
        await eventually(lambda: _ready(storm_cluster))
        assert controllers.problems == {}
