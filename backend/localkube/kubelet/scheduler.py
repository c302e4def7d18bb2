"""Gives every Pod the one node, or says why not. What a Pod asks of a node (selectors, affinity, GPUs) is granted: there is one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from backend.core.clock import Clock, SystemClock
from backend.core.errors import WorkbenchError
from backend.localkube.kubelet.events import Recorder
from backend.localkube.kubelet.plan import FINISHED, Happening
from backend.localkube.kubelet.service import Node
from backend.localkube.kubelet.status import conditions, timestamp
from backend.localkube.kubelet.store import Change, Json, ObjectStore

log = logging.getLogger(__name__)

_AGAIN_S = 1.0


def obstacle(pod: Json, free: int) -> tuple[str, str] | None:
    """Why `pod` gets no node now, as reason and message; `free`: pods for which the node has room. Pure."""
    if pod["spec"].get("schedulingGates"):
        return "SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates"
    if free <= 0:
        return "Unschedulable", "0/1 nodes are available: 1 Too many pods."
    return None


def node_object(node: Node, capacity: int, now: float) -> Json:
    """The node as `kubectl get nodes` shows it. Pure."""
    since = timestamp(now)
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "the laptop's node is ready"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": {"kubernetes.io/hostname": node.name}},
        "spec": {},
        "status": {
            "capacity": {"pods": str(capacity)},
            "allocatable": {"pods": str(capacity)},
            "addresses": [{"type": "InternalIP", "address": node.ip}, {"type": "Hostname", "address": node.name}],
            "conditions": [ready | {"lastHeartbeatTime": since, "lastTransitionTime": since}],
        },
    }


class Scheduler:
    """Follows Pods without a node. Not thread-safe: one event loop, the store's."""

    def __init__(self, store: ObjectStore, node: Node, capacity: int, *, clock: Clock | None = None, warnings_only: bool = False) -> None:
        self._store, self._node, self._capacity = store, node, capacity
        self._clock = clock or SystemClock()
        self._events = Recorder(store, self._clock, component="default-scheduler", warnings_only=warnings_only)
        self._on_node: set[str] = set()
        self._waiting: dict[tuple[str, str], None] = {}
        self._refused: dict[tuple[str, str], None] = {}
        self._handle: asyncio.Handle | None = None
        self._unsubscribe: Callable[[], None] = lambda: None

    def start(self) -> None:
        if self._store.get("nodes", "", self._node.name) is None:
            self._store.create("nodes", node_object(self._node, self._capacity, self._clock.now()))
        self._unsubscribe = self._store.subscribe("pods", self._hear)
        for pod in self._store.list("pods"):
            self._hear("added", pod)

    def stop(self) -> None:
        self._unsubscribe()
        if self._handle is not None:
            self._handle.cancel()

    def _hear(self, change: Change, pod: Json) -> None:
        metadata, node = pod["metadata"], pod["spec"].get("nodeName")
        if change == "deleted" or (pod.get("status") or {}).get("phase") in FINISHED:
            if metadata["uid"] in self._on_node:
                self._on_node.discard(metadata["uid"])
                self._look_at(*self._refused)  # there is room again
                self._refused.clear()
        elif node == self._node.name:
            self._on_node.add(metadata["uid"])
        elif not node:
            self._look_at((metadata["namespace"], metadata["name"]))

    def _look_at(self, *places: tuple[str, str]) -> None:
        self._waiting |= dict.fromkeys(places)
        if self._waiting and self._handle is None:
            self._handle = asyncio.get_running_loop().call_soon(self._pass)

    def _pass(self) -> None:
        """Place what waits, in the order of its coming."""
        self._handle = None
        waiting, self._waiting = self._waiting, {}
        for place in waiting:
            pod = self._store.get("pods", *place)
            if pod is None or pod["spec"].get("nodeName") or pod["metadata"].get("deletionTimestamp"):
                continue
            try:
                if not self._place(pod):
                    self._refused[place] = None
            except WorkbenchError as error:
                log.warning("pod %s/%s is not scheduled yet: %s", *place, error)
                asyncio.get_running_loop().call_later(_AGAIN_S, self._look_at, place)

    def _place(self, pod: Json) -> bool:
        against = obstacle(pod, self._capacity - len(self._on_node))
        if against is None:
            self._on_node.add(pod["metadata"]["uid"])
            self._store.update("pods", {**pod, "spec": {**pod["spec"], "nodeName": self._node.name}})
            where = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            self._events.record(pod, Happening("Normal", "Scheduled", f"Successfully assigned {where} to {self._node.name}"))
            return True
        reason, message = against
        changed = conditions(pod, {"PodScheduled": (False, reason, message)}, self._clock.now())
        status = pod.get("status") or {}
        if changed != status.get("conditions"):
            self._store.update_status("pods", {**pod, "status": {**status, "conditions": changed}})
            self._events.record(pod, Happening("Warning", "FailedScheduling", message))
        return False
