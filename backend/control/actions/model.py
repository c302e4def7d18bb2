"""What the pipeline's parts hand to each other: the cluster at one moment, a forecast, and the records that survive a restart. No I/O."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from backend.api.actions import (
    ActionPlan,
    AuditPage,
    AuditRecord,
    Manifest,
    Operation,
    OperationPage,
    PairRatio,
    PlanStep,
    RoleCapacity,
)


@dataclass(frozen=True)
class ClusterState:
    """One StormService and what belongs to it. `service` is None where there is none (yet, or any more)."""

    namespace: str
    name: str
    service: Manifest | None = None
    rolesets: Sequence[Manifest] = ()
    pods: Sequence[Manifest] = ()
    revisions: Sequence[Manifest] = ()
    podsets: Sequence[Manifest] = ()


@dataclass(frozen=True)
class Forecast:
    """The planner run forward in virtual time. `leaving` are the names of today's pods that go."""

    steps: tuple[PlanStep, ...] = ()
    leaving: frozenset[str] = frozenset()
    capacity: tuple[RoleCapacity, ...] = ()
    pair_ratio: PairRatio | None = None
    seconds: float | None = None
    """None when it does not come to an end; `notes` say why."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """An object before and after. `patch` is a JSON merge patch, None where the object is created or deleted."""

    before: Manifest | None
    after: Manifest | None
    patch: Manifest | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What is known beside the objects."""

    cached: Mapping[str, int] | None = None
    """Tokens that each pod has cached; None while the index does not answer."""
    starts: Mapping[str, float] = field(default_factory=dict)
    """Creation to ready in seconds, a role, as observed."""


Preview = Callable[[ClusterState, Manifest | None, Mapping[str, float], float], Forecast]
"""State, the object after the change (None: deleted), start times a role, now -> forecast."""


class Fingerprint(msgspec.Struct, kw_only=True):
    """The part of the state that a plan rests on. `exact` must not change at all, `ready` (pods a role) must not shrink."""

    exact: Manifest
    ready: dict[str, int] = {}


class StoredPlan(msgspec.Struct, kw_only=True):
    """A plan with what is needed to apply it."""

    plan: ActionPlan
    fingerprint: Fingerprint
    before: Manifest | None = None
    after: Manifest | None = None
    patch: Manifest | None = None
    pods: dict[str, str] = {}
    """uid to role of the pods that stood when the plan was made."""
    undoes: str = ""


class OperationRecord(msgspec.Struct, kw_only=True):
    """An operation with everything that a restarted control needs to go on with it."""

    operation: Operation
    stored: StoredPlan
    audit: AuditRecord
    key: str = ""
    sent: bool = False
    """The change reached the cluster."""
    spec: Manifest | None = None
    """The object's spec as the API server answered to our change; another one later means that somebody else changed it."""
    generation: int = 0
    """metadata.generation of that answer: a view of the cluster with a smaller one is from before our change."""
    was_paused: bool = False
    best: int = 0
    """Most progress seen, in pods that came up or went away."""
    progress_at: float = 0.0
    reverted: bool = False
    """The abort's way back reached the cluster."""
    abort_audit: AuditRecord | None = None
    gone: bool = False
    """The object was deleted under it."""


class Cluster(Protocol):
    """The cluster side. Calls raise errors of our tree, each with what to do."""

    async def observe(self, namespace: str, name: str) -> ClusterState:
        """Everything of one StormService, read now."""
        ...

    async def overview(self) -> Sequence[ClusterState]:
        """Every StormService with its pods, without revisions."""
        ...

    async def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest: ...

    async def patch(self, namespace: str, name: str, patch: Manifest, *, dry_run: bool = False) -> Manifest:
        """A JSON merge patch. Raises StaleState where its resourceVersion is not the object's."""
        ...

    async def delete(self, namespace: str, name: str) -> None:
        """In the foreground. Fine when it is gone already."""
        ...

    def follow(self, namespace: str, name: str) -> AsyncIterator[ClusterState]:
        """The state now and after every change of any of its objects; also without a change every few seconds."""
        ...


class Store(Protocol):
    """Plans, operations and audit. Calls raise Unavailable when the server does not answer."""

    async def put_plan(self, stored: StoredPlan) -> None: ...

    async def plan(self, plan_id: str) -> StoredPlan | None: ...

    async def begin(self, record: OperationRecord) -> OperationRecord:
        """Keep `record` and its audit entry in one step, unless its plan was applied before: then that earlier record is the answer."""
        ...

    async def applied(self, plan_id: str) -> OperationRecord | None:
        """What a plan became; None while it was not applied."""
        ...

    async def put(self, record: OperationRecord) -> None: ...

    async def operation(self, operation_id: str) -> OperationRecord | None: ...

    async def operations(self, *, limit: int, service: str = "") -> OperationPage: ...

    async def active(self) -> list[OperationRecord]: ...

    async def audit(self, record: AuditRecord) -> None:
        """Append an entry."""
        ...

    async def audit_page(self, *, limit: int, before: str = "") -> AuditPage: ...
