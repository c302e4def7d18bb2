"""How far an operation is, from what the cluster shows: done, failed with its reason, or still on its way. Pure.

The controller's Ready is necessary and not sufficient: controllers have been seen to say Ready while old pods still ran. So the pods
themselves are counted, by the images that they run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backend.api.actions import FieldChange, Manifest, OperationState, PlanStep, Verb
from backend.control.actions import diff, objects
from backend.control.actions.model import ClusterState, OperationRecord

REVERTIBLE = ("scale", "set-image", "undo")


@dataclass(frozen=True)
class Limits:
    """Seconds without progress until an operation counts as failed: ordinarily, and when a pod says why it cannot start."""

    stall_s: float = 300.0
    trouble_s: float = 30.0


@dataclass(frozen=True)
class Judgement:
    state: OperationState
    steps_done: int
    message: str
    progress: int
    """Pods that came up or went away: more than before means that it moves."""
    gone: bool = False
    """There is nothing left that could be told anything."""


def judge(record: OperationRecord, state: ClusterState, now: float, limits: Limits) -> Judgement:
    """What `state` says about an operation whose change was sent."""
    action = record.operation.action
    plan = record.stored.plan
    if action == "delete":
        return _judge_delete(record, state, now, limits)
    if state.service is None or objects.deleting(state.service):
        message = f"{state.namespace}/{state.name} was deleted in the meantime."
        return Judgement("failed", record.operation.steps_done, message, record.best, gone=True)
    if action == "pause":
        return _ended(record, "done", "Paused.") if objects.spec(state.service).get("paused") else _waits(record, "Waits for the pause.", 0)
    aborting = record.operation.state == "aborting"
    if foreign := _foreign(record, state.service):
        fields = ", ".join(f"{one.path}: {one.before!r} > {one.after!r}" for one in foreign[:5])
        return _ended(record, "aborted" if aborting else "failed", f"Somebody else changed the service meanwhile: {fields}.")
    coming, going = _moves(record.stored.pods, state.pods)
    progress = sum(coming.values()) + sum(going.values())
    if settled(state):
        return _ended(record, "aborted" if aborting else "done", "Reverted to the spec before." if aborting else "Every pod is as wanted.")
    done = record.operation.steps_done if aborting else steps_done(plan.steps, coming, going)
    message = waiting_for(state)
    if aborting and record.was_paused and objects.spec(state.service).get("paused"):
        return _ended(record, "aborted", "Reverted to the spec before, which was paused.")
    if objects.spec(state.service).get("paused") and not aborting:
        return Judgement("paused", done, f"Paused. {message}", progress)
    if why := _stuck(record, state, progress, now, limits):
        return Judgement("failed", done, why, progress)
    return Judgement("aborting" if aborting else "running", done, message, progress)


def settled(state: ClusterState) -> bool:
    """The controller says Ready for the newest generation, and the pods agree: as many as wanted, ready, of the wanted images."""
    service = state.service
    if service is None or not objects.is_ready(service):
        return False
    status = service.get("status") or {}
    if int(status.get("observedGeneration") or 0) < objects.generation(service):
        return False
    by_role = {str(role.get("name")): role for role in objects.roles(service)}
    counts = dict.fromkeys(by_role, 0)
    for pod in state.pods:
        role = by_role.get(objects.role_of(pod))
        if role is None or not objects.is_live(pod) or not objects.is_ready(pod) or not objects.runs(pod, role):
            return False
        counts[str(role.get("name"))] += 1
    return counts == objects.pods_wanted(service)


def waiting_for(state: ClusterState) -> str:
    """One line: each role's updated and ready pods, and the first pod in trouble."""
    if state.service is None:
        return ""
    wanted = objects.pods_wanted(state.service)
    parts = []
    for role in objects.roles(state.service):
        name = str(role.get("name"))
        mine = [pod for pod in state.pods if objects.role_of(pod) == name]
        fit = sum(objects.is_live(pod) and objects.is_ready(pod) and objects.runs(pod, role) for pod in mine)
        leaving = sum(not objects.is_live(pod) for pod in mine)
        parts.append(f"{name} {fit}/{wanted[name]}{f', {leaving} leaving' if leaving else ''}")
    return "; ".join([", ".join(parts), *_troubles(state.pods)[:1]])


def steps_done(steps: Sequence[PlanStep], coming: Mapping[str, int], going: Mapping[str, int]) -> int:
    """Steps of the forecast whose pods have come and gone, counted from the start."""
    needed_in: dict[str, int] = {}
    needed_out: dict[str, int] = {}
    for at, step in enumerate(steps):
        for needed, moves in ((needed_in, step.pods_in), (needed_out, step.pods_out)):
            for role, count in moves.items():
                needed[role] = needed.get(role, 0) + count
        came = all(coming.get(role, 0) >= count for role, count in needed_in.items())
        if not came or any(going.get(role, 0) < count for role, count in needed_out.items()):
            return at
    return len(steps)


def verbs(record: OperationRecord) -> list[Verb]:
    """What may be asked of an operation now."""
    operation = record.operation
    if operation.action not in REVERTIBLE or not record.sent or record.gone:
        return []
    match operation.state:
        case "running":
            return ["pause", "abort"]
        case "paused":
            return ["resume", "abort"]
        case "failed":
            return ["abort", "undo"]
        case "done":
            return ["undo"]
        case _:
            return []


def _judge_delete(record: OperationRecord, state: ClusterState, now: float, limits: Limits) -> Judgement:
    _, going = _moves(record.stored.pods, state.pods)
    gone = sum(going.values())
    if state.service is None and not state.pods:
        return _ended(record, "done", "Everything is gone.")
    done = steps_done(record.stored.plan.steps, {}, going)
    if why := _stuck(record, state, gone, now, limits):
        return Judgement("failed", done, why, gone)
    return Judgement("running", done, f"{len(state.pods)} pods are still there.", gone)


def _ended(record: OperationRecord, state: OperationState, message: str) -> Judgement:
    done = record.operation.steps_total if state == "done" else record.operation.steps_done
    return Judgement(state, done, message, record.best)


def _waits(record: OperationRecord, message: str, progress: int) -> Judgement:
    return Judgement("running", record.operation.steps_done, message, progress)


def _foreign(record: OperationRecord, service: Manifest) -> list[FieldChange]:
    """Fields of the spec that are not as our change left them. A pause is no change: anybody may."""
    if record.spec is None:
        return []
    ours, theirs = ({name: value for name, value in one.items() if name != "paused"} for one in (record.spec, objects.spec(service)))
    return diff.changes(ours, theirs, "spec")


def _moves(before: Mapping[str, str], pods: Sequence[Manifest]) -> tuple[dict[str, int], dict[str, int]]:
    """Pods a role that came since the plan and are ready, and that left."""
    present: set[str] = set()
    coming: dict[str, int] = {}
    for pod in pods:
        uid = str(objects.metadata(pod).get("uid") or objects.metadata(pod).get("name"))
        present.add(uid)
        if uid not in before and objects.is_live(pod) and objects.is_ready(pod):
            coming[objects.role_of(pod)] = coming.get(objects.role_of(pod), 0) + 1
    going: dict[str, int] = {}
    for uid, role in before.items():
        if uid not in present:
            going[role] = going.get(role, 0) + 1
    return coming, going


def _stuck(record: OperationRecord, state: ClusterState, progress: int, now: float, limits: Limits) -> str:
    """Why the operation counts as failed; empty while it moves or may still."""
    if progress > record.best:
        return ""
    waited = now - record.progress_at
    troubles = _troubles(state.pods)
    if waited < (limits.trouble_s if troubles else limits.stall_s):
        return ""
    why = "; ".join(troubles[:3]) or _not_ready(state.pods) or controller_word(state.service)
    return f"No progress for {waited:.0f} s: {why}. The rollout stands within its budget; abort takes the change back."


def _troubles(pods: Sequence[Manifest]) -> list[str]:
    found = [(objects.metadata(pod).get("name", "?"), objects.trouble(pod)) for pod in pods if not objects.is_ready(pod)]
    return [f"pod {name}: {why}" for name, why in found if why]


def _not_ready(pods: Sequence[Manifest]) -> str:
    names = [str(objects.metadata(pod).get("name", "?")) for pod in pods if not objects.is_ready(pod)]
    return f"not ready: {', '.join(names[:3])}" if names else ""


def controller_word(service: Manifest | None) -> str:
    """What the controller itself says, for when no pod explains it."""
    for kind in ("ReplicaFailure", "Progressing"):
        if service is not None and (said := objects.condition(service, kind)) is not None:
            return f"the controller says {said.get('reason', kind)}{': ' + said['message'] if said.get('message') else ''}"
    return "the controller does not say why; does it run?"
