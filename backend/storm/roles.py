"""One role of one RoleSet: how its pods stand, and what is to be moved."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .budgets import Budget
from .model import RoleSpec
from .pods import Pod, trouble

NO_CAP = 1 << 30


class Moves(msgspec.Struct):
    """Pods to create (by slot; None for interchangeable ones) and to delete, each with its reason."""

    create: list[tuple[int | None, str]] = msgspec.field(default_factory=list)
    delete: list[tuple[Pod, str]] = msgspec.field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.create or self.delete)


class Step(msgspec.Struct, frozen=True):
    """The caps of one step of an interleaved rollout: how many may be created and deleted beside the budgets."""

    create: int = NO_CAP
    delete: int = NO_CAP


class RoleState(msgspec.Struct):
    """A role's pods, counted once a pass."""

    spec: RoleSpec
    pods: list[Pod]
    active: list[Pod]
    over: list[Pod]
    terminating: int
    ready: int
    updated: int
    updated_ready: int

    @property
    def budget(self) -> Budget:
        return self.spec.budget

    @property
    def inactive(self) -> bool:
        """Something is leaving or has ended."""
        return len(self.active) < len(self.pods)

    @property
    def outdated(self) -> int:
        return len(self.active) - self.updated

    @property
    def available(self) -> bool:
        """As many pods are ready as are wanted, of whichever version."""
        return self.ready >= self.budget.wanted

    def is_updated(self, pod: Pod) -> bool:
        return pod.template_hash == self.spec.template_hash

    @property
    def complete(self) -> bool:
        """Exactly the wanted pods stand, each updated and ready, and for a stateful role one in each slot."""
        wanted = self.budget.wanted
        if len(self.pods) != wanted or self.updated_ready != wanted:
            return False
        return not self.spec.stateful or {pod.slot for pod in self.active} == set(range(wanted))

    @property
    def room(self) -> int:
        """How many more pods may exist; terminating ones still hold their place."""
        return self.budget.wanted + self.budget.surge - len(self.active) - self.terminating


def count_roles(specs: Iterable[RoleSpec], pods: Iterable[Pod]) -> tuple[list[RoleState], list[Pod]]:
    """The state of each role in declared order, and the pods whose role is not (or no longer) in the list."""
    states = [RoleState(spec, [], [], [], 0, 0, 0, 0) for spec in specs]
    by_name = {state.spec.name: state for state in states}
    strangers = []
    for pod in pods:
        state = by_name.get(pod.role)
        if state is None:
            strangers.append(pod)
        else:
            _count(state, pod)
    return states, strangers


def _count(state: RoleState, pod: Pod) -> None:
    state.pods.append(pod)
    if pod.terminating:
        state.terminating += 1
    elif pod.over:
        state.over.append(pod)
    else:
        state.active.append(pod)
        state.ready += pod.ready
        if pod.template_hash == state.spec.template_hash:
            state.updated += 1
            state.updated_ready += pod.ready


def waits_for(state: RoleState, role_set: str) -> str:
    """One sentence on what holds a role that is not complete."""
    wanted = state.budget.wanted
    counts = f"{role_set} {state.spec.name}: {state.updated_ready} of {wanted} pods updated and ready"
    blocked = sorted((pod for pod in state.active if not pod.ready), key=lambda pod: pod.name)
    if blocked:
        return f"{counts}; waiting for {blocked[0].name} ({trouble(blocked[0])})" + (f" and {len(blocked) - 1} more" if blocked[1:] else "")
    if state.terminating:
        return f"{counts}; waiting for {state.terminating} to end"
    if state.ready > wanted or state.outdated:
        return f"{counts}; {state.outdated} of an older version left"
    return counts
