"""How many RoleSets a StormService needs, and which of them are replaced next."""

from __future__ import annotations

import math

import msgspec

from .budgets import Budget
from .groups import Group
from .hashing import canonical
from .model import ServiceSpec
from .revisions import Revision, Revisions


class GroupMoves(msgspec.Struct):
    """RoleSets to delete, to create (with the revision) and to give a new template, each with its reason."""

    delete: list[tuple[Group, str]] = msgspec.field(default_factory=list)
    create: list[tuple[Revision, str]] = msgspec.field(default_factory=list)
    update: list[tuple[Group, str]] = msgspec.field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.delete or self.create or self.update)


def moves_of_groups(spec: ServiceSpec, groups: list[Group], revisions: Revisions) -> GroupMoves:
    """Scale first; what is left to replace comes in a pass in which the number was right."""
    moves = _scale(spec, groups, revisions)
    if moves or spec.paused:
        return moves
    if spec.in_place:
        reason = f"template of revision {revisions.update.number}"
        return GroupMoves(update=[(group, reason) for group in _outdated(groups, revisions)])
    return _roll(spec, groups, revisions)


def _active(groups: list[Group]) -> list[Group]:
    return [group for group in groups if not group.terminating]


def _outdated(groups: list[Group], revisions: Revisions) -> list[Group]:
    return [group for group in _active(groups) if group.revision != revisions.update.name]


def _budget(spec: ServiceSpec) -> Budget:
    """Surge and unavailable are of the rolling update; in place the roles' own budgets hold."""
    return Budget(spec.budget.wanted, 0, spec.budget.wanted) if spec.in_place else spec.budget


def _scale(spec: ServiceSpec, groups: list[Group], revisions: Revisions) -> GroupMoves:
    budget, active = _budget(spec), _active(groups)
    outdated = [group for group in active if group.revision != revisions.update.name]
    surplus = len(active) - budget.wanted
    divided = spec.paused and bool(outdated) and revisions.current.name != revisions.update.name
    if surplus == 0:
        return GroupMoves()
    if divided:
        return _scale_in_proportion(budget, active, revisions)
    if surplus < 0:
        count = min(-surplus, budget.wanted + budget.surge - len(groups))
        return GroupMoves(create=[(revisions.update, f"{len(active)} of {budget.wanted} RoleSets stand")] * max(0, count))
    moves, ready = GroupMoves(), sum(group.available for group in active)
    for group in deletion_order(active, revisions.update.name):
        if len(moves.delete) == surplus or (group.available and ready <= budget.min_ready):
            break
        ready -= group.available
        moves.delete.append((group, f"{len(active)} RoleSets stand, {budget.wanted} are wanted"))
    return moves


def deletion_order(groups: list[Group], update: str) -> list[Group]:
    """Older revision before the wanted one, not ready before ready, else as they came."""
    return sorted(groups, key=lambda group: (group.revision == update, group.available))


def proportion(desired: int, current: int, updated: int) -> tuple[int, int]:
    """`desired` split as `current` to `updated`, halves rounded away from zero."""
    total = current + updated
    if total in (0, desired):
        return (current, updated) if total else (0, desired)
    kept = math.floor(current * desired / total + 0.5)
    return kept, desired - kept


def _scale_in_proportion(budget: Budget, active: list[Group], revisions: Revisions) -> GroupMoves:
    """Paused between two revisions: the service grows and shrinks with both of them in the shares they have."""
    old = [group for group in active if group.revision != revisions.update.name]
    new = [group for group in active if group.revision == revisions.update.name]
    surplus = len(active) - budget.wanted
    if surplus < 0:
        kept, updated = proportion(budget.wanted, len(old), len(new))
        reason = "paused between two revisions; both grow in their shares"
        moves = GroupMoves(create=[(revisions.current, reason)] * max(0, kept - len(old)))
        moves.create += [(revisions.update, reason)] * max(0, updated - len(new))
        return moves
    not_ready = [group for group in deletion_order(active, revisions.update.name) if not group.available]
    if not_ready and surplus <= budget.surge:
        return GroupMoves()  # the one that a rollout has just added; it is paid for when it is ready
    reason = "paused between two revisions; both shrink in their shares"
    if surplus <= len(not_ready):
        return GroupMoves(delete=[(group, reason) for group in not_ready[:surplus]])
    old, new = [group for group in old if group.available], [group for group in new if group.available]
    kept, updated = proportion(budget.wanted, len(old), len(new))
    leaving = [*not_ready, *old[: max(0, len(old) - kept)], *new[: max(0, len(new) - updated)]]
    return GroupMoves(delete=[(group, reason) for group in leaving])


def _roll(spec: ServiceSpec, groups: list[Group], revisions: Revisions) -> GroupMoves:
    """Replace whole RoleSets: old ones go while enough stay ready, new ones come while there is room. Counts are of before the deletes."""
    budget, update = spec.budget, revisions.update
    outdated = _outdated(groups, revisions)
    resized = [group for group in outdated if _differs_in_size_only(group, update)]
    if resized:
        return GroupMoves(update=[(group, "only the sizes of roles changed, its pods stay") for group in resized])
    moves, ready = GroupMoves(), sum(group.available for group in _active(groups))
    for group in deletion_order(outdated, update.name):
        if group.available:
            if ready <= budget.min_ready:
                break
            ready -= 1
        moves.delete.append((group, f"revision {update.number} replaces it"))
    updated = sum(group.revision == update.name for group in _active(groups))
    count = min(budget.wanted + budget.surge - len(groups), budget.wanted - updated)
    if outdated:
        moves.create = [(update, f"revision {update.number}, {updated} of {budget.wanted} stand")] * max(0, count)
    return moves


def _differs_in_size_only(group: Group, revision: Revision) -> bool:
    """Whether the group's pods would be the same under `revision`, only more or fewer of them."""
    spec = revision.template.get("spec") or {}
    labels, wanted = group.object["metadata"].get("labels") or {}, (revision.template.get("metadata") or {}).get("labels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return canonical(_without_sizes(group.object.get("spec") or {})) == canonical(_without_sizes(spec))


def _without_sizes(spec: dict[str, object]) -> dict[str, object]:
    roles = spec.get("roles")
    if not isinstance(roles, list):
        return spec
    return {**spec, "roles": [{key: value for key, value in role.items() if key != "replicas"} for role in roles]}
