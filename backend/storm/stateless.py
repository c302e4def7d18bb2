"""A role whose pods are interchangeable."""

from __future__ import annotations

from .pods import Pod
from .roles import Moves, RoleState, Step


def scale(state: RoleState) -> Moves:
    """Bring the number of pods to the wanted one: ended pods go, missing ones come, surplus ones go while enough stay ready."""
    moves = Moves(delete=[(pod, "it has ended") for pod in state.over])
    surplus = len(state.active) - state.budget.wanted
    if surplus > 0:
        moves.delete += _surplus(state, surplus)
    for _ in range(min(-surplus, state.room)):
        moves.create.append((None, f"{len(state.active)} of {state.budget.wanted} pods stand"))
    return moves


def _surplus(state: RoleState, surplus: int) -> list[tuple[Pod, str]]:
    """Older version before newer, not ready before ready, newest first.

    A ready pod is let go only while more are ready than must be, so that a pod which a rollout has just added does not pay for it.
    """
    found: list[tuple[Pod, str]] = []
    ready = state.ready
    ordered = sorted(state.active, key=lambda pod: (pod.created, pod.name), reverse=True)
    for pod in sorted(ordered, key=lambda pod: (state.is_updated(pod), pod.ready)):
        if len(found) == surplus or (pod.ready and ready <= state.budget.min_ready):
            break
        ready -= pod.ready
        found.append((pod, f"{len(state.active)} pods stand, {state.budget.wanted} are wanted"))
    return found


def free_replacements(state: RoleState) -> Moves:
    """Pods of an older version that are not ready: nothing is lost with them, whatever the step of the rollout."""
    return Moves(delete=[(pod, "older version, not ready") for pod in _outdated(state) if not pod.ready])


def rollout(state: RoleState, step: Step | None = None) -> Moves:
    """Replace pods of an older version, within the budgets and the caps of `step`."""
    step = step or Step()
    budget = state.budget
    moves = Moves()
    may_create = min(state.room, budget.wanted - state.updated, step.create)
    for _ in range(may_create):
        moves.create.append((None, f"{state.outdated} pods of an older version are to be replaced"))
    may_lose = min(state.ready - budget.min_ready, step.delete)
    for pod in _outdated(state):
        if pod.ready:
            if may_lose <= 0:
                break
            may_lose -= 1
        moves.delete.append((pod, "older version" if pod.ready else "older version, not ready"))
    return moves


def _outdated(state: RoleState) -> list[Pod]:
    found = [pod for pod in state.active if not state.is_updated(pod)]
    found.sort(key=lambda pod: (pod.created, pod.name), reverse=True)
    found.sort(key=lambda pod: pod.ready)
    return found


def current_step(state: RoleState) -> tuple[bool, int]:
    """Whether an interleaved rollout has nothing more to do here, and at which step it stands."""
    wanted, per_step = state.budget.wanted, state.budget.per_step
    not_ready = state.ready < len(state.active)
    done = not state.inactive and not not_ready and state.ready == state.updated_ready and state.updated_ready >= wanted
    step = int((state.updated_ready - 1) / per_step) + 1  # truncates toward zero: none updated and one a step is step 0
    finished = not state.inactive and not not_ready and state.updated_ready == per_step * step
    if finished or state.updated > per_step * step or state.outdated < wanted - per_step * step:
        step += 1
    return done, step


def step_caps(state: RoleState, step: int) -> Step | None:
    """What the step allows, or None when it has been made."""
    wanted = state.budget.wanted
    expected = min((state.budget.surge + state.budget.unavailable) * step, wanted)
    if state.updated >= expected:
        return None
    return Step(expected - state.updated, state.outdated - wanted + expected)
