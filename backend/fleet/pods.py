"""What a Kubernetes Pod says of itself, as the fleet's `Pod`. Pure. Labels and annotations are AIBrix's.

Pods without a model are nobody's engine; ranks above the first of a multi-node group and Ray's workers have no HTTP server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from backend.api.fleet import (
    BOOTSTRAP_PORT_ANNOTATION,
    HASHES_ANNOTATION,
    ROLE_LABEL,
    ROLE_REVISION_LABEL,
    ROLESET_LABEL,
    Pod,
    PodState,
)

MODEL, PORT, ENGINE = "model.aibrix.ai/name", "model.aibrix.ai/port", "model.aibrix.ai/engine"
GROUP_INDEX = "stormservice.orchestration.aibrix.ai/pod-group-index"
_KEPT_ANNOTATIONS = (BOOTSTRAP_PORT_ANNOTATION, HASHES_ANNOTATION)
_RAY_NODE = "ray.io/node-type"
_DEFAULT_PORT = 8000
_NO_CONDITION: Mapping[str, Any] = {}
_VERSION = re.compile(r"v?(\d[\w.+-]*)\Z")
_BACKOFF_REASONS = ("CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError")


def pod_of(obj: Mapping[str, Any]) -> Pod | None:
    """The engine that runs in `obj`, or None when it holds none that could be asked."""
    metadata, spec, status = obj.get("metadata") or {}, obj.get("spec") or {}, obj.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    model = labels.get(MODEL) or annotations.get(MODEL) or ""
    if not model or labels.get(GROUP_INDEX, "0") != "0" or labels.get(_RAY_NODE) == "worker":
        return None
    containers = status.get("containerStatuses") or []
    state, reason = _state(metadata, status, containers)
    restarts = max((int(one.get("restartCount") or 0) for one in containers), default=0)
    image = next((one.get("image") or "" for one in spec.get("containers") or []), "")
    return Pod(
        name=metadata.get("name", ""),
        namespace=metadata.get("namespace", "default"),
        ip=status.get("podIP") or "",
        port=_port(labels.get(PORT)),
        model=model,
        engine=labels.get(ENGINE) or annotations.get(ENGINE) or "vllm",
        version=version_of(image),
        role=labels.get(ROLE_LABEL, ""),
        roleset=labels.get(ROLESET_LABEL, ""),
        revision=labels.get(ROLE_REVISION_LABEL, ""),
        image=image,
        labels=dict(labels),
        annotations={key: annotations[key] for key in _KEPT_ANNOTATIONS if key in annotations},
        state=state,
        ready=state == "ready",
        reason=reason,
        started_at=_started_at(containers, restarts),
        restarts=restarts,
    )


def version_of(image: str) -> str:
    """The version in an image's tag.

    >>> version_of("vllm/vllm-openai:v0.10.2"), version_of("registry:5000/sglang:latest"), version_of("vllm@sha256:00")
    ('0.10.2', '', '')
    """
    _, colon, tag = image.rpartition("/")[2].partition("@")[0].partition(":")
    found = _VERSION.match(tag) if colon else None
    return found[1] if found else ""


def _state(metadata: Mapping[str, Any], status: Mapping[str, Any], containers: list[dict[str, Any]]) -> tuple[PodState, str]:
    """How it is, and why it is not ready. A pod that is being deleted takes no new request, whatever its probe says."""
    phase = status.get("phase", "")
    if metadata.get("deletionTimestamp"):
        return "stopping", "is being deleted"
    if phase in ("Failed", "Succeeded"):
        return "failed", status.get("message") or status.get("reason") or f"phase {phase}"
    ready, scheduled = _condition(status, "Ready"), _condition(status, "PodScheduled")
    if ready.get("status") == "True" and status.get("podIP"):
        return "ready", ""
    for one in containers:
        waiting = (one.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _BACKOFF_REASONS:
            return "backoff", ": ".join(filter(None, (waiting["reason"], waiting.get("message"))))
    unscheduled = "" if scheduled.get("status") == "True" else scheduled.get("message")
    was_ready = any(one.get("started") for one in containers)
    return ("unready" if was_ready else "starting"), ready.get("message") or unscheduled or ready.get("reason") or ""


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((one for one in status.get("conditions") or [] if one.get("type") == kind), _NO_CONDITION)


def _started_at(containers: list[dict[str, Any]], restarts: int) -> float:
    """Start of the newest container. Kubernetes counts in whole seconds: the restarts make each boot another number."""
    starts = [(one.get("state") or {}).get("running", {}).get("startedAt") for one in containers]
    return max((_seconds(start) for start in starts if start), default=0.0) + restarts / 1000


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0


def _port(text: str | None) -> int:
    return int(text) if text and text.isdigit() and 0 < int(text) < 65536 else _DEFAULT_PORT
