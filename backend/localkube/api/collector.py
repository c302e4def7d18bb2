"""What goes because something else went: contents of deleted namespaces, objects of deleted definitions, dependents of deleted owners.

One task looks at what was written; it is woken by writes and does nothing otherwise. Dependents are found by an index of the
owners' uids, which is kept from the same events.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from functools import partial

from backend.localkube.api import crds
from backend.localkube.api.kinds import Kind
from backend.localkube.api.status import ApiError, Json
from backend.localkube.api.store import Event, Key
from backend.localkube.api.writing import Deletion, Write
from backend.localkube.objects import CRDS, Objects

log = logging.getLogger(__name__)

SETTLE_S = 0.05
"""Between a write and what follows from it, so that the client that wrote sees its own effect first."""

Place = tuple[str, Key]


class Collector:
    """Runs with the server, as one supervised task."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._dependents: dict[str, set[Place]] = defaultdict(set)
        self._heard: dict[str, Callable[[], None]] = {}
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """For ever. A task that died is started anew by its supervisor and begins with a look at everything."""
        self._wake.set()
        try:
            while True:
                await self._wake.wait()
                await asyncio.sleep(SETTLE_S)
                self._wake.clear()
                self._follow()
                try:
                    self._pass()
                except ApiError as error:
                    log.warning("collecting is tried again: %s", error)
                    self._wake.set()
        finally:
            for stop in self._heard.values():
                stop()
            self._heard.clear()

    def _follow(self) -> None:
        """Listen to every resource that is served, and learn the owners of what is there."""
        store = self._objects.store
        for key in self._objects.kinds.resources():
            if key in self._heard:
                continue
            for item in store.all(key):
                self._learn(key, item.key, item.value)
            self._heard[key] = store.listen(key, partial(self._hear, key))

    def _hear(self, key: str, event: Event) -> None:
        meta = event.new.value["metadata"]
        if event.change != "DELETED":
            self._learn(key, event.new.key, event.new.value)
        if key == CRDS or event.change == "DELETED" or "deletionTimestamp" in meta or meta.get("ownerReferences"):
            self._wake.set()

    def _learn(self, key: str, at: Key, value: Json) -> None:
        for owner in value["metadata"].get("ownerReferences", ()):
            self._dependents[owner["uid"]].add((key, at))

    def _pass(self) -> None:
        """One look at everything that is on its way out. Whatever a deletion brings about wakes the next pass."""
        objects = self._objects
        for definition in objects.list(CRDS):
            if "deletionTimestamp" in definition["metadata"]:
                self._empty_definition(definition)
        for namespace in objects.list("namespaces"):
            if "deletionTimestamp" in namespace["metadata"]:
                self._empty_namespace(namespace)
        self._owners()

    def _remove(self, key: str, at: Key, propagation: str = "") -> None:
        kind, found = self._objects.kinds.stored(key), self._objects.store.get(key, at)
        if kind is not None and found is not None and "deletionTimestamp" not in found.value["metadata"]:
            self._objects.remove(kind, *at, Deletion(propagation=propagation))

    def _empty_definition(self, definition: Json) -> None:
        key = definition["metadata"]["name"]
        for item in self._objects.store.all(key):
            self._remove(key, item.key)
        if not self._objects.store.all(key):
            self._release(CRDS, ("", key), crds.CLEANUP)

    def _empty_namespace(self, namespace: Json) -> None:
        name = namespace["metadata"]["name"]
        keys = [key for key in self._objects.kinds.resources() if self._stored(key).namespaced]
        for key in keys:
            for item in self._objects.store.all(key, name):
                self._remove(key, item.key)
        if not any(self._objects.store.all(key, name) for key in keys):
            empty = {**namespace, "spec": {"finalizers": []}}
            self._objects.change(self._stored("namespaces"), "", name, lambda _: empty, Write(), subresource="finalize")

    def _stored(self, key: str) -> Kind:
        kind = self._objects.kinds.stored(key)
        assert kind is not None
        return kind

    def _owners(self) -> None:
        """Dependents whose owners are all gone go too; owners that wait for their dependents are let go."""
        store = self._objects.store
        alive: dict[str, Json] = {}
        for key in self._objects.kinds.resources():
            for item in store.all(key):
                meta = item.value["metadata"]
                alive[meta["uid"]] = meta
        for uid, places in list(self._dependents.items()):
            owner = alive.get(uid)
            places &= {place for place in places if self._belongs(place, uid)}
            waiting = set(owner.get("finalizers", ())) if owner is not None and "deletionTimestamp" in owner else set()
            for key, at in list(places):
                if owner is None:
                    self._give_up(key, at, uid, alive)
                elif "orphan" in waiting:
                    self._disown(key, at, {uid})
                elif "foregroundDeletion" in waiting:
                    self._remove(key, at, "Foreground")
            if not places:
                del self._dependents[uid]
        for key in self._objects.kinds.resources():
            for item in store.all(key):
                self._let_go(key, item.key, item.value["metadata"])

    def _belongs(self, place: Place, uid: str) -> bool:
        found = self._objects.store.get(*place)
        return found is not None and any(owner["uid"] == uid for owner in found.value["metadata"].get("ownerReferences", ()))

    def _give_up(self, key: str, at: Key, uid: str, alive: dict[str, Json]) -> None:
        found = self._objects.store.get(key, at)
        if found is None:
            return
        owners = {owner["uid"] for owner in found.value["metadata"].get("ownerReferences", ())}
        if owners & alive.keys():
            self._disown(key, at, {uid})
        else:
            self._remove(key, at)

    def _disown(self, key: str, at: Key, uids: set[str]) -> None:
        def without(value: Json) -> Json:
            owners = [owner for owner in value["metadata"].get("ownerReferences", ()) if owner["uid"] not in uids]
            return {**value, "metadata": {**value["metadata"], "ownerReferences": owners}}

        self._objects.change(self._stored(key), *at, without, Write())

    def _let_go(self, key: str, at: Key, meta: Json) -> None:
        if "deletionTimestamp" not in meta:
            return
        places = {place for place in self._dependents.get(meta["uid"], ()) if self._belongs(place, meta["uid"])}
        if "orphan" in meta.get("finalizers", ()) and not places:
            self._release(key, at, "orphan")
        elif "foregroundDeletion" in meta.get("finalizers", ()) and not any(self._blocks(place, meta["uid"]) for place in places):
            self._release(key, at, "foregroundDeletion")

    def _blocks(self, place: Place, uid: str) -> bool:
        found = self._objects.store.get(*place)
        owners = found.value["metadata"].get("ownerReferences", ()) if found is not None else ()
        return any(owner["uid"] == uid and owner.get("blockOwnerDeletion") for owner in owners)

    def _release(self, key: str, at: Key, finalizer: str) -> None:
        def without(value: Json) -> Json:
            left = [name for name in value["metadata"].get("finalizers", ()) if name != finalizer]
            return {**value, "metadata": {**value["metadata"], "finalizers": left}}

        if self._objects.store.get(key, at) is not None:
            self._objects.change(self._stored(key), *at, without, Write())
