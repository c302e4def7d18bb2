"""Garbage collection by owner references: what belongs to nobody any more is deleted.

Background: the owner is gone, its dependents follow. Foreground: the owner waits (finalizer `foregroundDeletion`) until those
dependents that block it are gone. Orphan: dependents lose their reference before the owner goes (finalizer `orphan`).
An owner of a kind that is not watched is taken for alive: nothing is deleted on a guess.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from backend.core.errors import WorkbenchError
from backend.localkube.kubelet.store import Json, ObjectStore

log = logging.getLogger(__name__)

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
_AGAIN_S = 1.0
_BATCH = 200

Fate = Literal["keep", "delete"]
Identity = tuple[str, str]
"""Namespace ("" for what is cluster-wide) and uid."""


@dataclass(frozen=True)
class Place:
    """Where an object stands."""

    resource: str
    namespace: str
    name: str


def fate(obj: Json, alive: Callable[[Identity], bool], watched: Callable[[str], bool], ending: Callable[[str], bool]) -> Fate:
    """What becomes of `obj` by its owners. Pure.

    `alive` knows the owners that exist, `watched` the kinds whose owners it would know, `ending` those that wait for their dependents.
    """
    owners = obj["metadata"].get("ownerReferences") or []
    if not owners or obj["metadata"].get("deletionTimestamp"):
        return "keep"
    namespace = obj["metadata"].get("namespace", "")
    solid = [
        owner
        for owner in owners
        if not watched(owner["kind"]) or ((alive((namespace, owner["uid"])) or alive(("", owner["uid"]))) and not ending(owner["uid"]))
    ]
    return "keep" if solid else "delete"


class Collector:
    """Follows the resources that it is told to `watch`. Not thread-safe: one event loop, the store's."""

    def __init__(self, store: ObjectStore) -> None:
        self.failures = 0
        self._store = store
        self._kinds: dict[str, str] = {}
        self._places: dict[str, Place] = {}
        self._dependents: dict[str, set[str]] = {}
        self._owners: dict[str, list[str]] = {}
        self._ending: set[str] = set()
        self._dirty: dict[str, None] = {}
        self._handle: asyncio.Handle | None = None
        self._subscriptions: dict[str, Callable[[], None]] = {}

    def start(self, resources: Mapping[str, str]) -> None:
        """Follow `resources`, plural names with their kinds. Nothing is judged before all of them have been read."""
        for resource, kind in resources.items():
            self.watch(resource, kind)

    def watch(self, resource: str, kind: str) -> None:
        """Follow one more resource, such as that of a new CustomResourceDefinition."""
        if resource in self._subscriptions:
            return
        self._kinds[resource] = kind
        self._subscriptions[resource] = self._store.subscribe(resource, lambda change, obj: self._hear(resource, change, obj))
        for obj in self._store.list(resource):
            self._hear(resource, "ADDED", obj)

    def unwatch(self, resource: str) -> None:
        self._subscriptions.pop(resource, lambda: None)()
        self._kinds.pop(resource, None)

    def stop(self) -> None:
        for resource in list(self._subscriptions):
            self.unwatch(resource)
        if self._handle is not None:
            self._handle.cancel()

    def _hear(self, resource: str, change: str, obj: Json) -> None:
        metadata = obj["metadata"]
        uid = metadata["uid"]
        owners = [owner["uid"] for owner in metadata.get("ownerReferences") or []] if change != "DELETED" else []
        for owner in self._owners.pop(uid, []):
            self._dependents[owner].discard(uid)
            if not self._dependents[owner]:
                del self._dependents[owner]
            if change == "DELETED" and owner in self._ending:
                self._look_at(owner)
        if change == "DELETED":
            self._places.pop(uid, None)
            self._ending.discard(uid)
            self._look_at_all(self._dependents.get(uid, ()))
            return
        self._places[uid] = Place(resource, metadata.get("namespace", ""), metadata["name"])
        if owners:
            self._owners[uid] = owners
            for owner in owners:
                self._dependents.setdefault(owner, set()).add(uid)
        waits = metadata.get("deletionTimestamp") and {FOREGROUND, ORPHAN} & set(metadata.get("finalizers") or [])
        if owners or waits:
            self._look_at(uid)

    def _look_at(self, uid: str) -> None:
        self._dirty[uid] = None
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_soon(self._drain)

    def _look_at_all(self, uids: Iterable[str]) -> None:
        for uid in sorted(uids):
            self._look_at(uid)

    def _drain(self) -> None:
        self._handle = None
        for uid in list(self._dirty)[:_BATCH]:
            del self._dirty[uid]
            try:
                self._judge(uid)
            except WorkbenchError as error:
                self.failures += 1
                log.warning("garbage collection of %s: %s", self._places.get(uid), error)
                asyncio.get_running_loop().call_later(_AGAIN_S, self._look_at, uid)
        if self._dirty and self._handle is None:
            self._handle = asyncio.get_running_loop().call_soon(self._drain)

    def _judge(self, uid: str) -> None:
        place = self._places.get(uid)
        obj = self._store.get(place.resource, place.namespace, place.name) if place is not None else None
        if place is None or obj is None or obj["metadata"]["uid"] != uid:
            return
        finalizers = set(obj["metadata"].get("finalizers") or [])
        if obj["metadata"].get("deletionTimestamp"):
            if ORPHAN in finalizers:
                self._orphan(place, obj)
            elif FOREGROUND in finalizers:
                self._end_in_foreground(place, obj)
        elif fate(obj, self._alive, self._is_watched, self._ending.__contains__) == "delete":
            if self._dependents.get(uid) and self._owned_by_ending(uid) and FOREGROUND not in finalizers:
                # Its owner waits for it, so it waits for its own dependents: the whole tree goes from its leaves.
                self._store.update(place.resource, _with_finalizers(obj, [*(obj["metadata"].get("finalizers") or []), FOREGROUND]))
            self._store.delete(place.resource, place.namespace, place.name)

    def _alive(self, identity: Identity) -> bool:
        place = self._places.get(identity[1])
        return place is not None and place.namespace == identity[0]

    def _is_watched(self, kind: str) -> bool:
        return kind in self._kinds.values()

    def _owned_by_ending(self, uid: str) -> bool:
        return any(owner in self._ending for owner in self._owners.get(uid, []))

    def _end_in_foreground(self, place: Place, obj: Json) -> None:
        uid = obj["metadata"]["uid"]
        self._ending.add(uid)
        dependents = list(self._dependents.get(uid, ()))
        if any(self._blocks(dependent, uid) for dependent in dependents):
            self._look_at_all(dependent for dependent in dependents if not self._is_going(dependent))
            return
        self._let_go(place, obj, FOREGROUND)

    def _blocks(self, dependent: str, owner: str) -> bool:
        obj = self._object(dependent)
        references = (obj or {}).get("metadata", {}).get("ownerReferences") or []
        return any(reference["uid"] == owner and reference.get("blockOwnerDeletion") for reference in references)

    def _is_going(self, uid: str) -> bool:
        obj = self._object(uid)
        return obj is None or bool(obj["metadata"].get("deletionTimestamp"))

    def _object(self, uid: str) -> Json | None:
        place = self._places.get(uid)
        return self._store.get(place.resource, place.namespace, place.name) if place is not None else None

    def _orphan(self, place: Place, obj: Json) -> None:
        uid = obj["metadata"]["uid"]
        for dependent in sorted(self._dependents.get(uid, ())):
            child, where = self._object(dependent), self._places.get(dependent)
            if child is not None and where is not None:
                kept = [owner for owner in child["metadata"].get("ownerReferences") or [] if owner["uid"] != uid]
                self._store.update(where.resource, {**child, "metadata": {**child["metadata"], "ownerReferences": kept}})
        self._let_go(place, obj, ORPHAN)

    def _let_go(self, place: Place, obj: Json, finalizer: str) -> None:
        left = [name for name in obj["metadata"].get("finalizers") or [] if name != finalizer]
        self._store.update(place.resource, _with_finalizers(obj, left))


def _with_finalizers(obj: Json, finalizers: list[str]) -> Json:
    return {**obj, "metadata": {**obj["metadata"], "finalizers": finalizers}}
