"""The whole rollout before it begins: the live planner run forward in virtual time.

Nothing here decides. Every step is what `plan()` returns for the cluster as it would stand then; only how long pods take to start and to
end is assumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from . import names
from .actions import Action, Create, Delete, Object, Plan, Problem
from .planner import plan
from .pods import read_pod
from .virtual import VirtualCluster

COALESCE_S = 0.05
STEP_LIMIT = 20_000
PREFILL, DECODE = "prefill", "decode"

Outcome = Literal["complete", "stuck", "refused", "endless"]


class Assumptions(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from creation to ready and from deletion to gone; `start_s_by_role` and `end_s_by_role` where roles differ."""

    start_seconds: float = 30.0
    end_seconds: float = 10.0
    start_s_by_role: Mapping[str, float] = {}
    end_s_by_role: Mapping[str, float] = {}

    def start_s(self, pod: Object) -> float | None:
        return self.start_s_by_role.get(_role(pod), self.start_seconds)

    def end_s(self, pod: Object) -> float:
        return self.end_s_by_role.get(_role(pod), self.end_seconds)


class PodMove(msgspec.Struct, frozen=True):
    """A pod that comes (its name as generated for the preview) or goes."""

    name: str
    role: str
    role_set: str
    reason: str


class PreviewStep(msgspec.Struct, frozen=True, kw_only=True):
    """What is done at one moment, and how many pods of each role are ready right after it."""

    at_s: float
    pods_in: tuple[PodMove, ...] = ()
    pods_out: tuple[PodMove, ...] = ()
    role_sets_in: tuple[str, ...] = ()
    role_sets_out: tuple[str, ...] = ()
    ready: Mapping[str, int] = {}
    pods: Mapping[str, int] = {}
    prefill_per_decode: float | None = None


class Capacity(msgspec.Struct, frozen=True):
    """Of one role: ready pods before, the fewest on the way, at the end; and the most pods that stand at once, leaving ones included."""

    before: int
    worst: int
    after: int
    peak: int


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout foretold. `outcome` stuck: with these assumptions it never ends, `waiting` says why; refused: see `problems`."""

    steps: tuple[PreviewStep, ...]
    capacity: Mapping[str, Capacity]
    total_s: float
    outcome: Outcome
    lowest_prefill_per_decode: float | None = None
    highest_prefill_per_decode: float | None = None
    extra_pods_at_peak: int = 0
    waiting: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def preview(
    service: Object,
    rolesets: Iterable[Object],
    pods: Iterable[Object],
    revisions: Iterable[Object],
    now: float,
    *,
    assumptions: Assumptions | None = None,
) -> Preview:
    """What would happen if `service` stood in the cluster as given, from `now` until nothing moves any more."""
    world = VirtualCluster(assumptions or Assumptions(), now)
    namespace = service["metadata"].get("namespace", "")
    for resource, items in (
        (names.STORM_SERVICES, [service]),
        (names.ROLE_SETS, rolesets),
        (names.PODS, pods),
        (names.CONTROLLER_REVISIONS, revisions),
    ):
        world.adopt(resource, [item for item in items if item["metadata"].get("namespace", "") == namespace])
    return _Run(world, service["metadata"]["name"], now).run()


class _Run:
    """One run of the world, and what is noted on the way."""

    def __init__(self, world: VirtualCluster, service: str, now: float) -> None:
        self.world, self.service, self.began = world, service, now
        self.steps: list[PreviewStep] = []
        self.capacity: dict[str, Capacity] = {}
        self.ratios: list[float] = []
        self.peak = 0
        self.ready, self.total = self._counts()
        self.first = sum(self.total.values())
        self._note()

    def run(self) -> Preview:
        for _ in range(STEP_LIMIT):
            result = pass_once(self.world, self.service)
            if result is None:
                return self._finish("complete", Plan())
            if result.problems:
                return self._finish("refused", result)
            moved = bool(result.actions)
            self.ready, self.total = self._counts()
            self._note()
            if moved:
                self._add_step(result.actions)
                continue
            due = self.world.next_change()
            if due is None:
                return self._finish("complete" if result.next_check is None else "stuck", result)
            self.world.advance(due + COALESCE_S)
        return self._finish("endless", Plan())

    def _counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Ready pods and all pods by role."""
        ready: dict[str, int] = {}
        total: dict[str, int] = {}
        for item in self.world.list(names.PODS):
            pod = read_pod(item)
            ready[pod.role] = ready.get(pod.role, 0) + pod.ready
            total[pod.role] = total.get(pod.role, 0) + (not pod.over)
        return ready, total

    def _note(self) -> None:
        for role, total in self.total.items():
            ready = self.ready[role]
            known = self.capacity.get(role, Capacity(ready if not self.steps else 0, ready if not self.steps else 0, ready, total))
            self.capacity[role] = Capacity(known.before, min(known.worst, ready), ready, max(known.peak, total))
        for role, known in self.capacity.items():
            if role not in self.total:
                self.capacity[role] = Capacity(known.before, 0, 0, known.peak)
        self.peak = max(self.peak, sum(self.total.values()))
        if (ratio := self._ratio()) is not None:
            self.ratios.append(ratio)

    def _ratio(self) -> float | None:
        decode = self.ready.get(DECODE, 0)
        return self.ready[PREFILL] / decode if decode and PREFILL in self.ready else None

    def _add_step(self, actions: tuple[Action, ...]) -> None:
        pods_in, pods_out, sets_in, sets_out = [], [], [], []
        for action in actions:
            if isinstance(action, Create) and action.resource == names.PODS:
                labels = action.object["metadata"]["labels"]
                pods_in.append(PodMove(action.name, labels[names.ROLE_LABEL], labels[names.ROLE_SET_LABEL], action.reason))
            elif isinstance(action, Delete) and action.resource == names.PODS:
                labels = (self.world.objects[names.PODS].get(action.name) or {"metadata": {}})["metadata"].get("labels") or {}
                pods_out.append(PodMove(action.name, labels.get(names.ROLE_LABEL, ""), labels.get(names.ROLE_SET_LABEL, ""), action.reason))
            elif action.resource == names.ROLE_SETS and isinstance(action, Create):
                sets_in.append(action.name)
            elif action.resource == names.ROLE_SETS and isinstance(action, Delete):
                sets_out.append(action.name)
        if not (pods_in or pods_out or sets_in or sets_out):
            return
        step = PreviewStep(
            at_s=round(self.world.now - self.began, 3),
            pods_in=tuple(pods_in),
            pods_out=tuple(pods_out),
            role_sets_in=tuple(sets_in),
            role_sets_out=tuple(sets_out),
            ready=dict(self.ready),
            pods=dict(self.total),
            prefill_per_decode=self._ratio(),
        )
        self.steps.append(step)

    def _finish(self, outcome: Outcome, last: Plan) -> Preview:
        return Preview(
            steps=tuple(self.steps),
            capacity=self.capacity,
            total_s=round(self.world.now - self.began, 3),
            outcome=outcome,
            lowest_prefill_per_decode=min(self.ratios, default=None),
            highest_prefill_per_decode=max(self.ratios, default=None),
            extra_pods_at_peak=self.peak - self.first,
            waiting=last.waiting,
            problems=last.problems,
        )


def pass_once(world: VirtualCluster, service: str) -> Plan | None:
    """One pass of the controller over the virtual cluster; None when the StormService is gone."""
    found = world.objects[names.STORM_SERVICES].get(service)
    if found is None:
        return None
    result = plan(
        found,
        world.list(names.ROLE_SETS),
        world.list(names.PODS),
        world.list(names.CONTROLLER_REVISIONS),
        world.now,
        observed=world.observed(service),
    )
    for action in result.actions:
        world.perform(action)
    world.set_status(names.STORM_SERVICES, service, result.status)
    for name, status in result.role_set_statuses.items():
        world.set_status(names.ROLE_SETS, name, status)
    return result


def _role(pod: Object) -> str:
    return str((pod["metadata"].get("labels") or {}).get(names.ROLE_LABEL, ""))
