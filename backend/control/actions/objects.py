"""Reading StormServices, RoleSets and pods as the API writes them: names, roles, images, readiness. No I/O, no decision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any

from backend.api.actions import Manifest

API_VERSION = "orchestration.aibrix.ai/v1alpha1"
KIND = "StormService"
SERVICE_LABEL = "storm-service-name"
ROLE_LABEL = "role-name"
ROLESET_LABEL = "roleset-name"
REVISION_LABEL = "storm-service-revision"


def metadata(manifest: Manifest) -> Manifest:
    found: Manifest = manifest.get("metadata") or {}
    return found


def label(manifest: Manifest, name: str) -> str:
    return str((metadata(manifest).get("labels") or {}).get(name, ""))


def deleting(manifest: Manifest) -> bool:
    return bool(metadata(manifest).get("deletionTimestamp"))


def generation(manifest: Manifest) -> int:
    """Grows with every change of the spec, by whomever."""
    return int(metadata(manifest).get("generation") or 0)


def spec(manifest: Manifest) -> Manifest:
    found: Manifest = manifest.get("spec") or {}
    return found


def replicas(manifest: Manifest) -> int:
    """RoleSets wanted; 1 when unset."""
    wanted = spec(manifest).get("replicas")
    return 1 if wanted is None else int(wanted)


def roles(service: Manifest) -> list[Manifest]:
    return list(((spec(service).get("template") or {}).get("spec") or {}).get("roles") or [])


def role_replicas(role: Manifest) -> int:
    wanted = role.get("replicas")
    return 1 if wanted is None else int(wanted)


def pods_wanted(service: Manifest) -> dict[str, int]:
    """Pods a role over all RoleSets; a role of pod groups has `podGroupSize` pods an instance."""
    groups = replicas(service)
    return {str(role.get("name")): groups * role_replicas(role) * int(role.get("podGroupSize") or 1) for role in roles(service)}


def containers(role: Manifest) -> list[Manifest]:
    return list(((role.get("template") or {}).get("spec") or {}).get("containers") or [])


def is_pooled(service: Manifest) -> bool:
    """One group whose roles are changed in place, not groups that are replaced as a whole."""
    return (spec(service).get("updateStrategy") or {}).get("type") == "InPlaceUpdate"


def condition(manifest: Manifest, kind: str) -> Manifest | None:
    for one in (manifest.get("status") or {}).get("conditions") or []:
        if one.get("type") == kind:
            found: Manifest = one
            return found
    return None


def is_ready(manifest: Manifest) -> bool:
    return (condition(manifest, "Ready") or {}).get("status") == "True"


def is_live(pod: Manifest) -> bool:
    """Neither on its way out nor ended."""
    return not deleting(pod) and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")


def role_of(pod: Manifest) -> str:
    return label(pod, ROLE_LABEL)


def ready_by_role(pods: Iterable[Manifest]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for pod in pods:
        if is_live(pod) and is_ready(pod):
            counts[role_of(pod)] = counts.get(role_of(pod), 0) + 1
    return counts


def runs(pod: Manifest, role: Manifest) -> bool:
    """Whether the pod has the images of the role's template. Containers that admission added are not looked at."""
    images = {one.get("name"): one.get("image") for one in spec(pod).get("containers") or []}
    return all(images.get(one.get("name")) == one.get("image") for one in containers(role))


def trouble(pod: Manifest) -> str:
    """Why a pod does not come up, in the node's words: `ImagePullBackOff: ...`; empty when nothing is known."""
    status = pod.get("status") or {}
    for one in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (one.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") and waiting["reason"] not in ("ContainerCreating", "PodInitializing"):
            return _sentence(waiting)
        ended = (one.get("state") or {}).get("terminated") or {}
        if ended.get("reason"):
            return _sentence(ended)
    for one in status.get("conditions") or []:
        if one.get("type") == "PodScheduled" and one.get("status") == "False":
            return _sentence(one)
    return _sentence(status) if status.get("phase") == "Failed" else ""


def _sentence(told: Mapping[str, Any]) -> str:
    return ": ".join(str(told[part]) for part in ("reason", "message") if told.get(part))


def start_seconds(pods: Sequence[Manifest]) -> dict[str, float]:
    """Median of creation to ready, a role. Pods that restarted are left out: their readiness is of a later start."""
    seen: dict[str, list[float]] = {}
    for pod in pods:
        ready = condition(pod, "Ready") or {}
        restarted = any(one.get("restartCount") for one in (pod.get("status") or {}).get("containerStatuses") or [])
        created, since = metadata(pod).get("creationTimestamp"), ready.get("lastTransitionTime")
        if ready.get("status") == "True" and created and since and not restarted:
            seen.setdefault(role_of(pod), []).append(max(0.0, moment(since) - moment(created)))
    return {role: median(values) for role, values in seen.items()}


def moment(text: str) -> float:
    """A Kubernetes time as seconds since 1970."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def timestamp(seconds: float) -> str:
    """The other direction of `moment`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
