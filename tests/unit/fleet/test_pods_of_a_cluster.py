"""What the fleet makes of Pods as a Kubernetes API shows them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backend.fleet.pods import pod_of

READY = {"type": "Ready", "status": "True"}
NOT_READY = {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "containers with unready status: [engine]"}


def kube_pod(labels: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    status = {
        "phase": "Running",
        "podIP": "10.0.0.7",
        "conditions": [READY],
        "containerStatuses": [{"started": True, "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:10Z"}}}],
    }
    metadata: dict[str, Any] = {"name": "a", "namespace": "serving", "labels": {"model.aibrix.ai/name": "m", **(labels or {})}}
    metadata |= changes.pop("metadata", {})
    return {"metadata": metadata, "spec": {"containers": [{"image": "vllm/vllm-openai:v0.10.2"}]}, "status": {**status, **changes}}


def test_labels_image_and_status_make_a_pod_of_the_fleet() -> None:
    labels = {
        "model.aibrix.ai/port": "30000",
        "model.aibrix.ai/engine": "sglang",
        "role-name": "prefill",
        "roleset-name": "svc-roleset-x",
        "stormservice.orchestration.aibrix.ai/role-revision-name": "svc-7",
    }
    pod = pod_of(kube_pod(labels))
    assert pod is not None
    seen = msgspec.to_builtins(pod)
    del seen["labels"]
    assert seen == {
        "name": "a", "namespace": "serving", "ip": "10.0.0.7", "port": 30000, "model": "m", "engine": "sglang", "version": "0.10.2",
        "role": "prefill", "roleset": "svc-roleset-x", "revision": "svc-7", "image": "vllm/vllm-openai:v0.10.2", "state": "ready",
        "ready": True, "started_at": 1767225610.0,
    }  # fmt: skip


def test_what_says_who_may_share_a_request_is_kept_of_its_annotations() -> None:
    told = {
        "stormservice.orchestration.aibrix.ai/role-template-hashes": "decode=4c9xz2,prefill=884f64",
        "model.aibrix.ai/sglang-bootstrap-port": "9001",
    }
    labels = {"model.aibrix.ai/name": "m", "role-template-hash": "884f64"}
    pod = pod_of(kube_pod(metadata={"labels": labels, "annotations": {**told, "another.example/note": "long"}}))
    assert pod is not None
    assert (pod.annotations, pod.bootstrap_port) == (told, 9001)
    assert (pod.template_hash, pod.template_hashes) == ("884f64", {"decode": "4c9xz2", "prefill": "884f64"})


@pytest.mark.parametrize(
    "obj",
    [
        pytest.param({"metadata": {"name": "a"}}, id="no model"),
        pytest.param(kube_pod({"stormservice.orchestration.aibrix.ai/pod-group-index": "1"}), id="second rank of a group"),
        pytest.param(kube_pod({"ray.io/node-type": "worker"}), id="a worker of Ray"),
    ],
)
def test_what_could_not_be_asked_is_no_pod_of_the_fleet(obj: dict[str, Any]) -> None:
    assert pod_of(obj) is None


@pytest.mark.parametrize(
    ("obj", "state", "reason"),
    [
        pytest.param(
            kube_pod(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}), "stopping", "is being deleted", id="deleted, still ready"
        ),
        pytest.param(kube_pod(conditions=[NOT_READY]), "unready", NOT_READY["message"], id="probe fails"),
        pytest.param(kube_pod(podIP="", containerStatuses=[], conditions=[]), "starting", "", id="no address yet"),
        pytest.param(
            kube_pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}], containerStatuses=[]),
            "starting",
            "0/1 nodes are available",
            id="no node",
        ),
        pytest.param(
            kube_pod(
                conditions=[NOT_READY],
                containerStatuses=[{"restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}],
            ),
            "backoff",
            "ImagePullBackOff: no such image",
            id="unknown image",
        ),
        pytest.param(kube_pod(phase="Failed", reason="Evicted"), "failed", "Evicted", id="evicted"),
    ],
)
def test_a_pod_that_is_not_ready_says_why(obj: dict[str, Any], state: str, reason: str) -> None:
    pod = pod_of(obj)
    assert pod is not None
    assert (pod.state, pod.reason, pod.ready) == (state, reason, False)


def test_each_boot_has_a_start_of_its_own_even_within_a_second() -> None:
    status = {"started": True, "restartCount": 1, "state": {"running": {"startedAt": "2026-01-01T00:00:10Z"}}}
    first, second = pod_of(kube_pod()), pod_of(kube_pod(containerStatuses=[status]))
    assert first is not None
    assert second is not None
    assert first.started_at != second.started_at
