"""STATE/pods.json: the runtime's word to everybody else about which pods exist, and its own memory across a `kill -9`.

Owns writing it, and telling which of the processes that it names are still the ones it meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from backend.api.fleet import Pod
from backend.core import processes
from backend.core.files import write_atomic
from backend.fleet.source import POD_LABEL
from backend.localkube.runtime import steps
from backend.localkube.runtime.addresses import Address
from backend.localkube.runtime.commands import POD
from backend.localkube.runtime.model import Phase, PodSpec, Tracked

DIGEST_LABEL = "pod-template-hash"
"""Label that says what a process was started with; Kubernetes' own name for the same thing."""
MODEL_LABEL = "model.aibrix.ai/name"
ENGINE_LABEL = "model.aibrix.ai/engine"

_CLOCK_STEP_S = 1.5
"""Two readings of a process' start differ by a second when the machine's clock was set between them."""

_decoder = msgspec.json.Decoder(list[Pod])


def listed(pod: Tracked, address: Address) -> Pod:
    """A tracked pod as others see it."""
    spec = pod.spec
    labels = {MODEL_LABEL: spec.model, ENGINE_LABEL: spec.engine, **spec.labels, DIGEST_LABEL: spec.digest}
    if spec.pod:
        labels[POD_LABEL] = spec.pod
    return Pod(
        name=spec.name,
        ip=address.ip,
        port=address.http_port,
        model=spec.model,
        engine=spec.engine,
        version=spec.version,
        role=spec.role,
        roleset=spec.roleset,
        image=spec.image or (f"{spec.engine}:{spec.version}" if spec.version else spec.engine),
        labels=labels,
        state=steps.shown(pod.phase),
        ready=pod.phase is Phase.READY,
        reason=pod.reason,
        started_at=pod.started_at,
        restarts=pod.restarts,
        pid=pod.pid,
    )


def write(file: Path, pods: Iterable[Pod]) -> None:
    """Replace the file. Raises DiskFull or StateFolderError; the old content stands then."""
    write_atomic(file, msgspec.json.format(msgspec.json.encode(list(pods)), indent=1) + b"\n")


def read(file: Path) -> list[Pod]:
    """What an earlier runtime left; empty when there is nothing to be read."""
    try:
        return _decoder.decode(file.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return []


def still_runs(pod: Pod) -> bool:
    """Whether the process that `pod` names is still that process and not another one with its number."""
    if pod.pid <= 0 or abs(processes.started_at(pod.pid) - pod.started_at) > _CLOCK_STEP_S:
        return False
    environment = processes.environment(pod.pid)
    return not environment or environment.get(POD) == pod.name


def shares(pod: Pod) -> str:
    """Name under which its address is held."""
    return pod.labels.get(POD_LABEL, pod.name)


def former_spec(pod: Pod) -> PodSpec:
    """A spec for a process of which only the record is left: enough to end it properly."""
    return PodSpec(
        name=pod.name,
        engine=pod.engine,
        version=pod.version,
        model=pod.model,
        role=pod.role,
        roleset=pod.roleset,
        image=pod.image,
        pod=pod.labels.get(POD_LABEL, ""),
        port=pod.port,
    )


def strays(stack: str, known: set[int]) -> list[int]:
    """Pods of this stack that no record names: left by a runtime that was killed between starting and writing.

    A pod leads a session, so what it started itself (an engine's workers) belongs to it and is none.
    """
    return [pid for pid in processes.of_stack(stack) if processes.session_of(pid) not in known and POD in processes.environment(pid)]
