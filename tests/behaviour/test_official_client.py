"""The official Python client against the laptop's API server: its typed answers refuse whatever is incomplete."""

from __future__ import annotations

import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from kubernetes import client, config, dynamic, watch

from tests.behaviour.test_local_cluster_survives import Servers, servers, start

__all__ = ["servers"]

POD = {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "x", "ports": [{"containerPort": 1}]}]}}
RUNNING = {"name": "c", "ready": True, "restartCount": 0, "image": "x", "imageID": "", "state": {"running": {}}}


@pytest.fixture
def api(servers: Servers, tmp_path: Path) -> Any:
    start(servers, tmp_path)
    return config.new_client_from_config(str(tmp_path / "kubeconfig"))


def test_pods_events_and_watches(api: Any):
    core = client.CoreV1Api(api)
    made = core.create_namespaced_pod("default", POD)
    core.patch_namespaced_pod_status("a", "default", {"status": {"phase": "Running", "containerStatuses": [RUNNING]}})
    assert core.read_namespaced_pod("a", "default").status.container_statuses[0].ready
    about = client.V1ObjectReference(kind="Pod", namespace="default", name="a", uid=made.metadata.uid)
    metadata = client.V1ObjectMeta(name="e")
    core.create_namespaced_event("default", client.CoreV1Event(metadata=metadata, involved_object=about, reason="Tested", type="Normal"))
    assert core.list_namespaced_event("default").items[0].reason == "Tested"
    seen = [event["object"].metadata.name for event in watch.Watch().stream(core.list_namespaced_pod, "default", timeout_seconds=1)]
    assert seen == ["a"]


def test_leases_revisions_and_the_dynamic_client(api: Any):
    now = datetime.now(UTC)
    lease = client.V1Lease(metadata=client.V1ObjectMeta(name="l"), spec=client.V1LeaseSpec(holder_identity="me", renew_time=now))
    assert client.CoordinationV1Api(api).create_namespaced_lease("default", lease).spec.renew_time == now
    apps = client.AppsV1Api(api)
    apps.create_namespaced_controller_revision("default", {"metadata": {"name": "r"}, "revision": 1, "data": {"spec": {"x": 1}}})
    assert apps.list_namespaced_controller_revision("default").items[0].revision == 1
    maps = dynamic.DynamicClient(api).resources.get(api_version="v1", kind="ConfigMap")
    maps.create(namespace="default", body={"metadata": {"name": "m"}, "data": {"a": "b"}})
    assert maps.get(namespace="default").items[0].data.to_dict() == {"a": "b"}


def test_a_deleted_namespace_is_emptied_and_goes(api: Any):
    core = client.CoreV1Api(api)
    core.create_namespace({"metadata": {"name": "short"}})
    core.create_namespaced_config_map("short", {"metadata": {"name": "c"}, "data": {"a": "b"}})
    core.delete_namespace("short")
    deadline = time.monotonic() + 5
    while "short" in [item.metadata.name for item in core.list_namespace().items]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert core.list_config_map_for_all_namespaces().items == []
