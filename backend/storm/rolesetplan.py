"""What one RoleSet needs: its pods, its status, its end."""

from __future__ import annotations

from collections.abc import Iterable

from . import names, render
from .actions import NOTHING_OBSERVED, Action, Create, Delete, Object, Observed, Patch, RoleSetPlan
from .groups import Group, read_group
from .pods import Pod, by_owner
from .roles import Moves, RoleState
from .status import group_waits, role_set_status
from .strategies import moves_of_roles

RECHECK_S = 15.0
"""A look without an event while something is unfinished: a safety net, events drive the work."""


def plan_role_set(
    role_set: Object, pods: Iterable[Object], now: float, *, paused: bool = False, observed: Observed = NOTHING_OBSERVED
) -> RoleSetPlan:
    """The sub-plan of one RoleSet. `pods` may hold more than its own; only those it controls in its namespace count."""
    meta = role_set["metadata"]
    mine = by_owner(pods, meta.get("namespace", "")).get(meta.get("uid", ""), [])
    return plan_group(read_group(role_set, mine), now, paused=paused, error=observed.errors.get(meta["name"], ""))


def plan_group(group: Group, now: float, *, paused: bool = False, error: str = "") -> RoleSetPlan:
    """As `plan_role_set`, for one that has been read already."""
    if group.terminating:
        return _end(group, now)
    status = role_set_status(group, now, error)
    if group.spec.problems:
        return RoleSetPlan(status=status, problems=group.spec.problems)
    actions: list[Action] = []
    if names.ROLE_SET_FINALIZER not in (group.object["metadata"].get("finalizers") or ()):
        actions.append(with_finalizer(names.ROLE_SETS, group.object, names.ROLE_SET_FINALIZER))
    if group.complete:
        return RoleSetPlan(actions=tuple(actions), status=status)
    actions += [delete_pod(pod, f"its role {pod.role!r} is no longer in the list") for pod in group.strangers if not pod.terminating]
    for state, moves in moves_of_roles(group.states, group.spec.strategy, group.name, paused=paused):
        actions += _actions(group, state, moves)
    return RoleSetPlan(actions=tuple(actions), status=status, next_check=now + RECHECK_S, waiting=tuple(group_waits(group)))


def _actions(group: Group, state: RoleState, moves: Moves) -> list[Action]:
    """Creates before deletes: what comes is on its way before something goes."""
    role = state.spec
    creates: list[Action] = [
        Create(names.PODS, render.pod(group.object, role, slot, group.spec.roles), f"{role.name}: {reason}")
        for slot, reason in moves.create
    ]
    return creates + [delete_pod(pod, f"{role.name}: {reason}") for pod, reason in moves.delete]


def _end(group: Group, now: float) -> RoleSetPlan:
    """Its pods first, then the finalizer that held it for them."""
    status = role_set_status(group, now, "")
    leaving = [delete_pod(pod, "its RoleSet is being deleted") for pod in group.pods if not pod.terminating]
    if group.pods:
        return RoleSetPlan(actions=tuple(leaving), status=status, next_check=now + RECHECK_S, waiting=tuple(group_waits(group)))
    if names.ROLE_SET_FINALIZER not in (group.object["metadata"].get("finalizers") or ()):
        return RoleSetPlan(status=status)
    return RoleSetPlan(
        actions=(without_finalizer(names.ROLE_SETS, group.object, names.ROLE_SET_FINALIZER, "its last pod is gone"),), status=status
    )


def delete_pod(pod: Pod, reason: str) -> Delete:
    return Delete(names.PODS, pod.namespace, pod.name, pod.uid, reason)


def with_finalizer(resource: str, item: Object, finalizer: str) -> Patch:
    present = list(item["metadata"].get("finalizers") or ())
    return _finalizers(resource, item, [*present, finalizer], "its children are to end before it does")


def without_finalizer(resource: str, item: Object, finalizer: str, reason: str) -> Patch:
    present = item["metadata"].get("finalizers") or ()
    return _finalizers(resource, item, [name for name in present if name != finalizer], reason)


def _finalizers(resource: str, item: Object, finalizers: list[str], reason: str) -> Patch:
    """A merge patch replaces the whole list, so it says which version of the object it was made from."""
    meta = item["metadata"]
    metadata: dict[str, object] = {"finalizers": finalizers}
    if meta.get("resourceVersion"):
        metadata["resourceVersion"] = meta["resourceVersion"]
    return Patch(resource, meta.get("namespace", ""), meta["name"], {"metadata": metadata}, reason)
