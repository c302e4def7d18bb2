"""The live planner run forward in virtual time, in the words of a plan. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from backend.api.actions import Manifest, PairRatio, PlanStep, RoleCapacity
from backend.control.actions import objects
from backend.control.actions.model import ClusterState, Forecast
from backend.storm.preview import DECODE, PREFILL, Assumptions, PodMove, Preview, PreviewStep, preview

ENDING_S = 5.0
"""Seconds from a pod's deletion to its end: unobserved, so what an engine needs to finish the requests of a quiet moment."""


def forecast(state: ClusterState, after: Manifest | None, starts: Mapping[str, float], now: float) -> Forecast:
    """What would happen if the service became `after` (None: were deleted)."""
    service = _to_be(state, after, now)
    assumed = Assumptions(start_s_by_role=starts, end_seconds=ENDING_S)
    if starts:
        assumed = Assumptions(start_seconds=median(starts.values()), start_s_by_role=starts, end_seconds=ENDING_S)
    told = preview(service, state.rolesets, state.pods, state.revisions, now, assumptions=assumed)
    today = {objects.metadata(pod).get("name") for pod in state.pods}
    leaving = frozenset(move.name for step in told.steps for move in step.pods_out if move.name in today)
    return Forecast(
        steps=tuple(_step(step) for step in told.steps if step.pods_in or step.pods_out),
        leaving=leaving,
        capacity=tuple(RoleCapacity(role=role, before=one.before, worst=one.worst, after=one.after) for role, one in told.capacity.items()),
        pair_ratio=_ratio(told),
        seconds=told.total_s if told.outcome == "complete" else None,
        notes=tuple(_notes(told, starts, assumed)),
    )


def _to_be(state: ClusterState, after: Manifest | None, now: float) -> Manifest:
    """The object as the controller would meet it."""
    current = state.service or {}
    about = objects.metadata(current)
    if after is None:
        stamp = objects.timestamp(now)
        return {**current, "metadata": {**about, "deletionTimestamp": stamp}}
    uid = about.get("uid") or "to-be"
    metadata = {**objects.metadata(after), "uid": uid, "generation": objects.generation(current) + 1}
    return {**after, "metadata": metadata, **({"status": current["status"]} if "status" in current else {})}


def _step(step: PreviewStep) -> PlanStep:
    reasons = dict.fromkeys(move.reason for move in (*step.pods_out, *step.pods_in))
    return PlanStep(
        at_s=step.at_s,
        pods_in=_by_role(step.pods_in),
        pods_out=_by_role(step.pods_out),
        ready=dict(step.ready),
        reason="; ".join(reasons),
    )


def _by_role(moves: Sequence[PodMove]) -> dict[str, int]:
    return dict(Counter(move.role for move in moves))


def _ratio(told: Preview) -> PairRatio | None:
    prefill, decode = told.capacity.get(PREFILL), told.capacity.get(DECODE)
    if prefill is None or decode is None:
        return None
    return PairRatio(
        before=prefill.before / decode.before if decode.before else None,
        lowest=told.lowest_prefill_per_decode,
        highest=told.highest_prefill_per_decode,
        after=prefill.after / decode.after if decode.after else None,
    )


def _notes(told: Preview, starts: Mapping[str, float], assumed: Assumptions) -> list[str]:
    notes = []
    if told.outcome != "complete":
        why = "; ".join([*told.waiting, *(f"{problem.path}: {problem.message}" for problem in told.problems)])
        notes.append(f"The forecast does not come to an end ({told.outcome}): {why or 'the planner does not say why'}.")
    if not starts and told.steps:
        notes.append(f"No start was observed yet: {assumed.start_seconds:.0f} s a pod are assumed.")
    if told.extra_pods_at_peak > 0:
        notes.append(f"{told.extra_pods_at_peak} pods more than now stand at the peak.")
    return notes
