"""The controllers of StormService and RoleSet as tasks: informers in, work queues between, reconcilers out.

An event only says which object to look at. Events of one object within the queue's window (about 50 ms) are one pass; the echo of an own
write is none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from backend.core.clock import Clock, SystemClock
from backend.core.errors import TransientError, WorkbenchError
from backend.core.supervise import Supervisor
from backend.kube.informer import Informer
from backend.kube.queue import WorkQueue

from . import names
from .actions import Object
from .controller import Done, Reconciler
from .execute import RESOURCES
from .ownwrites import OWNER_INDEX, View, owner_index

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Namespace and name."""
WORKERS = 4


class StormControllers:
    """Keeps every StormService of a cluster (or of one namespace) as its specification says.

    >>> async def process(client: "KubeClient") -> None:
    ...     async with Supervisor("control") as tasks:
    ...         StormControllers(client).start(tasks)
    ...         await tasks.wait_stopped()
    """

    def __init__(self, client: Any, *, namespace: str | None = None, clock: Clock | None = None, workers: int = WORKERS) -> None:
        self.workers = workers
        self.informers = {
            resource: Informer(client, RESOURCES[resource], namespace=namespace, indexes={OWNER_INDEX: owner_index})
            for resource in RESOURCES
        }
        self.view = View(self.informers)
        self.reconciler = Reconciler(client, self.view, clock or SystemClock())
        self.services: WorkQueue[Key] = WorkQueue("stormservices")
        self.role_sets: WorkQueue[Key] = WorkQueue("rolesets")
        self.passes = 0
        for resource, informer in self.informers.items():
            informer.add_handler(self._handler(resource))

    @property
    def problems(self) -> dict[str, str]:
        """Resources whose copy is not being kept current, and why: a missing CRD, a missing permission, a cluster that doesn't answer."""
        return {resource: informer.problem for resource, informer in self.informers.items() if informer.problem}

    def start(self, tasks: Supervisor) -> None:
        """Run under `tasks` until it ends."""
        for resource, informer in self.informers.items():
            tasks.start(f"watch {resource}", informer.run)
        for number in range(self.workers):
            tasks.start(f"stormservices {number}", self._work_on_services)
            tasks.start(f"rolesets {number}", self._work_on_role_sets)

    async def synced(self) -> None:
        """Until every copy has been filled once; no plan is made from half a cluster."""
        for informer in self.informers.values():
            await informer.synced.wait()

    async def _work_on_services(self) -> None:
        await self.synced()
        while True:
            key = await self.services.get()
            done = await self._guarded(self.services, key, self.reconciler.reconcile_service)
            for name in done.role_sets:
                self.role_sets.add_after((key[0], name), 0.0)

    async def _work_on_role_sets(self) -> None:
        await self.synced()
        while True:
            key = await self.role_sets.get()
            owner = self._service_of(self.view.get(names.ROLE_SETS, *key))
            done = await self._guarded(self.role_sets, key, self.reconciler.reconcile_role_set)
            if done.changed and owner is not None:
                self.services.add(owner)

    async def _guarded(self, queue: WorkQueue[Key], key: Key, work: Callable[[str, str], Any]) -> Done:
        """One pass; what failed is tried again with back-off, and never ends the worker."""
        self.passes += 1
        try:
            done: Done = await work(*key)
        except WorkbenchError as error:
            level = logging.WARNING if isinstance(error, TransientError) else logging.ERROR
            log.log(level, "%s %s/%s: %s", queue.name, *key, error)
            queue.retry(key)
            return Done(failed=True)
        finally:
            queue.done(key)
        if done.failed:
            queue.retry(key)
        else:
            queue.forget(key)
        if done.check_in_s is not None:
            queue.add_after(key, done.check_in_s)
        return done

    def _handler(self, resource: str) -> Callable[[str, Object | None, Object | None], None]:
        def changed(kind: str, old: Object | None, new: Object | None) -> None:
            item = new if new is not None else old
            if item is not None and not self.view.writes.told(resource, item, deleted=kind == "deleted"):
                self._enqueue(resource, item)

        return changed

    def _enqueue(self, resource: str, item: Object) -> None:
        """Ask for a look at whatever this object counts for."""
        meta = item["metadata"]
        key = (meta.get("namespace", ""), meta["name"])
        if resource == names.STORM_SERVICES:
            self.services.add(key)
            for child in self.view.owned(names.ROLE_SETS, meta.get("uid", "")):
                self.role_sets.add((key[0], child["metadata"]["name"]))
        elif resource == names.ROLE_SETS:
            self.role_sets.add(key)
            if (owner := self._service_of(item)) is not None:
                self.services.add(owner)
        elif resource == names.PODS:
            self._enqueue_owners_of_pod(item)
        elif resource == names.SERVICES and self.view.get(names.STORM_SERVICES, *key) is not None:
            self.services.add(key)
        elif resource == names.CONTROLLER_REVISIONS and (owner := _controller(item, names.STORM_SERVICE_KIND)) is not None:
            self.services.add(owner)

    def _enqueue_owners_of_pod(self, pod: Object) -> None:
        owner = _controller(pod, names.ROLE_SET_KIND)
        if owner is None:
            return
        self.role_sets.add(owner)
        if (service := self._service_of(self.view.get(names.ROLE_SETS, *owner))) is not None:
            self.services.add(service)

    def _service_of(self, role_set: Object | None) -> Key | None:
        return None if role_set is None else _controller(role_set, names.STORM_SERVICE_KIND)


def _controller(item: Object, kind: str) -> Key | None:
    """Namespace and name of the controlling owner, when it is one of ours and of this kind."""
    for reference in item["metadata"].get("ownerReferences") or ():
        if reference.get("controller") and reference.get("kind") == kind and reference.get("apiVersion") == names.API_VERSION:
            return item["metadata"].get("namespace", ""), reference["name"]
    return None
