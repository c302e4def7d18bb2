"""A role with numbered slots: each slot keeps its number, and its pod a stable name."""

from __future__ import annotations

from .names import slot_pod_name
from .pods import Pod
from .roles import Moves, RoleState, Step


def _slots(state: RoleState) -> tuple[list[list[Pod]], list[Pod]]:
    """The active pods of each slot, and those without a valid slot."""
    slots: list[list[Pod]] = [[] for _ in range(state.budget.wanted)]
    outside = []
    for pod in state.active:
        if pod.slot is not None and 0 <= pod.slot < len(slots):
            slots[pod.slot].append(pod)
        else:
            outside.append(pod)
    return slots, outside


def _free_names(state: RoleState, role_set: str, slot: int) -> bool:
    """Whether the pod of this slot can be made: a leaving one may still hold its name."""
    name = slot_pod_name(role_set, state.spec.name, state.spec.template_hash, slot)
    return all(pod.name != name for pod in state.pods)


def scale(state: RoleState, role_set: str) -> Moves:
    """Fill empty slots, thin out double ones, let pods without a slot go."""
    slots, outside = _slots(state)
    moves = Moves(delete=[(pod, "it has ended") for pod in state.over])
    ready = state.ready
    for pod in sorted(outside, key=lambda pod: (pod.ready, -(pod.slot or 0))):
        if pod.ready and ready <= state.budget.min_ready:
            break
        ready -= pod.ready
        moves.delete.append((pod, "its slot is not wanted" if pod.slot is not None else "it has no slot"))
    room = state.room
    for slot, pods in enumerate(slots):
        if len(pods) > 1:
            for pod, reason in _thin_out(state, pods):
                if not pod.ready or ready > state.budget.min_ready:
                    ready -= pod.ready
                    moves.delete.append((pod, reason))
        elif not pods and room > 0 and _free_names(state, role_set, slot):
            room -= 1
            moves.create.append((slot, f"slot {slot} is empty"))
    return moves


def _thin_out(state: RoleState, pods: list[Pod]) -> list[tuple[Pod, str]]:
    """Of several pods in a slot keep an updated ready one; until there is one, keep the best old and the best new."""
    pods = sorted(pods, key=lambda pod: (pod.created, pod.name))
    good = next((pod for pod in pods if state.is_updated(pod) and pod.ready), None)
    if good is not None:
        return [(pod, "its successor is ready") for pod in pods if pod is not good]
    old = next((pod for pod in pods if not state.is_updated(pod) and pod.ready), None)
    new = next((pod for pod in pods if state.is_updated(pod)), None)
    return [(pod, "its slot is taken twice") for pod in pods if pod is not old and pod is not new]


def free_replacements(state: RoleState) -> Moves:
    """Slots whose only pod is of an older version and not ready."""
    slots, _ = _slots(state)
    alone = [pods[0] for pods in slots if len(pods) == 1]
    return Moves(delete=[(pod, "older version, not ready") for pod in alone if not state.is_updated(pod) and not pod.ready])


def rollout(state: RoleState, step: Step | None = None, *, role_set: str) -> Moves:
    """Replace slots of an older version in their order: in place while the budget allows a gap, else beside the old pod."""
    step = step or Step()
    slots, _ = _slots(state)
    serving = sum(any(pod.ready for pod in pods) for pods in slots)
    may_lose = min(serving - state.budget.min_ready, step.delete)
    may_create = min(state.budget.wanted + state.budget.surge - len(state.pods), step.create)
    moves = Moves()
    for slot, pods in enumerate(slots):
        if len(pods) != 1 or state.is_updated(pods[0]):
            continue
        if not pods[0].ready:
            moves.delete.append((pods[0], "older version, not ready"))
        elif may_lose > 0:
            may_lose -= 1
            moves.delete.append((pods[0], "older version"))
        elif may_create > 0 and _free_names(state, role_set, slot):
            may_create -= 1
            moves.create.append((slot, f"successor in slot {slot}"))
    return moves


def current_step(state: RoleState) -> tuple[bool, int]:
    """As for interchangeable pods, counted in slots."""
    slots, outside = _slots(state)
    per_step, wanted = state.budget.per_step, len(slots)
    not_ready = state.ready < len(state.active)
    done_slots = sum(len(pods) == 1 and pods[0].ready and state.is_updated(pods[0]) for pods in slots)
    touched, untouched = _touched(state, slots)
    done = not state.inactive and not not_ready and not outside and done_slots == wanted and state.ready == state.updated_ready
    step = int((done_slots - 1) / per_step) + 1  # truncates toward zero: none updated and one a step is step 0
    finished = not state.inactive and not not_ready and not outside and done_slots == per_step * step
    if finished or touched > per_step * step or untouched < wanted - per_step * step:
        step += 1
    return done, step


def _touched(state: RoleState, slots: list[list[Pod]]) -> tuple[int, int]:
    touched = sum(any(state.is_updated(pod) for pod in pods) for pods in slots)
    return touched, sum(bool(pods) for pods in slots) - touched


def step_caps(state: RoleState, step: int) -> Step | None:
    slots, _ = _slots(state)
    touched, untouched = _touched(state, slots)
    expected = min((state.budget.surge + state.budget.unavailable) * step, len(slots))
    return Step(expected - touched, untouched - len(slots) + expected)
