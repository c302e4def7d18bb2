"""A cluster in virtual time: what a plan's actions would do, given how long pods take to start and to end.

It knows just enough of an API server and its nodes for the planner to go on: generated names, owner references, finalizers, graceful
deletion. Objects are replaced, never changed, so those that it was given stay as they are.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any, Protocol

from . import names
from .actions import Action, Create, Delete, Object, Observed, Patch
from .hashing import ALPHABET
from .merge import merge
from .names import CONTROLLER_REVISIONS, PODS, ROLE_SETS, SERVICES, STORM_SERVICES
from .status import stamp

RESOURCES = (STORM_SERVICES, ROLE_SETS, PODS, SERVICES, CONTROLLER_REVISIONS)
_SUFFIX_LENGTH = 5


class Behaviour(Protocol):
    """How pods behave, in seconds from creation to ready (None: never) and from deletion to gone."""

    def start_s(self, pod: Object) -> float | None: ...

    def end_s(self, pod: Object) -> float: ...


class VirtualCluster:
    """Objects by resource and name in one namespace, a clock, and the changes that are due."""

    def __init__(self, behaviour: Behaviour, now: float) -> None:
        self.behaviour = behaviour
        self.now = now
        self.objects: dict[str, dict[str, dict[str, Any]]] = {resource: {} for resource in RESOURCES}
        self._due: list[tuple[float, int, str, str]] = []
        self._made = 0
        self._adopted: set[str] = set()

    def adopt(self, resource: str, items: Iterable[Object]) -> None:
        """Take over objects as they stand; pods on their way are given the time that a pod needs from now."""
        for item in items:
            name = item["metadata"]["name"]
            self.objects[resource][name] = dict(item)
            self._adopted.add(item["metadata"].get("uid", ""))
            if resource == PODS:
                self._expect(name)

    def list(self, resource: str) -> list[dict[str, Any]]:
        return list(self.objects[resource].values())

    def observed(self, service: str) -> Observed:
        return Observed(headless=self.objects[SERVICES].get(service))

    def perform(self, action: Action) -> None:
        """Do at once what an API server would do with this request."""
        if isinstance(action, Create):
            self._create(action.resource, action.object)
        elif isinstance(action, Patch):
            self._patch(action)
        else:
            self._delete(action)

    def set_status(self, resource: str, name: str, status: dict[str, Any]) -> None:
        if name in self.objects[resource]:
            self.objects[resource][name] = {**self.objects[resource][name], "status": status}

    def next_change(self) -> float | None:
        """When a pod gets ready or is gone next; None when nothing is on its way."""
        return self._due[0][0] if self._due else None

    def advance(self, until: float) -> None:
        """Let everything happen that is due until then."""
        while self._due and self._due[0][0] <= until:
            due, _, uid, what = heapq.heappop(self._due)
            self.now = max(self.now, due)
            pod = next((item for item in self.objects[PODS].values() if item["metadata"]["uid"] == uid), None)
            if pod is None:
                continue
            if what == "gone":
                self._drop(PODS, pod["metadata"]["name"])
            elif not pod["metadata"].get("deletionTimestamp"):
                self.objects[PODS][pod["metadata"]["name"]] = {**pod, "status": _running(ready=True)}
        self.now = max(self.now, until)

    def _create(self, resource: str, item: dict[str, Any]) -> None:
        meta = dict(item["metadata"])
        if "name" not in meta:
            meta["name"] = self._new_name(resource, meta.get("generateName", ""))
        if meta["name"] in self.objects[resource]:
            raise FileExistsError(f"{resource} {meta['name']} exists already")
        meta |= {"uid": self._new_uid(), "creationTimestamp": stamp(self.now), "generation": 1}
        self.objects[resource][meta["name"]] = {**item, "metadata": meta}
        if resource == PODS:
            self.objects[resource][meta["name"]]["status"] = _running(ready=False)
            self._expect(meta["name"])

    def _new_name(self, resource: str, prefix: str) -> str:
        while True:
            self._made += 1
            if (name := prefix + _suffix(self._made)) not in self.objects[resource]:
                return name

    def _new_uid(self) -> str:
        while True:
            self._made += 1
            if (uid := f"virtual-{self._made}") not in self._adopted:
                return uid

    def _patch(self, action: Patch) -> None:
        item = self.objects[action.resource].get(action.name)
        if item is None:
            return
        patch = merge(action.patch, {"metadata": {"resourceVersion": None}}) if "metadata" in action.patch else action.patch
        changed = merge(item, patch)
        if changed.get("spec") != item.get("spec"):
            changed["metadata"] = {**changed["metadata"], "generation": item["metadata"].get("generation", 0) + 1}
        self.objects[action.resource][action.name] = changed
        if changed["metadata"].get("deletionTimestamp") and not changed["metadata"].get("finalizers"):
            self._drop(action.resource, action.name)

    def _delete(self, action: Delete) -> None:
        item = self.objects[action.resource].get(action.name)
        if item is None or item["metadata"].get("uid", "") != action.uid:
            return
        if action.resource != PODS and not item["metadata"].get("finalizers"):
            self._drop(action.resource, action.name)
            return
        meta = {**item["metadata"], "deletionTimestamp": stamp(self.now)}
        self.objects[action.resource][action.name] = {**item, "metadata": meta}
        if action.resource == PODS:
            self._expect(action.name)

    def _drop(self, resource: str, name: str) -> None:
        """Gone, and with it whatever it controlled and nothing else holds."""
        gone = self.objects[resource].pop(name)
        for other in (SERVICES, CONTROLLER_REVISIONS):
            for child in [item for item in self.list(other) if names.controller_uid(item) == gone["metadata"].get("uid")]:
                self.objects[other].pop(child["metadata"]["name"])

    def _expect(self, name: str) -> None:
        """Note when this pod changes by itself next."""
        pod = self.objects[PODS][name]
        if pod["metadata"].get("deletionTimestamp"):
            over = (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")
            self._push(self.now + (0.0 if over else self.behaviour.end_s(pod)), pod, "gone")
            return
        ready = any(item["type"] == "Ready" and item["status"] == "True" for item in (pod.get("status") or {}).get("conditions") or ())
        start = None if ready else self.behaviour.start_s(pod)
        if start is not None:
            self._push(self.now + start, pod, "ready")

    def _push(self, due: float, pod: Object, what: str) -> None:
        self._made += 1
        heapq.heappush(self._due, (due, self._made, pod["metadata"]["uid"], what))


def _running(*, ready: bool) -> dict[str, Any]:
    return {"phase": "Running", "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}


def _suffix(number: int) -> str:
    letters = []
    for _ in range(_SUFFIX_LENGTH):
        number, letter = divmod(number, len(ALPHABET))
        letters.append(ALPHABET[letter])
    return "".join(reversed(letters))
