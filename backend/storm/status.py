"""What a StormService and a RoleSet say about themselves.

Counts come from the pods, never from another object's status. Ready means: every wanted pod stands, is of the wanted version and ready, and
nothing else is left, for the generation named. When it is not so, Ready is False with the reason; it never disappears.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from . import names
from .actions import Object, Problem
from .groups import Group
from .revisions import Revisions
from .roles import RoleState, waits_for

TIMES = ("lastTransitionTime", "lastUpdateTime", "lastUpdateMicroTime")
MESSAGE_LIMIT = 1024
LISTED = 3

Condition = dict[str, Any]


def condition(kind: str, holds: bool, reason: str, message: str = "") -> Condition:
    return {"type": kind, "status": "True" if holds else "False", "reason": reason, "message": message[:MESSAGE_LIMIT]}


def role_counts(state: RoleState) -> dict[str, Any]:
    return {
        "name": state.spec.name,
        "replicas": len(state.active),
        "readyReplicas": state.ready,
        "notReadyReplicas": len(state.active) - state.ready,
        "updatedReplicas": state.updated,
        "updatedReadyReplicas": state.updated_ready,
    }


def group_waits(group: Group) -> list[str]:
    """What holds each role of a RoleSet."""
    if group.terminating:
        return [f"{group.name}: waiting for its {len(group.pods)} pods to end"]
    waits = [f"{group.name}: {len(group.strangers)} pods of roles that are no longer in the list"] if group.strangers else []
    return waits + [waits_for(state, group.name) for state in group.states if not state.complete]


def role_set_status(group: Group, now: float, error: str) -> dict[str, Any]:
    """The status of one RoleSet; the old one, times included, when nothing else changed."""
    old = group.object.get("status") or {}
    problems = "; ".join(str(problem) for problem in group.spec.problems)
    conditions = [_ready_condition(group.complete, problems or error, group_waits(group))]
    if problems or error:
        conditions.append(condition("ReplicaFailure", True, "InvalidSpec" if problems else "Failure", problems or error))
    status = {
        "observedGeneration": group.object["metadata"].get("generation", 0),
        "roles": [role_counts(state) for state in group.states],
        "conditions": conditions,
    }
    return with_times(status, old, now)


def _ready_condition(ready: bool, failure: str, waits: Sequence[str]) -> Condition:
    if ready:
        return condition("Ready", True, "Ready")
    return condition("Ready", False, "Failure" if failure else "Processing", failure or summary(waits))


def summary(waits: Sequence[str]) -> str:
    """The first reasons, and how many more there are."""
    return "; ".join(waits[:LISTED]) + (f"; and {len(waits) - LISTED} more" if len(waits) > LISTED else "")


def service_ready(groups: Sequence[Group], revisions: Revisions, wanted: int) -> bool:
    return len(groups) == wanted and all(group.complete and group.revision == revisions.update.name for group in groups)


def service_status(
    service: Object,
    groups: Sequence[Group],
    revisions: Revisions,
    wanted: int,
    now: float,
    *,
    waits: Sequence[str],
    error: str,
    headless: str,
) -> dict[str, Any]:
    """The status of a StormService.

    The current revision is promoted only when the wanted one is complete, so it names what an undo goes back to.
    """
    ready = service_ready(groups, revisions, wanted) and not error
    update = revisions.update.name
    current = update if ready else revisions.current.name
    updated = [group for group in groups if group.revision == update and group.updated]
    conditions = [_ready_condition(ready, error, waits)]
    if not ready:
        conditions.append(condition("Progressing", True, "Processing", summary(waits)))
    if error:
        conditions.append(condition("ReplicaFailure", True, "Failure", error))
    if headless:
        conditions.append(condition("HeadlessService", False, "NameTaken", headless))
    status = {
        "observedGeneration": service["metadata"].get("generation", 0),
        "replicas": len(groups),
        "readyReplicas": sum(group.available for group in groups),
        "notReadyReplicas": sum(not group.available for group in groups),
        "currentReplicas": sum(group.revision == current for group in groups),
        "updatedReplicas": len(updated),
        "updatedReadyReplicas": sum(group.complete for group in updated),
        "currentRevision": current,
        "updateRevision": update,
        "collisionCount": revisions.collisions,
        "scalingTargetSelector": f"{names.SERVICE_LABEL}={service['metadata']['name']}",
        "roleStatuses": _role_statuses(groups),
        "conditions": conditions,
    }
    return with_times(status, service.get("status") or {}, now)


def refused_status(service: Object, problems: Sequence[Problem], now: float) -> dict[str, Any]:
    """The status while fields cannot be obeyed: counts stay as they were, the generation is named as seen."""
    old = service.get("status") or {}
    message = "; ".join(str(problem) for problem in problems)
    conditions = [condition("Ready", False, "InvalidSpec", message), condition("ReplicaFailure", True, "InvalidSpec", message)]
    status = {**old, "observedGeneration": service["metadata"].get("generation", 0), "conditions": conditions}
    return with_times(status, old, now)


def _role_statuses(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Sums over all RoleSets, by role; a pod counts as updated by its own version in its RoleSet of the wanted revision or not."""
    total: dict[str, dict[str, Any]] = {}
    for group in groups:
        for state in group.states:
            counts = role_counts(state)
            into = total.setdefault(counts["name"], {**counts, **dict.fromkeys(list(counts)[1:], 0)})
            for key, value in counts.items():
                if key != "name":
                    into[key] += value
    return [total[name] for name in sorted(total)]


def with_times(status: dict[str, Any], old: Mapping[str, Any], now: float) -> dict[str, Any]:
    """`status` with the times of its conditions; `old` itself when they differ in times alone, so that nothing is written for a time."""
    if _timeless(status) == _timeless(old):
        return dict(old)
    before = {item.get("type"): item for item in old.get("conditions") or ()}
    seconds, micro = stamp(now), stamp(now, micro=True)
    for item in status["conditions"]:
        known = before.get(item["type"], {})
        unchanged = known.get("status") == item["status"]
        item["lastTransitionTime"] = known.get("lastTransitionTime", seconds) if unchanged else seconds
        item["lastUpdateTime"], item["lastUpdateMicroTime"] = seconds, micro
    return status


def _timeless(status: Mapping[str, Any]) -> dict[str, Any]:
    conditions = [{key: value for key, value in item.items() if key not in TIMES} for item in status.get("conditions") or ()]
    return {**status, "conditions": conditions}


def stamp(now: float, *, micro: bool = False) -> str:
    """Seconds since 1970 as Kubernetes writes times (RFC 3339, UTC)."""
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")
