"""Messages of the Action pipeline: plan, confirm, apply, watch, abort or undo, audit.

A plan is made from the state of the cluster at one moment, shown, and applied as it was shown or not at all. What it becomes is an
operation. Every act leaves an audit record, written before the act and completed after it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Action = Literal["create", "delete", "scale", "set-image", "pause", "resume", "undo"]
"""`undo` plans the way back of an operation; it is asked for at the operation, not here."""
Risk = Literal["low", "medium", "high"]
Source = Literal["ui", "notebook", "report", "api", "cli"]
OperationState = Literal["planned", "running", "paused", "aborting", "aborted", "done", "failed", "undone"]
Verb = Literal["pause", "resume", "abort", "undo"]
Outcome = Literal["started", "done", "failed", "refused"]

ACTIVE: frozenset[OperationState] = frozenset({"planned", "running", "paused", "aborting"})
"""States in which the cluster is still on its way."""

Manifest = dict[str, Any]
"""An object as the Kubernetes API writes it."""


class Actor(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Who asks. `user` is what the client says: the bearer token proves the right to act, not the name."""

    user: str = ""
    source: Source = "api"


class Parameters(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What an action needs; the others stay empty."""

    image: str = ""
    """set-image: the new image."""
    role: str = ""
    """set-image, scale: the role; empty means every role (set-image) or the number of RoleSets (scale)."""
    container: str = ""
    """set-image: the container; may be empty where a role has one only."""
    replicas: int | None = None
    """scale: instances wanted."""
    manifest: Manifest | None = None
    """create: the StormService."""
    operation: str = ""
    """undo: the operation to go back from."""


class PlanRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What an operator wants. Nothing happens before the plan made of it is applied."""

    action: Action
    namespace: str = "default"
    service: str = ""
    """May be empty for `create`: the manifest names it."""
    parameters: Parameters = msgspec.field(default_factory=Parameters)
    reason: str = ""
    by: Actor = msgspec.field(default_factory=Actor)


class FieldChange(msgspec.Struct, kw_only=True):
    """One field, by its path such as `spec.template.spec.roles[decode].replicas`. None: the field is absent."""

    path: str
    before: Any = None
    after: Any = None


class PlanStep(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What happens at one moment of the forecast: pods that are created and deleted, a number a role."""

    at_s: float
    """Seconds after apply."""
    pods_in: dict[str, int] = {}
    pods_out: dict[str, int] = {}
    ready: dict[str, int] = {}
    """Ready pods a role after this step."""
    reason: str = ""


class RoleCapacity(msgspec.Struct, kw_only=True):
    """Ready pods of a role over the whole forecast."""

    role: str
    before: int
    worst: int
    after: int


class PairRatio(msgspec.Struct, kw_only=True):
    """Ready prefill pods to each ready decode pod. None where a side has none."""

    before: float | None = None
    lowest: float | None = None
    highest: float | None = None
    after: float | None = None


class ActionPlan(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What applying would change and cost. `hash` covers the state it was made from and the change."""

    id: str
    hash: str
    action: Action
    namespace: str
    service: str
    parameters: Parameters
    made_at: float
    expires_at: float
    resource_version: str = ""
    """Of the StormService when the plan was made; empty when there was none."""
    revision: str = ""
    """ControllerRevision that pods run before the change."""
    risk: Risk = "low"
    confirm: str = ""
    """What must be typed to apply; empty: a button is enough."""
    reason_required: bool = False
    reason: str = ""
    by: Actor = msgspec.field(default_factory=Actor)
    diff: list[FieldChange] = []
    steps: list[PlanStep] = []
    capacity: list[RoleCapacity] = []
    pair_ratio: PairRatio | None = None
    """Prefill to decode; None where a service has not both."""
    warm_tokens_lost: int | None = None
    """Tokens that leaving pods hold in their prefix cache now; None while the index does not say."""
    seconds: float | None = None
    """Estimated from observed start times; None when the forecast does not come to an end."""
    start_seconds: dict[str, float] = {}
    """Creation to ready, a role: what `seconds` was estimated from."""
    notes: list[str] = []


class ApplyRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`key` makes a repeated call harmless: the same key gets the same operation."""

    confirm: str = ""
    reason: str = ""
    key: str = ""
    by: Actor = msgspec.field(default_factory=Actor)


class VerbRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Abort, pause, resume or undo of an operation. An abort needs the service's name in `confirm`."""

    confirm: str = ""
    reason: str = ""
    by: Actor = msgspec.field(default_factory=Actor)


class Operation(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A plan that was applied. It lives in the backend: whoever watches may leave and come back."""

    id: str
    plan_id: str
    action: Action
    namespace: str
    service: str
    state: OperationState = "planned"
    steps_done: int = 0
    steps_total: int = 0
    message: str = ""
    """What it waits for, or why it failed."""
    summary: str = ""
    """The change in one line."""
    revision: str = ""
    """ControllerRevision before the change: where an undo goes back to."""
    started_at: float = 0.0
    updated_at: float = 0.0
    ended_at: float = 0.0
    risk: Risk = "low"
    reason: str = ""
    by: Actor = msgspec.field(default_factory=Actor)
    undoes: str = ""
    """Operation that this one goes back from."""
    verbs: list[Verb] = []
    """What may be asked of it now."""

    @property
    def active(self) -> bool:
        """Whether the cluster is still on its way."""
        return self.state in ACTIVE


class AuditRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Who did what, and what became of it. One act is two entries of the stream with one id: before it and after it."""

    id: str
    at: float
    user: str = ""
    source: Source = "api"
    action: str
    """An action, or a verb on an operation."""
    target: str
    """`namespace/service`."""
    plan_id: str = ""
    plan_hash: str = ""
    operation_id: str = ""
    outcome: Outcome = "started"
    message: str = ""
    reason: str = ""
    ended_at: float = 0.0


class OperationPage(msgspec.Struct, kw_only=True):
    """Newest first."""

    items: list[Operation]
    next: str | None = None


class AuditPage(msgspec.Struct, kw_only=True):
    """Newest first. `next` is passed as `before=` for older ones."""

    items: list[AuditRecord]
    next: str | None = None


class RoleView(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A role of a StormService, over all its RoleSets."""

    name: str
    images: list[str]
    wanted: int
    """Pods wanted."""
    ready: int = 0
    updated: int = 0
    """Pods that run the newest images."""


class ServiceView(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A StormService as pages and tables show it."""

    namespace: str
    name: str
    mode: Literal["replica", "pooled"]
    replicas: int
    roles: list[RoleView]
    ready: bool = False
    paused: bool = False
    revision: str = ""
    update_revision: str = ""
    resource_version: str = ""
    operation: str = ""
    """Operation under way on it."""
    message: str = ""
    manifest: Manifest = {}
    """The object itself."""


class ServicePage(msgspec.Struct, kw_only=True):
    items: list[ServiceView]
    next: str | None = None
