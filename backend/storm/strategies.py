"""In which order the roles of a RoleSet are upgraded: one after another, all at once, or step by step in turn.

Every pass first scales each role; a role that needed it is rolled in a later pass, since its counts have just changed.

Routers pair pods of one revision only. So a role keeps its last ready pod of the older version until every other role that is changing has
a ready pod of the newer: the older pair serves until there is a newer one. That needs a surge; a role that must give up its only pod before
the next one may come cannot wait for another.
"""

from __future__ import annotations

from . import stateful, stateless
from .model import INTERLEAVE, PARALLEL
from .roles import Moves, RoleState, Step

LAST = 1 << 31


def moves_of_roles(states: list[RoleState], strategy: str, role_set: str, *, paused: bool = False) -> list[tuple[RoleState, Moves]]:
    """What each role needs now. While `paused` pods are repaired and scaled, none is replaced for its version."""
    scaled = [(state, _scale(state, role_set)) for state in states]
    if paused:
        return _keeping_pairs(states, scaled)
    steady = [state for state, moves in scaled if not moves]
    if strategy == PARALLEL:
        rolled = [(state, _rollout(state, role_set)) for state in steady]
    elif strategy == INTERLEAVE:
        rolled = _interleave(states, steady, role_set)
    else:
        rolled = _sequence(states, steady, role_set)
    return _keeping_pairs(states, scaled + rolled)


def _keeping_pairs(states: list[RoleState], moves: list[tuple[RoleState, Moves]]) -> list[tuple[RoleState, Moves]]:
    """`moves` without the deletions that would leave no pair of one version."""
    for state, wanted in moves:
        if state.updated_ready < state.budget.wanted or _awaited(states, state) is None:
            continue
        going = [pod for pod, _ in wanted.delete if pod.ready and not state.is_updated(pod)]
        if going and len(going) >= state.ready - state.updated_ready:
            kept = going[0]
            wanted.delete = [(pod, reason) for pod, reason in wanted.delete if pod is not kept]
    return moves


def _awaited(states: list[RoleState], state: RoleState) -> RoleState | None:
    """Another role whose first ready pod of the newer version is on its way, or may come without anything going before."""
    for other in states:
        changing = other is not state and other.outdated > 0 and other.updated_ready == 0
        if changing and (other.updated > 0 or other.budget.surge > 0):
            return other
    return None


def _sequence(states: list[RoleState], steady: list[RoleState], role_set: str) -> list[tuple[RoleState, Moves]]:
    """By `upgradeOrder`, roles without one last; the next role waits until this one is complete."""
    rolled = []
    for state in sorted(states, key=lambda state: state.spec.upgrade_order or LAST):
        if state in steady:
            rolled.append((state, _rollout(state, role_set)))
        if not (state.complete or _only_kept(states, state)):
            break
    return rolled


def _only_kept(states: list[RoleState], state: RoleState) -> bool:
    """Nothing is missing here; what is left over is kept for another role (see `_keeping_pairs`)."""
    awaited = _awaited(states, state)
    return awaited is not None and not state.inactive and state.updated_ready >= state.budget.wanted and state.outdated <= 1


def _interleave(states: list[RoleState], steady: list[RoleState], role_set: str) -> list[tuple[RoleState, Moves]]:
    """Every role that is not done makes the lowest step that any of them stands at.

    Pods of an older version that are not ready are replaced in any step. Counting them into steps would wedge a rollout for ever: the step
    is computed from ready pods, and theirs never comes.
    """
    steps = {state.spec.name: _current_step(state) for state in states}
    lowest = min((step for done, step in steps.values() if not done), default=1)
    rolled = []
    for state in steady:
        done, step = steps[state.spec.name]
        free = _free_replacements(state)
        if free:
            rolled.append((state, free))
        elif not done and step <= lowest and (caps := _step_caps(state, lowest)) is not None:
            rolled.append((state, _rollout(state, role_set, caps)))
    return rolled


def _scale(state: RoleState, role_set: str) -> Moves:
    return stateful.scale(state, role_set) if state.spec.stateful else stateless.scale(state)


def _rollout(state: RoleState, role_set: str, caps: Step | None = None) -> Moves:
    if state.updated == len(state.active):
        return Moves()
    return stateful.rollout(state, caps, role_set=role_set) if state.spec.stateful else stateless.rollout(state, caps)


def _free_replacements(state: RoleState) -> Moves:
    return stateful.free_replacements(state) if state.spec.stateful else stateless.free_replacements(state)


def _current_step(state: RoleState) -> tuple[bool, int]:
    return stateful.current_step(state) if state.spec.stateful else stateless.current_step(state)


def _step_caps(state: RoleState, step: int) -> Step | None:
    return stateful.step_caps(state, step) if state.spec.stateful else stateless.step_caps(state, step)
