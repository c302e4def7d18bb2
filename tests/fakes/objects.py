"""The cluster's objects in memory: just enough of the API server's store for tests of what lives beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from backend.core.errors import NotFound, StaleState

Json = dict[str, Any]


class Objects:
    """Synchronous; listeners are called after each write. A bound Pod that is deleted stays, marked, until its grace is 0."""

    def __init__(self, state: dict[str, dict[tuple[str, str], Json]] | None = None) -> None:
        """`state` of another store: what a cluster remembers when its process was killed."""
        self.state = state if state is not None else {}
        self.writes = 0
        self._listeners: dict[str, list[Callable[[Any, Json], None]]] = {}
        self._uids = itertools.count(sum(len(objects) for objects in self.state.values()) + 1)

    def get(self, resource: str, namespace: str, name: str) -> Json | None:
        return self.state.get(resource, {}).get((namespace, name))

    def list(self, resource: str, namespace: str | None = None) -> list[Json]:
        return [obj for (where, _), obj in sorted(self.state.get(resource, {}).items()) if namespace in (None, where)]

    def create(self, resource: str, obj: Json) -> Json:
        metadata = {"uid": f"uid-{next(self._uids)}", "namespace": "" if resource == "nodes" else "default", **obj["metadata"]}
        key = metadata["namespace"], metadata["name"]
        if key in self.state.get(resource, {}):
            raise StaleState(f"{resource} {key} exists")
        return self._put(resource, {**obj, "metadata": metadata}, "added")

    def update(self, resource: str, obj: Json) -> Json:
        former = self._former(resource, obj)
        new = {**obj, "status": former["status"]} if "status" in former else obj
        if new["metadata"].get("deletionTimestamp") and resource != "pods" and not new["metadata"].get("finalizers"):
            return self._drop(resource, new)
        return self._put(resource, new, "modified") if new != former else former

    def update_status(self, resource: str, obj: Json) -> Json:
        former = self._former(resource, obj)
        return self._put(resource, {**former, "status": obj["status"]}, "modified")

    def patch(self, resource: str, name: str, change: Callable[[Json], Json], namespace: str = "default") -> Json:
        """What a user does: read, change, write."""
        found = self.get(resource, namespace, name)
        assert found is not None, f"there is no {name} among {resource}"
        return self.update(resource, change(found))

    def delete(self, resource: str, namespace: str, name: str, *, grace_s: int | None = None) -> None:
        found = self.get(resource, namespace, name)
        if found is None:
            raise NotFound(f"there is no {resource} {namespace}/{name}")
        grace_s = found["spec"].get("terminationGracePeriodSeconds", 30) if grace_s is None and resource == "pods" else grace_s
        if resource == "pods" and grace_s and found["spec"].get("nodeName"):
            marks = {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": grace_s}
            self._put(resource, {**found, "metadata": {**found["metadata"], **marks}}, "modified")
        else:
            self._drop(resource, found)

    def subscribe(self, resource: str, callback: Callable[[Any, Json], None]) -> Callable[[], None]:
        self._listeners.setdefault(resource, []).append(callback)
        return lambda: self._listeners[resource].remove(callback) if callback in self._listeners[resource] else None

    def _former(self, resource: str, obj: Json) -> Json:
        metadata = obj["metadata"]
        former = self.get(resource, metadata["namespace"], metadata["name"])
        if former is None:
            raise NotFound(f"there is no {resource} {metadata['name']}")
        if metadata.get("resourceVersion") != former["metadata"]["resourceVersion"]:
            raise StaleState(f"{resource} {metadata['name']} has changed")
        return former

    def _put(self, resource: str, obj: Json, change: str) -> Json:
        self.writes += 1
        new = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.writes)}}
        self.state.setdefault(resource, {})[new["metadata"]["namespace"], new["metadata"]["name"]] = new
        return self._tell(resource, change, new)

    def _drop(self, resource: str, obj: Json) -> Json:
        del self.state[resource][obj["metadata"]["namespace"], obj["metadata"]["name"]]
        return self._tell(resource, "deleted", obj)

    def _tell(self, resource: str, change: str, obj: Json) -> Json:
        for callback in list(self._listeners.get(resource, [])):
            callback(change, obj)
        return obj


def pod(name: str = "vllm-0", image: str = "vllm/vllm-openai:v0.10.2", *, labels: dict[str, str] | None = None, **more: Any) -> Json:
    """A Pod as a controller makes it; `more` are fields of its container, but those of a Pod's spec."""
    of_pod = ("terminationGracePeriodSeconds", "restartPolicy", "readinessGates", "nodeName", "schedulingGates", "initContainers")
    spec = {field: more.pop(field) for field in of_pod if field in more}
    container = {"name": "engine", "image": image, **more}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": labels or {}},
        "spec": {"containers": [container], "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, **spec},
        "status": {"phase": "Pending"},
    }


def with_image(image: str) -> Callable[[Json], Json]:
    """A change for `Objects.patch`: another image for the first container."""

    def change(obj: Json) -> Json:
        first, *others = obj["spec"]["containers"]
        return {**obj, "spec": {**obj["spec"], "containers": [{**first, "image": image}, *others]}}

    return change
