"""A cluster for tests of the Action pipeline: the real planner acts on objects in memory, pods come up and go in the loop's time.

Use it with looptime: a rollout of minutes then takes milliseconds. It implements `backend.control.actions.model.Cluster`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator, Sequence
from typing import Any

from backend.api.actions import AuditPage, AuditRecord, Manifest, OperationPage
from backend.control.actions import diff, objects
from backend.control.actions.model import ClusterState, OperationRecord, StoredPlan
from backend.core.errors import NotFound, StaleState, Unavailable
from backend.storm import names
from backend.storm.preview import pass_once
from backend.storm.virtual import VirtualCluster

EPOCH = 1_763_800_000.0
SEEDED_S = 1_000.0
BAD_IMAGE = "engine:bad"
LOOK_S = 2.0


class LoopClock:
    """The loop's time as a clock, virtual when the loop's is."""

    def now(self) -> float:
        return EPOCH + self.monotonic()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def storm_service(name: str = "qwen", *, image: str = "engine:1", prefill: int = 2, decode: int = 2, **spec: Any) -> Manifest:
    """A pooled service of two roles that is upgraded one pod a role at a time."""

    def role(role_name: str, replicas: int) -> Manifest:
        return {
            "name": role_name,
            "replicas": replicas,
            "template": {"spec": {"containers": [{"name": "engine", "image": image}]}},
            "updateStrategy": {"maxSurge": 0, "maxUnavailable": 1},
        }

    roles = [role("prefill", prefill), role("decode", decode)]
    labels = {"app": name}
    return {
        "apiVersion": objects.API_VERSION,
        "kind": objects.KIND,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "updateStrategy": {"type": "InPlaceUpdate"},
            "template": {"metadata": {"labels": labels}, "spec": {"updateStrategy": "Sequential", "roles": roles}},
            **spec,
        },
    }


class FakeCluster:
    """Pods take `start` seconds to get ready, those of BAD_IMAGE never do. Its task begins with the first call, in the test's own loop."""

    def __init__(self, *, start: float = 20.0, end: float = 4.0) -> None:
        self.start, self.end = start, end
        self.unreachable = False
        self.lose_answers = False
        """The next write reaches the cluster, its answer is lost."""
        self.lagging: ClusterState | None = None
        """What `follow` shows first, as a copy of the cluster does that has not heard of our write yet."""
        self.meanwhile: Manifest | None = None
        """A patch that somebody else makes just before our next write arrives."""
        self.writes: list[Manifest] = []
        self.world = VirtualCluster(self, EPOCH - SEEDED_S)
        self.world._made = 1_000_000  # names and uids unlike those that a forecast gives to its own pods
        self._versions: dict[str, tuple[Manifest, int]] = {}
        self._counter = 100
        self._changed = asyncio.Condition()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def seed(self, manifest: Manifest) -> None:
        """A service that has been there for a while, with all its pods ready."""
        name = manifest["metadata"]["name"]
        made = copy.deepcopy(manifest)
        made["metadata"] |= {"uid": f"uid-{name}", "generation": 1}
        self.world.objects[names.STORM_SERVICES][name] = made
        while True:
            self._act()
            due = self.world.next_change()
            if due is None:
                return
            self.world.advance(due)

    def start_s(self, pod: Any) -> float | None:
        images = [one["image"] for one in pod["spec"]["containers"]]
        return None if BAD_IMAGE in images else self.start

    def end_s(self, pod: Any) -> float:
        return self.end

    def pods(self, namespace: str = "default", name: str = "qwen") -> list[Manifest]:
        return [one for one in self.world.list(names.PODS) if objects.label(one, objects.SERVICE_LABEL) == name]

    def images(self, name: str = "qwen") -> list[str]:
        return sorted(pod["spec"]["containers"][0]["image"] for pod in self.pods(name=name) if objects.is_live(pod))

    def service(self, name: str = "qwen") -> Manifest | None:
        found = self.world.objects[names.STORM_SERVICES].get(name)
        return None if found is None else self._stamped(found)

    async def observe(self, namespace: str, name: str) -> ClusterState:
        self._check()
        self.tick()
        revisions = [one for one in self.world.list(names.CONTROLLER_REVISIONS) if objects.label(one, "name") == name]
        rolesets = [one for one in self.world.list(names.ROLE_SETS) if objects.label(one, objects.SERVICE_LABEL) == name]
        return ClusterState(namespace, name, self.service(name), rolesets, self.pods(namespace, name), revisions)

    async def overview(self) -> Sequence[ClusterState]:
        return [await self.observe("default", name) for name in sorted(self.world.objects[names.STORM_SERVICES])]

    async def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        self._check()
        name = manifest["metadata"]["name"]
        if name in self.world.objects[names.STORM_SERVICES]:
            raise StaleState(f"{name} exists already.")
        made = copy.deepcopy(manifest)
        if dry_run:
            return made
        self._counter += 1
        made["metadata"] |= {"uid": f"uid-{self._counter}", "generation": 1, "namespace": "default"}
        return self._put(name, made)

    async def patch(self, namespace: str, name: str, patch: Manifest, *, dry_run: bool = False) -> Manifest:
        self._check()
        if self.meanwhile is not None and not dry_run:
            theirs, self.meanwhile = self.meanwhile, None
            await self.patch(namespace, name, theirs)
        found = self.service(name)
        if found is None:
            raise NotFound(f"No {name}.")
        asked = patch.get("metadata", {}).get("resourceVersion")
        if asked and asked != found["metadata"]["resourceVersion"]:
            raise StaleState(f"{name} was changed meanwhile.")
        changed: Manifest = copy.deepcopy(diff.merged(found, {key: value for key, value in patch.items() if key != "metadata"}))
        if dry_run or changed["spec"] == found["spec"]:
            return changed
        changed["metadata"]["generation"] += 1
        return self._put(name, changed)

    async def delete(self, namespace: str, name: str) -> None:
        self._check()
        found = self.world.objects[names.STORM_SERVICES].get(name)
        if found is not None:
            self._put(name, {**found, "metadata": {**found["metadata"], "deletionTimestamp": objects.timestamp(LoopClock().now())}})

    def remove(self, name: str = "qwen") -> None:
        """Gone by somebody's hand, finalizers or not."""
        self.world.objects[names.STORM_SERVICES].pop(name)
        for resource in (names.ROLE_SETS, names.PODS):
            self.world.objects[resource].clear()
        self._wake.set()

    async def follow(self, namespace: str, name: str) -> AsyncIterator[ClusterState]:
        if self.lagging is not None:
            yield self.lagging
        while True:
            yield await self.observe(namespace, name)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S), self._changed:
                    await self._changed.wait()

    def _put(self, name: str, manifest: Manifest) -> Manifest:
        self.world.objects[names.STORM_SERVICES][name] = manifest
        self.writes.append(manifest)
        self._wake.set()
        if self.lose_answers:
            self.lose_answers = False
            raise Unavailable("The answer was lost.")
        return self._stamped(manifest)

    def _stamped(self, manifest: Manifest) -> Manifest:
        """With the resource version that an API server would give it."""
        name = manifest["metadata"]["name"]
        bare = {**manifest, "metadata": {key: value for key, value in manifest["metadata"].items() if key != "resourceVersion"}}
        last, version = self._versions.get(name, ({}, 0))
        if last != bare:
            self._counter += 1
            version = self._counter
            self._versions[name] = (bare, version)
        return {**bare, "metadata": {**bare["metadata"], "resourceVersion": str(version)}}

    def _check(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        if self.unreachable:
            raise Unavailable("The cluster does not answer.", fix="Check that it runs.")

    def tick(self) -> None:
        """Let everything happen that is due, and the controller act on it, until it has nothing more to do now."""
        self.world.advance(LoopClock().now())
        self._act()

    def _act(self) -> None:
        for pod in self.world.list(names.PODS):
            for condition in (pod.get("status") or {}).get("conditions") or []:
                condition.setdefault("lastTransitionTime", objects.timestamp(self.world.now))
        for name in list(self.world.objects[names.STORM_SERVICES]):
            while (result := pass_once(self.world, name)) is not None and result.actions:
                pass

    async def _run(self) -> None:
        while True:
            self.tick()
            async with self._changed:
                self._changed.notify_all()
            due = self.world.next_change()
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(0.0, due - LoopClock().now()) + 0.01):
                    await self._wake.wait()


class FakeStore:
    """Plans, operations and audit in memory; it outlives the services of a test, as Redis outlives a killed control."""

    def __init__(self) -> None:
        self.plans: dict[str, StoredPlan] = {}
        self.records: dict[str, OperationRecord] = {}
        self.claims: dict[str, str] = {}
        self.entries: list[AuditRecord] = []

    async def put_plan(self, stored: StoredPlan) -> None:
        self.plans[stored.plan.id] = copy.deepcopy(stored)

    async def plan(self, plan_id: str) -> StoredPlan | None:
        return copy.deepcopy(self.plans.get(plan_id))

    async def begin(self, record: OperationRecord) -> OperationRecord:
        plan_id = record.stored.plan.id
        if plan_id in self.claims:
            return copy.deepcopy(self.records[self.claims[plan_id]])
        self.claims[plan_id] = record.operation.id
        await self.put(record)
        await self.audit(record.audit)
        return record

    async def applied(self, plan_id: str) -> OperationRecord | None:
        return await self.operation(self.claims[plan_id]) if plan_id in self.claims else None

    async def put(self, record: OperationRecord) -> None:
        self.records[record.operation.id] = copy.deepcopy(record)

    async def operation(self, operation_id: str) -> OperationRecord | None:
        return copy.deepcopy(self.records.get(operation_id))

    async def operations(self, *, limit: int, service: str = "") -> OperationPage:
        found = [one.operation for one in reversed(list(self.records.values()))]
        return OperationPage(items=[one for one in found if service in ("", f"{one.namespace}/{one.service}")][:limit])

    async def active(self) -> list[OperationRecord]:
        return [copy.deepcopy(one) for one in self.records.values() if one.operation.active]

    async def audit(self, record: AuditRecord) -> None:
        self.entries.append(copy.deepcopy(record))

    async def audit_page(self, *, limit: int, before: str = "") -> AuditPage:
        newest = {entry.id: entry for entry in self.entries}
        return AuditPage(items=list(reversed(newest.values()))[:limit])
