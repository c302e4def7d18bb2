"""From a change and its forecast to the plan that is shown: warm tokens, risk, hash, notes. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from backend.api.actions import ActionPlan, FieldChange, Manifest, PlanRequest, Risk, RoleCapacity
from backend.control.actions import diff, objects
from backend.control.actions.model import Change, ClusterState, Facts, Fingerprint, Forecast, StoredPlan

VALID_S = 300.0
"""Seconds a plan may be applied: long enough to read it, too short for yesterday's tab."""
STOPPING = ("pause", "delete")
"""Actions that do not rest on how many pods are ready: they must be possible in the middle of trouble."""
_SERVER_FIELDS = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink")


def make(
    request: PlanRequest,
    state: ClusterState,
    change: Change,
    forecast: Forecast,
    facts: Facts,
    *,
    now: float,
    plan_id: str,
    undoes: str = "",
) -> StoredPlan:
    """The plan, and what applying it needs."""
    order = [str(role.get("name")) for role in objects.roles(change.after or change.before or {})]
    capacity = sorted(forecast.capacity, key=lambda one: order.index(one.role) if one.role in order else len(order))
    risk = risk_of(request.action, capacity)
    seen = fingerprint(request.action, state)
    warm = None if facts.cached is None else sum(facts.cached.get(pod, 0) for pod in forecast.leaving)
    about = objects.metadata(state.service or {})
    plan = ActionPlan(
        id=plan_id,
        hash=digest(seen, change.after),
        action=request.action,
        namespace=state.namespace,
        service=state.name,
        parameters=msgspec.structs.replace(request.parameters, manifest=None),
        made_at=now,
        expires_at=now + VALID_S,
        resource_version=str(about.get("resourceVersion", "")),
        revision=current_revision(state),
        risk=risk,
        confirm="" if risk == "low" else state.name,
        reason_required=risk == "high",
        reason=request.reason,
        by=request.by,
        diff=shown_diff(change),
        steps=list(forecast.steps),
        capacity=capacity,
        pair_ratio=forecast.pair_ratio,
        warm_tokens_lost=warm,
        seconds=forecast.seconds,
        start_seconds=dict(facts.starts),
        notes=[*change.notes, *forecast.notes, *_notes(request, facts, capacity)],
    )
    pods = {str(objects.metadata(pod).get("uid") or objects.metadata(pod).get("name")): objects.role_of(pod) for pod in state.pods}
    return StoredPlan(plan=plan, fingerprint=seen, before=change.before, after=change.after, patch=change.patch, pods=pods, undoes=undoes)


def risk_of(action: str, capacity: Sequence[RoleCapacity]) -> Risk:
    """high: delete, and whatever leaves a serving role without a pod or with less than half; low: nothing is taken away."""
    if action == "delete":
        return "high"
    if action in ("create", "pause"):
        return "low"
    serving = [one for one in capacity if one.before > 0]
    if any(2 * one.worst < one.before for one in serving):
        return "high"
    if action in ("set-image", "undo") or any(one.worst < one.before for one in serving):
        return "medium"
    return "low"


def fingerprint(action: str, state: ClusterState) -> Fingerprint:
    """What of the state the plan rests on."""
    if state.service is None:
        return Fingerprint(exact={})
    about = objects.metadata(state.service)
    exact: Manifest = {"metadata": {"uid": about.get("uid", ""), "labels": about.get("labels") or {}}, "spec": objects.spec(state.service)}
    exact["metadata"]["deleted"] = objects.deleting(state.service)
    return Fingerprint(exact=exact, ready={} if action in STOPPING else objects.ready_by_role(state.pods))


def moved(then: Fingerprint, now: Fingerprint) -> list[FieldChange]:
    """What makes a plan stale: every field that differs, and roles with fewer ready pods than the plan counted."""
    found = diff.changes(then.exact, now.exact)
    for role, count in sorted(then.ready.items()):
        left = now.ready.get(role, 0)
        if left < count:
            found.append(FieldChange(path=f"ready pods of role {role}", before=count, after=left))
    return found


def digest(seen: Fingerprint, after: Manifest | None) -> str:
    """Of the state and the change; the same for equal ones."""
    return hashlib.sha256(msgspec.json.encode((seen, after), order="sorted")).hexdigest()


def current_revision(state: ClusterState) -> str:
    """The revision that pods are meant to run now: the newest that the controller knows of."""
    status = (state.service or {}).get("status") or {}
    return str(status.get("updateRevision") or status.get("currentRevision") or "")


def shown_diff(change: Change) -> list[FieldChange]:
    """Fields that an operator wrote or changes; not those that the server keeps."""
    return diff.changes(_bare(change.before), _bare(change.after))


def _bare(manifest: Manifest | None) -> Manifest:
    if manifest is None:
        return {}
    about = {name: value for name, value in objects.metadata(manifest).items() if name not in _SERVER_FIELDS}
    return {**{name: value for name, value in manifest.items() if name != "status"}, "metadata": about}


def _notes(request: PlanRequest, facts: Facts, capacity: Sequence[RoleCapacity]) -> list[str]:
    empty = [one.role for one in capacity if one.before > 0 and one.worst == 0 and request.action != "delete"]
    notes = [f"{role} has no ready pod for a while: its requests wait or fail." for role in empty]
    if facts.cached is None and request.action not in ("create", "pause"):
        notes.append("The index does not answer: what leaving pods have cached is unknown.")
    if request.action == "delete":
        notes.append("A deletion cannot be undone.")
    return notes
