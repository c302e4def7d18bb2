"""Pods as the planner counts them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from .actions import Object
from .names import ROLE_LABEL, SLOT_KEY, TEMPLATE_HASH_LABEL, controller_uid

_OVER = ("Failed", "Succeeded")


class Pod(msgspec.Struct):
    """One pod of a RoleSet. `terminating`: its deletion has begun; `over`: it has ended by itself and holds nothing any more."""

    name: str
    namespace: str
    uid: str
    created: str
    role: str
    template_hash: str
    slot: int | None
    terminating: bool
    over: bool
    ready: bool
    object: Object

    @property
    def active(self) -> bool:
        return not (self.terminating or self.over)


def by_owner(pods: Iterable[Object], namespace: str) -> dict[str, list[Pod]]:
    """The pods of one namespace by the UID of the owner that controls them. Pods of nobody belong to nobody here."""
    found: dict[str, list[Pod]] = defaultdict(list)
    for item in pods:
        if item["metadata"].get("namespace", "") == namespace and (uid := controller_uid(item)):
            found[uid].append(read_pod(item))
    return found


def read_pod(item: Object) -> Pod:
    meta, status = item["metadata"], item.get("status") or {}
    labels = meta.get("labels") or {}
    index = (meta.get("annotations") or {}).get(SLOT_KEY, "")
    terminating, over = bool(meta.get("deletionTimestamp")), status.get("phase") in _OVER
    return Pod(
        meta.get("name", ""),
        meta.get("namespace", ""),
        meta.get("uid", ""),
        meta.get("creationTimestamp", ""),
        labels.get(ROLE_LABEL, ""),
        labels.get(TEMPLATE_HASH_LABEL, ""),
        int(index) if index.isdigit() else None,
        terminating,
        over,
        not terminating and not over and _is_ready(status),
        item,
    )


def _is_ready(status: Object) -> bool:
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in status.get("conditions") or ())


def trouble(pod: Pod) -> str:
    """Why a pod is not ready, in the words of the node or the scheduler."""
    status = pod.object.get("status") or {}
    if pod.terminating:
        return "terminating"
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "", "ContainerCreating", "PodInitializing"):
            return ": ".join(part for part in (waiting["reason"], waiting.get("message", "")) if part)
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason', 'Unschedulable')}: {condition.get('message', '')}"
    return "not ready"
