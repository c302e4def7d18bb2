"""What the node does about a Pod: `plan(pod, seen, images, context, now)`. Pure; `service` carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from backend.localkube.kubelet import template
from backend.localkube.kubelet.images import Images
from backend.localkube.kubelet.status import Seen, Waiting, pod_status
from backend.localkube.kubelet.store import Json
from backend.localkube.runtime.model import Goal, Phase, PodSpec, Tracked

PULL_S = 1.0
"""How long a failed pull is shown as such before it is shown as waiting for the next try."""
_FAILED_PULL, _WAITS_FOR_PULL = "ErrImagePull", "ImagePullBackOff"
_UNRESOLVED = "CreateContainerConfigError"
_SLOW_S = 10.0
"""A start that takes longer than this is told of, with what its probe says; what could not be resolved is tried again after it."""
FINISHED = ("Succeeded", "Failed")
Level = Literal["Normal", "Warning"]


@dataclass(frozen=True)
class Run:
    """Keep a program running, like this."""

    spec: PodSpec
    restarts: int = 0


@dataclass(frozen=True)
class Stop:
    """End a program for good."""

    name: str
    grace_s: float | None = None


@dataclass(frozen=True)
class Happening:
    """Something that people should hear of."""

    level: Level
    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """Everything that follows from a Pod's spec and what is known of its programs."""

    run: tuple[Run, ...] = ()
    stop: tuple[Stop, ...] = ()
    status: Json | None = None
    """None: it stays as it is, or is written a moment later, when what is run has begun."""
    happenings: tuple[Happening, ...] = ()
    finished: bool = False
    """The Pod is being deleted and nothing of it is left."""
    failing: tuple[str, ...] = ()
    """Containers whose image cannot be pulled."""
    look_again_s: float | None = None


def plan(pod: Json, seen: Seen, images: Images, context: template.Context, failed: Mapping[str, float], now: float) -> Plan:
    """`failed`: since when each container's image cannot be pulled, as far as that is known. Times are seconds since 1970."""
    if pod["metadata"].get("deletionTimestamp"):
        return _leaving(pod, seen, images, now)
    if (pod.get("status") or {}).get("phase") in FINISHED:
        return Plan(stop=tuple(Stop(template.container_key(pod, name)) for name in seen.containers))
    run: list[Run] = []
    stop: list[Stop] = []
    happenings: list[Happening] = []
    waiting: dict[str, Waiting] = {}
    for container in pod["spec"]["containers"]:
        name, tracked = container["name"], seen.containers.get(container["name"])
        if tracked is not None and tracked.goal is Goal.RUN and container["image"] == (tracked.next_spec or tracked.spec).image:
            continue
        decided = _program(pod, container, images, context, now - failed.get(name, now))
        if isinstance(decided, Waiting):
            waiting[name] = decided
            if tracked is not None and tracked.goal is Goal.RUN:
                stop.append(Stop(template.container_key(pod, name)))
                happenings.append(_changed(name))
            continue
        run.append(Run(decided, _restarts(pod, name)))
        happenings.append(Happening("Normal", "Pulled", f'Container image "{container["image"]}" already present on machine'))
        if tracked is not None:
            happenings.append(_changed(name))
    if run:
        return Plan(tuple(run), tuple(stop), happenings=(*_accepted(pod), *happenings))
    status = pod_status(pod, replace(seen, waiting=waiting), images, now)
    return Plan(
        stop=tuple(stop),
        status=_if_new(pod, status),
        happenings=(*happenings, *(_accepted(pod) if waiting else ()), *_between(pod, seen, status, now)),
        failing=tuple(name for name, wait in waiting.items() if wait.reason in (_FAILED_PULL, _WAITS_FOR_PULL)),
        look_again_s=_look_again_s(waiting, seen, now),
    )


def _look_again_s(waiting: Mapping[str, Waiting], seen: Seen, now: float) -> float | None:
    """Seconds until something is to be said that no event of a program will bring."""
    if any(wait.reason == _FAILED_PULL for wait in waiting.values()):
        return PULL_S
    if any(wait.reason == _UNRESOLVED for wait in waiting.values()):
        return _SLOW_S
    starting = [now - pod.started_at for pod in seen.containers.values() if pod.phase is Phase.STARTING]
    return min((_SLOW_S - age for age in starting if age < _SLOW_S), default=None)


def _program(pod: Json, container: Json, images: Images, context: template.Context, failed_for_s: float) -> PodSpec | Waiting:
    reference = container["image"]
    image = images.find(reference)
    if image is None:
        if failed_for_s >= PULL_S:
            return Waiting(_WAITS_FOR_PULL, f'Back-off pulling image "{reference}"')
        return Waiting(_FAILED_PULL, f'failed to pull image "{reference}": no rule of the image table stands for it')
    try:
        return template.spec(pod, container, image, context)
    except template.Unresolved as error:
        return Waiting(_UNRESOLVED, error.message)


def _restarts(pod: Json, container: str) -> int:
    """How often a container was restarted, when one more program follows those that its status knows."""
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        if status["name"] == container:
            return int(status.get("restartCount") or 0) + bool(status.get("containerID"))
    return 0


def _leaving(pod: Json, seen: Seen, images: Images, now: float) -> Plan:
    """A Pod that is being deleted: its programs end, then it may go."""
    metadata = pod["metadata"]
    grace_s = metadata.get("deletionGracePeriodSeconds")
    held = bool(metadata.get("finalizers"))
    status = _if_new(pod, pod_status(pod, seen, images, now)) if seen.ip and (seen.containers or held) else None
    if not seen.containers:
        return Plan(status=status, finished=True)
    grace_s = template.DEFAULT_GRACE_S if grace_s is None else float(grace_s)
    stop = tuple(Stop(template.container_key(pod, name), grace_s) for name in seen.containers)
    killing = [
        Happening("Normal", "Killing", f"Stopping container {name}")
        for name, tracked in seen.containers.items()
        if tracked.goal is Goal.RUN and tracked.pid
    ]
    return Plan(stop=stop, status=status, happenings=tuple(killing))


def _if_new(pod: Json, status: Json) -> Json | None:
    return status if status != pod.get("status") else None


def _changed(container: str) -> Happening:
    return Happening("Normal", "Killing", f"Container {container} definition changed, will be restarted")


def _accepted(pod: Json) -> list[Happening]:
    """Said once, with the first status: what this node does not do."""
    if (pod.get("status") or {}).get("containerStatuses"):
        return []
    notes = [note for container in pod["spec"]["containers"] for note in template.unsupported(container)]
    if pod["spec"].get("initContainers"):
        notes.append("Init containers are not run here: simulators need no preparation.")
    return [Happening("Warning", "Unsupported", note) for note in notes]


def _between(pod: Json, seen: Seen, status: Json, now: float) -> list[Happening]:
    """What happened to containers between the former status and this one."""
    former = {entry["name"]: entry for entry in (pod.get("status") or {}).get("containerStatuses") or []}
    said: list[Happening] = []
    for entry in status["containerStatuses"]:
        name, before = entry["name"], former.get(entry["name"]) or {}
        tracked = seen.containers.get(name)
        if "running" in entry["state"] and entry["containerID"] != before.get("containerID"):
            said += [
                Happening("Normal", "Created", f"Created container {name}"),
                Happening("Normal", "Started", f"Started container {name}"),
            ]
        waiting = entry["state"].get("waiting") or {}
        if waiting and waiting.get("reason") != ((before.get("state") or {}).get("waiting") or {}).get("reason"):
            said += _waits(name, waiting.get("reason", ""), waiting.get("message", ""))
        if tracked is not None:
            said += _unhealthy(name, tracked, before, now)
    return said


def _waits(container: str, reason: str, message: str) -> list[Happening]:
    match reason:
        case _ if reason == _FAILED_PULL:
            return [Happening("Warning", "Failed", message), Happening("Warning", "Failed", f"Error: {reason}")]
        case _ if reason == _WAITS_FOR_PULL:
            return [Happening("Normal", "BackOff", message), Happening("Warning", "Failed", f"Error: {reason}")]
        case _ if reason == _UNRESOLVED:
            return [Happening("Warning", "Failed", f"Error: {message}")]
        case "CrashLoopBackOff":
            return [Happening("Warning", "BackOff", f"Back-off restarting failed container {container}: {message}")]
    return []


def _unhealthy(container: str, tracked: Tracked, before: Json, now: float) -> list[Happening]:
    slow = tracked.phase is Phase.STARTING and tracked.reason and now - tracked.started_at >= _SLOW_S
    if slow or (tracked.phase is Phase.UNREADY and before.get("ready")):
        return [Happening("Warning", "Unhealthy", f"Readiness probe failed: {tracked.reason}")]
    if tracked.phase is Phase.ENDING and not tracked.planned and "running" in (before.get("state") or {}) and tracked.reason:
        return [Happening("Warning", "Unhealthy", f"Container {container} {tracked.reason}; it will be restarted")]
    return []
