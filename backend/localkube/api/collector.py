"""What goes because something else went: contents of deleted namespaces, objects of deleted definitions, dependents of deleted owners.

One task, woken by writes. It knows from the same events who is alive, who depends on whom, and what is on its way out, so a pass
looks only at what is concerned.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable
from functools import partial

from backend.localkube.api import crds
from backend.localkube.api.kinds import Kind
from backend.localkube.api.metadata import seconds_of
from backend.localkube.api.status import ApiError, Json
from backend.localkube.api.store import Event, Key
from backend.localkube.api.writing import Deletion, Write
from backend.localkube.objects import CRDS, Objects

log = logging.getLogger(__name__)

SETTLE_S = 0.05
"""Between a write and what follows from it, so that the client that wrote sees its own effect first."""

EVENTS_S, LOOK_S = 3600.0, 300.0
"""How long an Event is kept, and how often old ones are looked for."""

Place = tuple[str, Key]
"""Resource, namespace and name."""


class Collector:
    """Runs with the server, as one supervised task."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._alive: dict[str, Place] = {}
        self._dependents: dict[str, set[Place]] = defaultdict(set)
        self._leaving: set[Place] = set()
        self._unsure: set[Place] = set()
        """Objects whose owners have to be looked for."""
        self._heard: dict[str, Callable[[], None]] = {}
        self._wake = asyncio.Event()
        self._next_look = 0.0

    async def run(self) -> None:
        """For ever. A task that died is started anew by its supervisor and begins with a look at everything."""
        try:
            while True:
                self._follow()
                try:
                    self._pass()
                    self.forget_events()
                except ApiError as error:
                    log.warning("collecting is tried again: %s", error)
                    self._wake.set()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), LOOK_S)
                await asyncio.sleep(SETTLE_S)
                self._wake.clear()
        finally:
            for stop in self._heard.values():
                stop()
            self._heard.clear()

    def forget_events(self) -> None:
        """Delete Events that nobody has renewed for an hour, as a real cluster does; looks once in a while."""
        now = self._objects.clock.now()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        for item in self._objects.store.all("events"):
            last = item.value.get("lastTimestamp") or item.value["metadata"]["creationTimestamp"]
            if seconds_of(last) < now - EVENTS_S:
                self._remove(("events", item.key))

    def _follow(self) -> None:
        """Listen to every resource that is served, beginning with what is there."""
        store = self._objects.store
        for key in self._objects.kinds.resources():
            if key not in self._heard:
                self._heard[key] = store.listen(key, partial(self._hear, key))
                for item in store.all(key):
                    self._hear(key, Event("ADDED", item, None))

    def _hear(self, key: str, event: Event) -> None:
        place, meta = (key, event.new.key), event.new.value["metadata"]
        if event.change == "DELETED":
            self._alive.pop(meta["uid"], None)
            self._leaving.discard(place)
            self._unsure |= self._dependents.pop(meta["uid"], set())
        else:
            self._alive[meta["uid"]] = place
            if "deletionTimestamp" in meta:
                self._leaving.add(place)
            if owners := meta.get("ownerReferences"):
                for owner in owners:
                    self._dependents[owner["uid"]].add(place)
                self._unsure.add(place)
        if key == CRDS or self._leaving or self._unsure:
            self._wake.set()

    def _pass(self) -> None:
        for place in sorted(self._leaving):
            if meta := self._meta(place):
                self._see_off(place, meta)
        while self._unsure:
            self._look_for_owners(next(iter(self._unsure)))

    def _meta(self, place: Place) -> Json | None:
        found = self._objects.store.get(*place)
        meta: Json | None = found.value["metadata"] if found is not None else None
        return meta

    def _kind(self, key: str) -> Kind:
        kind = self._objects.kinds.stored(key)
        assert kind is not None, f"{key} is stored but not served"
        return kind

    def _remove(self, place: Place, propagation: str = "") -> None:
        meta = self._meta(place)
        if meta is not None and "deletionTimestamp" not in meta:
            self._objects.remove(self._kind(place[0]), *place[1], Deletion(propagation=propagation))

    def _see_off(self, place: Place, meta: Json) -> None:
        """Bring an object that is on its way out nearer to its end."""
        key, at = place
        finalizers = meta.get("finalizers", ())
        if key == CRDS and crds.CLEANUP in finalizers:
            self._empty(place, [(meta["name"], item.key) for item in self._objects.store.all(meta["name"])])
        elif key == "namespaces":
            keys = [resource for resource in self._objects.kinds.resources() if self._kind(resource).namespaced]
            self._empty(place, [(resource, item.key) for resource in keys for item in self._objects.store.all(resource, at[1])])
        dependents = {other for other in self._dependents.get(meta["uid"], ()) if meta["uid"] in self._owners(other)}
        if "orphan" in finalizers:
            for other in dependents:
                self._disown(other, {meta["uid"]})
            self._release(place, "orphan")
        elif "foregroundDeletion" in finalizers:
            for other in dependents:
                self._remove(other, "Foreground")
            if not any(self._owners(other).get(meta["uid"]) for other in dependents):
                self._release(place, "foregroundDeletion")

    def _empty(self, place: Place, contents: list[Place]) -> None:
        """Delete what is in a namespace or of a definition; let it go when nothing is left."""
        for other in contents:
            self._remove(other)
        if any(self._meta(other) for other in contents):
            return
        if place[0] == CRDS:
            self._release(place, crds.CLEANUP)
        elif self._meta(place) is not None:
            empty: Json = {"spec": {"finalizers": []}}
            self._objects.change(self._kind(place[0]), *place[1], lambda old: {**old, **empty}, Write(), subresource="finalize")

    def _owners(self, place: Place) -> dict[str, bool]:
        """Uids of an object's owners, and whether it blocks their deletion."""
        meta = self._meta(place) or {}
        return {owner["uid"]: bool(owner.get("blockOwnerDeletion")) for owner in meta.get("ownerReferences", ())}

    def _look_for_owners(self, place: Place) -> None:
        """An object whose owners are all gone goes too; with one left it only loses the references to the others."""
        owners = self._owners(place)
        gone = {uid for uid in owners if uid not in self._alive}
        if gone and len(gone) == len(owners):
            self._remove(place)
        elif gone:
            self._disown(place, gone)
        self._unsure.discard(place)

    def _disown(self, place: Place, uids: set[str]) -> None:
        def without(value: Json) -> Json:
            owners = [owner for owner in value["metadata"].get("ownerReferences", ()) if owner["uid"] not in uids]
            return {**value, "metadata": {**value["metadata"], "ownerReferences": owners}}

        self._objects.change(self._kind(place[0]), *place[1], without, Write())

    def _release(self, place: Place, finalizer: str) -> None:
        def without(value: Json) -> Json:
            left = [name for name in value["metadata"].get("finalizers", ()) if name != finalizer]
            return {**value, "metadata": {**value["metadata"], "finalizers": left}}

        if self._meta(place) is not None:
            self._objects.change(self._kind(place[0]), *place[1], without, Write())
