"""What `kubectl get` shows: objects as the rows of a Table. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backend.localkube.api.kinds import Column, Kind
from backend.localkube.api.metadata import seconds_of
from backend.localkube.api.selectors import json_path
from backend.localkube.api.status import Json

_DESCRIPTION = "The field that this column shows is {path}."


def table(kind: Kind, items: list[Json], metadata: Json, *, include: str, now: float, head: bool = True) -> Json:
    """`include` is what a row carries of its object: None, Metadata or Object."""
    definitions = [
        {
            "name": column.name,
            "type": column.type,
            "format": column.format,
            "description": column.description or _DESCRIPTION.format(path=column.path),
            "priority": column.priority,
        }
        for column in kind.columns
    ]
    rows = [{"cells": [_cell(column, item, kind, now) for column in kind.columns], **_object(item, include)} for item in items]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": definitions if head else None,
        "rows": rows,
    }


def partial(item: Json) -> Json:
    """The metadata of an object alone."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}


def _object(item: Json, include: str) -> Json:
    if include == "None":
        return {"object": None}
    return {"object": item if include == "Object" else partial(item)}


def _cell(column: Column, item: Json, kind: Kind, now: float) -> Any:
    if column.path.startswith("@"):
        return _COMPUTED[column.path[1:]](item, now)
    found = json_path(item, column.path)
    if column.age:
        return age(now - seconds_of(found[0])) if found else "<unknown>"
    if kind.custom:
        return found[0] if found else None
    if not found or found[0] in ([], "", None):
        return "<none>" if column.type == "string" else 0
    value = found[0]
    if isinstance(value, dict):
        return ",".join(f"{name}={text}" for name, text in sorted(value.items()))
    return ",".join(str(part) for part in value) if isinstance(value, list) else value


def age(seconds: float) -> str:
    """`90s`, `5m`, `3h20m`, `8d`: as kubectl shortens it."""
    total = max(0, int(seconds))
    for unit, size, smaller, below in (("d", 86400, "h", 8), ("h", 3600, "m", 8), ("m", 60, "s", 10)):
        if total >= (2 * size if unit != "h" else 3 * size) or (unit == "h" and total >= 3 * size):
            count, rest = divmod(total, size)
            part = rest // {"d": 3600, "h": 60, "m": 1}[unit]
            return f"{count}{unit}{part}{smaller}" if count < below and part else f"{count}{unit}"
    return f"{total}s"


def _containers(item: Json) -> list[Json]:
    found: list[Json] = item["spec"].get("containers") or item["spec"].get("template", {}).get("spec", {}).get("containers", [])
    return found


def _statuses(item: Json) -> list[Json]:
    found: list[Json] = item.get("status", {}).get("containerStatuses", [])
    return found


def _phase(item: Json, _: float) -> str:
    """The pod's phase, or what keeps it from it: the reason of a waiting or ended container."""
    status = item.get("status", {})
    if "deletionTimestamp" in item["metadata"]:
        return "Terminating"
    for container in _statuses(item):
        state = container.get("state", {})
        if reason := (state.get("waiting") or state.get("terminated") or {}).get("reason"):
            return str(reason)
    return str(status.get("reason") or status.get("phase") or "Unknown")


def _node(item: Json, _: float) -> str:
    conditions = {entry["type"]: entry["status"] for entry in item.get("status", {}).get("conditions", ())}
    text = "Ready" if conditions.get("Ready") == "True" else "NotReady"
    return f"{text},SchedulingDisabled" if item["spec"].get("unschedulable") else text


def _seen(item: Json, now: float) -> str:
    last = item.get("lastTimestamp") or item.get("eventTime") or item["metadata"]["creationTimestamp"]
    return age(now - seconds_of(last))


def _controller(item: Json, _: float) -> str:
    owners = item["metadata"].get("ownerReferences", ())
    return next((f"{owner['kind'].lower()}/{owner['name']}" for owner in owners if owner.get("controller")), "<none>")


def _selector(item: Json, _: float) -> str:
    return ",".join(f"{name}={text}" for name, text in sorted(item["spec"].get("selector", {}).get("matchLabels", {}).items()))


def _ports(item: Json, _: float) -> str:
    return ",".join(f"{port['port']}/{port.get('protocol', 'TCP')}" for port in item["spec"].get("ports", ())) or "<none>"


def _involved(item: Json, _: float) -> str:
    about = item.get("involvedObject", {})
    return f"{about.get('kind', '').lower()}/{about.get('name', '')}"


_COMPUTED: dict[str, Callable[[Json, float], Any]] = {
    "ready": lambda item, _: f"{sum(bool(entry.get('ready')) for entry in _statuses(item))}/{len(_containers(item))}",
    "phase": _phase,
    "restarts": lambda item, _: str(sum(entry.get("restartCount", 0) for entry in _statuses(item))),
    "ports": _ports,
    "node": _node,
    "data": lambda item, _: len(item.get("data") or {}) + len(item.get("binaryData") or {}),
    "seen": _seen,
    "involved": _involved,
    "controller": _controller,
    "replicas": lambda item, _: f"{item.get('status', {}).get('readyReplicas', 0)}/{item['spec'].get('replicas', 0)}",
    "containers": lambda item, _: ",".join(container["name"] for container in _containers(item)),
    "images": lambda item, _: ",".join(container["image"] for container in _containers(item)),
    "selector": _selector,
}
