"""What a plan consists of: plain values that can be shown, stored, compared and carried out in their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

Object: TypeAlias = Mapping[str, Any]
"""A Kubernetes object as its JSON, nothing lost."""


class Create(msgspec.Struct, frozen=True, tag="create"):
    """Make `object`. Names may be left to the API server (`generateName`)."""

    resource: str
    object: dict[str, Any]
    reason: str

    @property
    def namespace(self) -> str:
        return str(self.object["metadata"].get("namespace", ""))

    @property
    def name(self) -> str:
        meta = self.object["metadata"]
        return str(meta.get("name") or meta.get("generateName", ""))


class Patch(msgspec.Struct, frozen=True, tag="patch"):
    """Merge `patch` into an object, or into its subresource."""

    resource: str
    namespace: str
    name: str
    patch: dict[str, Any]
    reason: str
    subresource: str = ""


class Delete(msgspec.Struct, frozen=True, tag="delete"):
    """Delete exactly this object: `uid` guards against a new one of the same name. `grace_s` None leaves it to the object."""

    resource: str
    namespace: str
    name: str
    uid: str
    reason: str
    grace_s: int | None = None


Action: TypeAlias = Create | Patch | Delete


class Unknown(msgspec.Struct, frozen=True, tag="unknown"):
    """Nobody looked."""


UNKNOWN = Unknown()


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan may know beside the objects it is given.

    `headless` is the Service of the StormService's name (None: there is none); `errors` are messages of actions that failed since the last
    success, by object name; `taken` are revision names that the API server refused as existing.
    """

    headless: Object | Unknown | None = UNKNOWN
    errors: Mapping[str, str] = {}
    taken: frozenset[str] = frozenset()


NOTHING_OBSERVED = Observed()


class Problem(msgspec.Struct, frozen=True):
    """A field that cannot be obeyed: where it stands, what is wrong, what to do."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class RoleSetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one RoleSet needs now. `waiting` says for each role that is not done what holds it."""

    actions: tuple[Action, ...] = ()
    status: dict[str, Any] = {}
    next_check: float | None = None
    waiting: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a StormService needs now.

    `actions` in the order in which they are carried out; `status` as it should stand; `role_set_statuses` by RoleSet name; `next_check` the
    moment (seconds since 1970) to look again without an event, None when there is nothing to wait for; `waiting` answers "why is nothing
    happening"; `problems` are fields that cannot be obeyed, while they stand nothing is changed; `warnings` are fields without effect.
    """

    actions: tuple[Action, ...] = ()
    status: dict[str, Any] = {}
    next_check: float | None = None
    role_set_statuses: Mapping[str, dict[str, Any]] = {}
    waiting: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()

    @property
    def done(self) -> bool:
        """Nothing to do and nothing to wait for."""
        return not self.actions and self.next_check is None
