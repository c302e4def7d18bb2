"""What a Pod's status says of its programs. Pure: the former status and what the runtime knows give the new one.

Times without a change keep their old value, so that an equal status means that nothing happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from backend.localkube.kubelet.images import Images
from backend.localkube.kubelet.store import Json
from backend.localkube.runtime.model import RUNNING, Ended, Phase, Tracked

_UNKNOWN_CODE = 137
"""Exit code of a program whose end nobody saw, as the kubelet of Kubernetes reports it."""
_SIGNAL_CODES = 128


@dataclass(frozen=True)
class Waiting:
    """Why a container has no program."""

    reason: str
    message: str = ""


@dataclass(frozen=True)
class Seen:
    """What the node knows of a Pod."""

    ip: str
    host_ip: str
    scheme: str
    containers: Mapping[str, Tracked] = field(default_factory=dict)
    ended: Mapping[str, Ended] = field(default_factory=dict)
    """Last ends of containers that have no program any more."""
    waiting: Mapping[str, Waiting] = field(default_factory=dict)


def timestamp(seconds: float) -> str:
    """Seconds since 1970 as Kubernetes writes times: whole seconds, UTC."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod_status(pod: Json, seen: Seen, images: Images, now: float) -> Json:
    """The whole status of `pod`; fields that others own (conditions of controllers among them) stay."""
    before: Json = pod.get("status") or {}
    former = {status["name"]: status for status in before.get("containerStatuses") or []}
    containers = [_container(pod, container, former.get(container["name"]) or {}, seen, images) for container in pod["spec"]["containers"]]
    phase = _phase(containers)
    status = {
        **before,
        "phase": phase,
        "conditions": conditions(pod, _conditions(pod, containers, phase), now),
        "hostIP": seen.host_ip,
        "hostIPs": [{"ip": seen.host_ip}],
        "startTime": before.get("startTime") or timestamp(now),
        "containerStatuses": containers,
    }
    if seen.ip:
        status |= {"podIP": seen.ip, "podIPs": [{"ip": seen.ip}]}
    return status


def conditions(pod: Json, wanted: Mapping[str, tuple[bool, str, str]], now: float) -> list[Json]:
    """The Pod's conditions with those in `wanted` (status, reason, message) brought in; a transition time changes with its status."""
    former = {entry["type"]: entry for entry in (pod.get("status") or {}).get("conditions") or []}
    for kind, (true, reason, message) in wanted.items():
        status = "True" if true else "False"
        old = former.get(kind) or {}
        since = old.get("lastTransitionTime") if old.get("status") == status else None
        entry: Json = {"type": kind, "status": status, "lastProbeTime": None, "lastTransitionTime": since or timestamp(now)}
        former[kind] = entry | ({"reason": reason} if reason else {}) | ({"message": message} if message else {})
    return list(former.values())


def terminated(ended: Ended, container_id: str = "") -> Json:
    """An end as the state of a container."""
    code = _UNKNOWN_CODE if ended.code is None else ended.code if ended.code >= 0 else _SIGNAL_CODES - ended.code
    reason = "ContainerStatusUnknown" if ended.code is None else "Completed" if code == 0 else "Error"
    state: Json = {"exitCode": code, "reason": reason, "message": ended.reason}
    if ended.code is not None and ended.code < 0:
        state["signal"] = -ended.code
    if ended.started_at:
        state["startedAt"] = timestamp(ended.started_at)
    return state | {"finishedAt": timestamp(ended.ended_at)} | ({"containerID": container_id} if container_id else {})


def _container(pod: Json, container: Json, before: Json, seen: Seen, images: Images) -> Json:
    name = container["name"]
    tracked = seen.containers.get(name)
    ended = tracked.ended if tracked is not None and tracked.ended is not None else seen.ended.get(name)
    running = tracked is not None and tracked.phase in RUNNING
    reference = tracked.spec.image if tracked is not None else container["image"]
    image = images.find(reference)
    container_id = _id(seen.scheme, tracked.pid, tracked.started_at) if running and tracked else before.get("containerID", "")
    last = before.get("lastState") or {}
    if ended is not None:
        last = {"terminated": terminated(ended, _id(seen.scheme, ended.number, ended.started_at) if ended.number else "")}
    elif "running" in (before.get("state") or {}) and (not running or container_id != before.get("containerID")):
        last = {"terminated": _unseen_end(before)}
    if tracked is None:
        state = _without_program(before, last, seen.waiting.get(name))
        restarts = int(before.get("restartCount") or 0)
    else:
        state = _state(pod, name, tracked, seen.waiting.get(name))
        # The runtime counts an end, Kubernetes the start that follows it.
        restarts = tracked.restarts - (tracked.phase is Phase.BACKOFF and tracked.ended is not None)
    if "terminated" in state:
        last = before.get("lastState") or {}
    return {
        "name": name,
        "image": reference,
        "imageID": image.image_id if image is not None and container_id else before.get("imageID", ""),
        "containerID": container_id,
        "state": state,
        "lastState": last,
        "ready": tracked is not None and tracked.phase is Phase.READY,
        "started": running and tracked is not None and tracked.started,
        "restartCount": restarts,
    }


def _state(pod: Json, name: str, tracked: Tracked, waiting: Waiting | None) -> Json:
    if tracked.phase in RUNNING:
        return {"running": {"startedAt": timestamp(tracked.started_at)}}
    if tracked.phase is Phase.DONE and tracked.ended is not None:
        return {"terminated": terminated(tracked.ended)}
    if waiting is not None:
        return _waiting(waiting)
    if tracked.backoff_s:
        where = f"{pod['metadata']['name']}_{pod['metadata']['namespace']}({pod['metadata']['uid']})"
        wait = f"back-off {tracked.backoff_s:g}s restarting failed container={name} pod={where}"
        return _waiting(Waiting("CrashLoopBackOff", f"{wait}: {tracked.reason}"))
    return _waiting(Waiting("ContainerCreating"))


def _without_program(before: Json, last: Json, waiting: Waiting | None) -> Json:
    if waiting is not None:
        return _waiting(waiting)
    if last.get("terminated"):
        return {"terminated": last["terminated"]}
    state: Json = before.get("state") or {}
    return state if "terminated" in state else _waiting(Waiting("ContainerCreating"))


def _waiting(waiting: Waiting) -> Json:
    return {"waiting": {"reason": waiting.reason} | ({"message": waiting.message} if waiting.message else {})}


def _unseen_end(before: Json) -> Json:
    """The end of a program that was gone when the node came back."""
    state: Json = {"exitCode": _UNKNOWN_CODE, "reason": "ContainerStatusUnknown", "containerID": before.get("containerID", "")}
    return state | {
        "message": "The container could not be located when the node came back.",
        "startedAt": before["state"]["running"].get("startedAt"),
        "finishedAt": None,
    }


def _id(scheme: str, number: int, started_at: float) -> str:
    return f"{scheme}://{number}-{int(started_at)}"


def _phase(containers: list[Json]) -> str:
    states: list[Json] = [container["state"] for container in containers]
    if all("terminated" in state for state in states):
        return "Succeeded" if all(state["terminated"]["exitCode"] == 0 for state in states) else "Failed"
    begun = [bool(container["containerID"]) for container in containers]
    return "Running" if all(begun) else "Pending"


def _conditions(pod: Json, containers: list[Json], phase: str) -> dict[str, tuple[bool, str, str]]:
    unready = [container["name"] for container in containers if not container["ready"]]
    reason, message = "", ""
    if phase in ("Succeeded", "Failed"):
        reason = "PodCompleted" if phase == "Succeeded" else "PodFailed"
    elif unready:
        reason, message = "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]"
    complete = not unready
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or []]
    held = {entry["type"] for entry in (pod.get("status") or {}).get("conditions") or [] if entry["status"] == "True"}
    closed = [gate for gate in gates if gate not in held]
    ready: tuple[bool, str, str] = (complete and not closed, reason, message)
    if complete and closed:
        ready = (False, "ReadinessGatesNotReady", f"the status of pod readiness gate {', '.join(closed)} is not True")
    return {
        "PodReadyToStartContainers": (phase not in ("Succeeded", "Failed"), "", ""),
        "Initialized": (True, "", ""),
        "Ready": ready,
        "ContainersReady": (complete, reason, message),
        "PodScheduled": (True, "", ""),
    }
