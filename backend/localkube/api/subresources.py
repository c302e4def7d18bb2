"""Scale, eviction and the container of a log: views of an object under its own path."""

from __future__ import annotations

from backend.localkube.api import ask, selectors, status
from backend.localkube.api.kinds import Kind
from backend.localkube.api.metadata import timestamp
from backend.localkube.api.status import INVALID, ApiError, Cause, Json
from backend.localkube.api.writing import Write
from backend.localkube.objects import Objects


def scale(kind: Kind, value: Json) -> Json:
    """An autoscaling/v1 Scale that shows the replicas of an object."""
    assert kind.scale is not None
    meta = value["metadata"]
    wanted = selectors.json_path(value, kind.scale.spec)
    found = selectors.json_path(value, kind.scale.status)
    state: Json = {"replicas": found[0] if found else 0}
    if kind.scale.selector:
        if text := selectors.json_path(value, kind.scale.selector):
            state["selector"] = text[0]
    elif labels := selectors.at(value, ["spec", "selector", "matchLabels"]):
        state["selector"] = ",".join(f"{name}={text}" for name, text in sorted(labels.items()))
    names = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {name: meta[name] for name in names if name in meta},
        "spec": {"replicas": wanted[0]} if wanted else {},
        "status": state,
    }


def scaled(kind: Kind, value: Json, wanted: Json) -> Json:
    """The object with the replicas of a Scale. Raises ApiError (409, 422)."""
    assert kind.scale is not None
    replicas = (wanted.get("spec") or {}).get("replicas", 0)
    if not isinstance(replicas, int) or replicas < 0:
        cause = Cause(INVALID, "spec.replicas", f"Invalid value: {replicas}: must be greater than or equal to 0")
        raise status.invalid("Scale", "autoscaling", value["metadata"]["name"], [cause])
    version = (wanted.get("metadata") or {}).get("resourceVersion")
    if version and version != value["metadata"]["resourceVersion"]:
        raise status.conflict(kind, value["metadata"]["name"])
    return selectors.put_at(value, kind.scale.spec, replicas)


def evict(objects: Objects, kind: Kind, namespace: str, name: str, body: Json, *, dry_run: bool) -> None:
    """A graceful deletion that leaves its reason in the pod's conditions."""

    def with_reason(pod: Json) -> Json:
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting",
            "lastTransitionTime": timestamp(objects.clock.now()),
        }
        state = pod.get("status", {})
        others = [entry for entry in state.get("conditions", ()) if entry["type"] != "DisruptionTarget"]
        return {**pod, "status": {**state, "conditions": [*others, condition]}}

    objects.change(kind, namespace, name, with_reason, Write(dry_run=dry_run), subresource="status")
    options = {**(body.get("deleteOptions") or {}), **({"dryRun": ["All"]} if dry_run else {})}
    objects.remove(kind, namespace, name, ask.deletion({}, options))


def container_of(pod: Json, asked: str) -> str:
    """The container whose log is meant. Raises ApiError (400)."""
    name, spec = pod["metadata"]["name"], pod["spec"]
    names = [container["name"] for part in ("containers", "initContainers") for container in spec.get(part, ())]
    if asked:
        if asked not in names:
            raise status.bad_request(f"container {asked} is not valid for pod {name}")
        return asked
    if len(spec["containers"]) > 1:
        raise ApiError(400, "BadRequest", f"a container name must be specified for pod {name}, choose one of: {names}")
    return str(names[0])
