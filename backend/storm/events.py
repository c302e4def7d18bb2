"""Events beside an object, for whoever asks `kubectl describe`: what was done, what was refused, each told once."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any, Literal

from backend.core.clock import Clock
from backend.core.errors import WorkbenchError
from backend.kube.resources import EVENTS

from .actions import Object
from .execute import Client
from .status import stamp

log = logging.getLogger(__name__)

AGAIN_AFTER_S = 600.0
REMEMBERED = 2048
SOURCE = "storm-controller"


class Recorder:
    """Writes Events; the same one about the same object again only after ten minutes. A lost Event is logged, never an error."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self.client, self.clock = client, clock
        self._told: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    async def tell(self, about: Object, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        meta = about["metadata"]
        key, now = (meta.get("uid", ""), reason, message), self.clock.now()
        if now - self._told.get(key, -AGAIN_AFTER_S) < AGAIN_AFTER_S:
            return
        self._told[key] = now
        while len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        try:
            await self.client.create(EVENTS, meta.get("namespace", ""), _event(about, kind, reason, message, now))
        except WorkbenchError as error:
            log.warning("event %s about %s lost: %s", reason, meta["name"], error)


def _event(about: Object, kind: str, reason: str, message: str, now: float) -> dict[str, Any]:
    meta, moment = about["metadata"], stamp(now)
    return {
        "metadata": {"generateName": f"{meta['name'][:200]}.", "namespace": meta.get("namespace", "")},
        "involvedObject": {
            "apiVersion": about.get("apiVersion", ""),
            "kind": about.get("kind", ""),
            "name": meta["name"],
            "namespace": meta.get("namespace", ""),
            "uid": meta.get("uid", ""),
        },
        "type": kind,
        "reason": reason,
        "message": message[:1024],
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
        "source": {"component": SOURCE},
    }
