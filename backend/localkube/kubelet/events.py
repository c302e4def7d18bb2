"""Event objects: what people read in `kubectl describe`. The same said again within a while is counted, not repeated."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict

from backend.core.clock import Clock
from backend.core.errors import WorkbenchError
from backend.localkube.kubelet.plan import Happening
from backend.localkube.kubelet.status import timestamp
from backend.localkube.kubelet.store import Json, ObjectStore

log = logging.getLogger(__name__)

AGAIN_S = 10.0
_REMEMBERED = 2000


def event(about: Json, happening: Happening, *, component: str, node: str, now: float) -> Json:
    """A new Event. Pure, but for its name."""
    metadata = about["metadata"]
    source = {"component": component} | ({"host": node} if node else {})
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name'][:200]}.{os.urandom(8).hex()}", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": about.get("apiVersion", "v1"),
            "kind": about.get("kind", "Pod"),
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
        "type": happening.level,
        "reason": happening.reason,
        "message": happening.message[:1024],
        "source": source,
        "reportingComponent": component,
        "reportingInstance": node,
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "count": 1,
    }


class Recorder:
    """Writes Events; one that cannot be written is logged and counted, since nothing may hang on it."""

    def __init__(self, store: ObjectStore, clock: Clock, *, component: str, node: str = "", warnings_only: bool = False) -> None:
        self.lost = 0
        self._store, self._clock = store, clock
        self._component, self._node, self._warnings_only = component, node, warnings_only
        self._said: OrderedDict[tuple[str, Happening], tuple[float, str]] = OrderedDict()

    def record(self, about: Json, happening: Happening) -> None:
        if self._warnings_only and happening.level == "Normal":
            return
        now, key = self._clock.now(), (about["metadata"]["uid"], happening)
        last, name = self._said.get(key, (0.0, ""))
        if name and now - last < AGAIN_S:
            return
        try:
            name = self._write(about, happening, name, now)
        except WorkbenchError as error:
            self.lost += 1
            log.warning("event %s about %s is lost: %s", happening.reason, about["metadata"]["name"], error)
            return
        self._said[key] = (now, name)
        self._said.move_to_end(key)
        if len(self._said) > _REMEMBERED:
            self._said.popitem(last=False)

    def _write(self, about: Json, happening: Happening, name: str, now: float) -> str:
        former = self._store.get("events", about["metadata"]["namespace"], name) if name else None
        if former is not None:
            self._store.update("events", {**former, "count": former["count"] + 1, "lastTimestamp": timestamp(now)})
            return name
        new = event(about, happening, component=self._component, node=self._node, now=now)
        self._store.create("events", new)
        return str(new["metadata"]["name"])
