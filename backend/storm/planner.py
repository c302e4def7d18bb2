"""The whole plan of a StormService: a pure function of the objects as they are and the time.

The controller that carries plans out, the preview before an upgrade, the what-if and the tests all call this one function. It is
level-triggered: it looks only at what is, so from whatever state a crash or a hand has left, the next plan goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from . import names, render
from .actions import NOTHING_OBSERVED, Action, Create, Delete, Object, Observed, Patch, Plan, Problem, RoleSetPlan, Unknown
from .groups import Group, free_index, owned_groups
from .merge import merge_diff
from .model import ServiceSpec, read_service
from .pods import by_owner
from .replicas import GroupMoves, moves_of_groups
from .revisions import Revisions, role_revisions, sync, truncate
from .rolesetplan import RECHECK_S, plan_group, with_finalizer, without_finalizer
from .status import group_waits, refused_status, service_ready, service_status


def plan(
    service: Object,
    rolesets: Iterable[Object],
    pods: Iterable[Object],
    revisions: Iterable[Object],
    now: float,
    *,
    podsets: Iterable[Object] = (),
    observed: Observed = NOTHING_OBSERVED,
) -> Plan:
    """What `service` needs now, its RoleSets and their pods included.

    The lists may hold more than the service's own; only what it controls, in its own namespace, counts. `now` is seconds since 1970.
    `podsets` is accepted for roles of several pods a replica, which are refused as a problem so far.
    """
    groups = owned_groups(service, rolesets, by_owner(pods, service["metadata"].get("namespace", "")))
    own = plan_service(service, groups, revisions, now, observed)
    paused = bool((service.get("spec") or {}).get("paused"))
    parts = {group.name: plan_group(group, now, paused=paused, error=observed.errors.get(group.name, "")) for group in groups}
    return _joined(own, parts)


def _joined(own: Plan, parts: dict[str, RoleSetPlan]) -> Plan:
    """RoleSets that the service's own actions touch are left to the next pass: their specification is about to change."""
    touched = {action.name for action in own.actions if isinstance(action, Patch | Delete) and action.resource == names.ROLE_SETS}
    actions = [action for name, part in parts.items() if name not in touched for action in part.actions]
    checks = [check for check in (own.next_check, *(part.next_check for part in parts.values())) if check is not None]
    return msgspec.structs.replace(
        own,
        actions=own.actions + tuple(actions),
        next_check=min(checks, default=None),
        role_set_statuses={name: part.status for name, part in parts.items()},
    )


def plan_service(service: Object, groups: Sequence[Group], revisions: Iterable[Object], now: float, observed: Observed) -> Plan:
    """The part above the RoleSets: revisions, headless Service, which RoleSets there are, the status."""
    if service["metadata"].get("deletionTimestamp"):
        return _end(service, groups, now)
    spec = read_service(service)
    if spec.problems:
        return Plan(status=refused_status(service, spec.problems, now), problems=spec.problems)
    namespace = service["metadata"].get("namespace", "")
    found = list(revisions)
    known = sync(service, spec.template, found, observed.taken)
    actions: list[Action] = []
    if names.SERVICE_FINALIZER not in (service["metadata"].get("finalizers") or ()):
        actions.append(with_finalizer(names.STORM_SERVICES, service, names.SERVICE_FINALIZER))
    actions += known.actions
    headless, taken = _headless(service, observed, first=not found and not groups)
    actions += headless
    moves = moves_of_groups(spec, list(groups), known)
    actions += _group_actions(service, groups, known, moves)
    ready = service_ready(groups, known, spec.budget.wanted)
    if ready:
        actions += truncate(known, [group.revision for group in groups], spec.history, namespace)
    waits = _waits(spec, groups, known)
    error = observed.errors.get(service["metadata"]["name"], "") or _first_error(groups, observed)
    status = service_status(service, groups, known, spec.budget.wanted, now, waits=waits, error=error, headless=taken)
    return Plan(
        actions=tuple(actions),
        status=status,
        next_check=None if ready and not error else now + RECHECK_S,
        waiting=tuple(waits),
        warnings=tuple(Problem(f"spec.template.{found.path}", found.message) for found in spec.groups.ignored),
    )


def _group_actions(service: Object, groups: Sequence[Group], known: Revisions, moves: GroupMoves) -> list[Action]:
    """Deletes before creates, as the field does for RoleSets: their room is counted from before."""
    namespace = service["metadata"].get("namespace", "")
    actions: list[Action] = [Delete(names.ROLE_SETS, namespace, group.name, group.uid, reason) for group, reason in moves.delete]
    if not moves.create and not moves.update:
        return actions
    before = {revision.name: revision for revision in known.owned}
    roles = role_revisions(known)
    used = {group.index for group in groups}
    for revision, reason in moves.create:
        told = roles if revision.name == known.update.name else dict.fromkeys(_role_names(revision.template), revision)
        actions.append(Create(names.ROLE_SETS, render.role_set(service, revision, told, free_index(used)), reason))
    for group, reason in moves.update:
        patch = render.role_set_update(service, group.object, before.get(group.revision), known.update, roles)
        actions.append(Patch(names.ROLE_SETS, namespace, group.name, patch, reason))
    return actions


def _role_names(template: dict[str, object]) -> list[str]:
    spec = template.get("spec")
    return [role["name"] for role in spec.get("roles") or ()] if isinstance(spec, dict) else []


def _headless(service: Object, observed: Observed, *, first: bool) -> tuple[list[Action], str]:
    """The Service that gives pods their addresses. One that belongs to somebody else is never touched, and never in the way of pods."""
    meta, existing = service["metadata"], observed.headless
    wanted = render.headless_service(service)
    if existing is None or (isinstance(existing, Unknown) and first):
        return [Create(names.SERVICES, wanted, "pods find each other by it")], ""
    if isinstance(existing, Unknown):
        return [], ""
    present = existing.get("spec") or {}
    drift = merge_diff({key: present.get(key) for key in wanted["spec"]}, wanted["spec"])
    if not drift:
        return [], ""
    if names.controller_uid(existing) == meta.get("uid", ""):
        return [Patch(names.SERVICES, meta.get("namespace", ""), meta["name"], {"spec": drift}, "it no longer selects the pods")], ""
    return [], (
        f"Service {meta['name']} exists and is not this StormService's, pods get no addresses of their own; "
        "delete or rename that Service, or give the StormService another name"
    )


def _waits(spec: ServiceSpec, groups: Sequence[Group], known: Revisions) -> list[str]:
    """Why the service is not ready: what pauses it, then what each RoleSet waits for."""
    waits = []
    outdated = sum(group.revision != known.update.name for group in groups)
    if spec.paused and (outdated or any(state.outdated for group in groups for state in group.states)):
        waits.append(f"paused: revision {known.update.number} is not rolled out further until spec.paused is false")
    elif outdated:
        waits.append(f"{outdated} of {len(groups)} RoleSets are of an older revision than {known.update.number}")
    elif len(groups) < spec.budget.wanted:
        waits.append(f"{len(groups)} of {spec.budget.wanted} RoleSets stand")
    return waits + [wait for group in groups if not group.complete for wait in group_waits(group)]


def _first_error(groups: Sequence[Group], observed: Observed) -> str:
    """A failure below is the service's failure too: nobody has to search for it."""
    for group in groups:
        if group.spec.problems and not group.terminating:
            return f"{group.name}: {group.spec.problems[0]}"
        if error := observed.errors.get(group.name):
            return f"{group.name}: {error}"
    return ""


def _end(service: Object, groups: Sequence[Group], now: float) -> Plan:
    """RoleSets first, then the finalizer; Service and revisions go with their owner."""
    status = dict(service.get("status") or {})
    namespace = service["metadata"].get("namespace", "")
    if groups:
        leaving = [
            Delete(names.ROLE_SETS, namespace, group.name, group.uid, "its StormService is being deleted")
            for group in groups
            if not group.terminating
        ]
        waits = tuple(wait for group in groups for wait in group_waits(group))
        return Plan(actions=tuple(leaving), status=status, next_check=now + RECHECK_S, waiting=waits)
    if names.SERVICE_FINALIZER not in (service["metadata"].get("finalizers") or ()):
        return Plan(status=status)
    gone = without_finalizer(names.STORM_SERVICES, service, names.SERVICE_FINALIZER, "its last RoleSet is gone")
    return Plan(actions=(gone,), status=status)
