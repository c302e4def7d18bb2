"""The kubelet: hears of Pods and of programs, asks `plan`, and carries it out. No decisions.

Pods survive a killed kubelet process: `start` takes over what the last one left running (as far as the runtime's host outlives it).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from backend.core.clock import Clock, SystemClock
from backend.core.errors import UsageError, WorkbenchError
from backend.localkube.kubelet import template
from backend.localkube.kubelet.events import Recorder
from backend.localkube.kubelet.images import Images
from backend.localkube.kubelet.plan import FINISHED, Happening, Plan, plan
from backend.localkube.kubelet.status import Seen, conditions
from backend.localkube.kubelet.store import Change, Json, ObjectStore
from backend.localkube.runtime import podlogs
from backend.localkube.runtime.model import RUNNING, Ended, PodSpec, Tracked
from backend.localkube.runtime.pods import PodRuntime

log = logging.getLogger(__name__)

PORT_MAP = "workbench/port-map"
"""Annotation with the pod's real port, where all pods share one address."""
_AGAIN_S = 1.0
_BATCH = 200
"""Pods looked at before others get their turn."""


@dataclass
class _Known:
    """A Pod that has, or had a moment ago, something to do with this node."""

    namespace: str
    name: str
    containers: list[str]
    ip: str = ""
    failed: dict[str, float] = field(default_factory=dict)
    ended: dict[str, Ended] = field(default_factory=dict)
    gone: bool = False
    """The object is gone, its programs may still be ending."""
    timer: asyncio.TimerHandle | None = None
    """When it is looked at again without being told."""


@dataclass(frozen=True)
class Node:
    """The one node."""

    name: str = "local"
    ip: str = "127.0.0.1"


class Kubelet:
    """Runs the Pods of one node. Not thread-safe: one event loop, the store's."""

    def __init__(
        self,
        store: ObjectStore,
        runtime: PodRuntime,
        images: Images,
        *,
        node: Node | None = None,
        clock: Clock | None = None,
        warnings_only: bool = False,
    ) -> None:
        """`warnings_only`: no Events for what goes well, for ten thousand pods."""
        self.node = node or Node()
        self.failures = 0
        self._store, self._runtime, self._images = store, runtime, images
        self._clock = clock or SystemClock()
        self.events = Recorder(store, self._clock, component="kubelet", node=self.node.name, warnings_only=warnings_only)
        self._known: dict[str, _Known] = {}
        self._dirty: dict[str, None] = {}
        self._handle: asyncio.Handle | None = None
        self._unsubscribe: Callable[[], None] = lambda: None
        runtime.on_change = self._program_changed

    def start(self, others: Sequence[PodSpec] = ()) -> list[str]:
        """Take over what runs, and follow the Pods from now on; gives the names of the programs that were adopted.

        `others` are programs of the same runtime that no Pod object stands for: they are adopted with ours.
        """
        recorded = self._runtime.recall()
        specs = [spec for pod in self._store.list("pods") if self._is_ours(pod) for spec in self._former_specs(pod, set(recorded))]
        adopted = self._runtime.adopt([*specs, *others])
        wanted = {spec.name for spec in (*specs, *others)}
        for name in adopted:
            if name not in wanted:
                self._runtime.remove(name)
        self._unsubscribe = self._store.subscribe("pods", self._hear)
        for pod in self._store.list("pods"):
            self._hear("added", pod)
        return adopted

    def stop(self) -> None:
        """Follow no longer. The programs are left as they are: ending them is for the runtime's owner to say."""
        self._unsubscribe()
        self._runtime.on_change = lambda name, tracked: None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        for known in self._known.values():
            if known.timer is not None:
                known.timer.cancel()

    def log(self, namespace: str, name: str, container: str, options: Mapping[str, str]) -> AsyncIterator[bytes] | bytes:
        """What a container wrote, all its runs together; `options` are those of the API's query. Empty without such a Pod here."""
        pod = self._store.get("pods", namespace, name)
        if pod is None or not self._is_ours(pod):
            return b""
        program = template.container_key(pod, container or pod["spec"]["containers"][0]["name"])
        file = podlogs.path(self._runtime.options.state, program)
        tail = int(options["tailLines"]) if "tailLines" in options else None
        if options.get("follow") == "true":
            return podlogs.follow(file, tail, lambda: _runs(self._runtime.tracked(program)))
        return podlogs.read(file, tail)

    # What is heard

    def _hear(self, change: Change, pod: Json) -> None:
        if not self._is_ours(pod):
            return
        key = template.pod_key(pod)
        if key not in self._known:
            if change == "deleted":
                return
            metadata = pod["metadata"]
            names = [container["name"] for container in pod["spec"]["containers"]]
            self._known[key] = _Known(metadata["namespace"], metadata["name"], names)
        self._look_at(key)

    def _program_changed(self, name: str, tracked: Tracked) -> None:
        key, _, container = name.rpartition("_")
        known = self._known.get(key)
        if known is not None:
            if tracked.ended is not None and self._runtime.tracked(name) is None:
                known.ended[container] = tracked.ended
            self._look_at(key)

    def _look_at(self, key: str) -> None:
        self._dirty[key] = None
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_soon(self._drain)

    def _drain(self) -> None:
        batch = list(self._dirty)[:_BATCH]
        for key in batch:
            del self._dirty[key]
        left = iter(batch)
        try:
            for key in left:
                self._try(key)
        finally:
            self._dirty |= dict.fromkeys(left)  # those behind one that broke
            self._handle = asyncio.get_running_loop().call_soon(self._drain) if self._dirty else None

    def _try(self, key: str) -> None:
        try:
            self._sync(key)
        except WorkbenchError as error:
            self.failures += 1
            log.warning("pod %s: %s", key, error)
            self._look_again(key, _AGAIN_S)

    def _look_again(self, key: str, wait_s: float | None) -> None:
        """Look at a Pod in `wait_s`, and no more at the time that was meant before."""
        known = self._known.get(key)
        if known is None:
            return
        if known.timer is not None:
            known.timer.cancel()
        known.timer = asyncio.get_running_loop().call_later(wait_s, self._look_at, key) if wait_s is not None else None

    # What is done

    def _sync(self, key: str) -> None:
        known = self._known.get(key)
        if known is None:
            return
        pod = self._store.get("pods", known.namespace, known.name)
        if pod is None or template.pod_key(pod) != key:
            self._end(key, known)
            return
        if not known.ip and not self._admit(key, known, pod):
            return
        decided = plan(pod, self._seen(key, known), self._images, self._context(known), known.failed, self._clock.now())
        self._carry_out(key, known, pod, decided)

    def _carry_out(self, key: str, known: _Known, pod: Json, decided: Plan) -> None:
        for happening in decided.happenings:
            self.events.record(pod, happening)
        now = self._clock.now()
        if not decided.run:
            known.failed = {container: known.failed.get(container, now) for container in decided.failing}
        self._look_again(key, decided.look_again_s)
        if decided.status is not None:
            self._store.update_status("pods", {**pod, "status": decided.status})
        for stop in decided.stop:
            self._runtime.remove(stop.name, grace_s=stop.grace_s)
        for run in decided.run:
            self._runtime.run(run.spec, restarts=run.restarts)
        if (pod.get("status") or {}).get("phase") in FINISHED and not self._left(key, known):
            self._runtime.release(key)
            known.ip = ""
        if decided.finished and pod["metadata"].get("deletionGracePeriodSeconds") != 0:
            self._store.delete("pods", known.namespace, known.name, grace_s=0)

    def _admit(self, key: str, known: _Known, pod: Json) -> bool:
        """Give the Pod its address; whether there was one."""
        deleting, phase = pod["metadata"].get("deletionTimestamp"), (pod.get("status") or {}).get("phase")
        if deleting or phase in FINISHED:
            return bool(deleting)
        try:
            address = self._runtime.reserve(key)
        except UsageError as error:
            self.events.record(pod, Happening("Warning", "OutOfpods", error.message))
            ready = {"Ready": (False, "PodFailed", ""), "ContainersReady": (False, "PodFailed", "")}
            failed = {"phase": "Failed", "reason": "OutOfpods", "message": error.message}
            status = {**(pod.get("status") or {}), **failed, "conditions": conditions(pod, ready, self._clock.now())}
            self._store.update_status("pods", {**pod, "status": status})
            return False
        known.ip = address.ip
        annotations = pod["metadata"].get("annotations") or {}
        if self._runtime.options.space.own_ports or annotations.get(PORT_MAP) == str(address.http_port):
            return True
        annotations = {**annotations, PORT_MAP: str(address.http_port)}
        self._store.update("pods", {**pod, "metadata": {**pod["metadata"], "annotations": annotations}})
        return False  # the change brings us here again

    def _end(self, key: str, known: _Known) -> None:
        """The object is gone, by force or because we let it go: so are its programs, and then its address is free."""
        left = self._left(key, known)
        if not left:
            self._look_again(key, None)
            self._runtime.release(key)
            for container in known.containers:
                podlogs.remove(podlogs.path(self._runtime.options.state, f"{key}_{container}"))
            del self._known[key]
        elif not known.gone:
            known.gone = True
            for name in left:
                self._runtime.remove(name, grace_s=0)

    def _left(self, key: str, known: _Known) -> list[str]:
        """Its programs that the runtime still knows."""
        return [name for name in (f"{key}_{container}" for container in known.containers) if self._runtime.tracked(name) is not None]

    def _seen(self, key: str, known: _Known) -> Seen:
        tracked = {container: self._runtime.tracked(f"{key}_{container}") for container in known.containers}
        containers = {container: program for container, program in tracked.items() if program is not None}
        return Seen(known.ip, self.node.ip, self._runtime.host.scheme, containers, known.ended)

    def _context(self, known: _Known) -> template.Context:
        def look_up(resource: str, name: str) -> Json | None:
            return self._store.get(resource, known.namespace, name)

        return template.Context(self.node.name, self.node.ip, known.ip, look_up)

    def _former_specs(self, pod: Json, recorded: set[str]) -> list[PodSpec]:
        """What the containers of a Pod with recorded programs should run; one whose spec cannot be made is left out, and ends."""
        metadata, key = pod["metadata"], template.pod_key(pod)
        names = [container["name"] for container in pod["spec"]["containers"]]
        if not any(f"{key}_{name}" in recorded for name in names):
            return []
        known = self._known[key] = _Known(metadata["namespace"], metadata["name"], names)
        known.ip = self._runtime.reserve(key).ip
        specs = []
        for container in pod["spec"]["containers"]:
            image = self._images.find(container["image"])
            try:
                specs += [template.spec(pod, container, image, self._context(known))] if image is not None else []
            except template.Unresolved as error:
                log.warning("container %s of %s ends: %s", container["name"], key, error)
        return specs

    def _is_ours(self, pod: Json) -> bool:
        return bool(pod["spec"].get("nodeName") == self.node.name)


def _runs(tracked: Tracked | None) -> bool:
    return tracked is not None and tracked.phase in RUNNING
