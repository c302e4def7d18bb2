"""Looks at a stack from outside: is there one, where, what does it cost. Changes nothing."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from backend.api.endpoints import Endpoints
from backend.api.fleet import Pod
from backend.core import processes
from backend.core.settings import PORT_BASE
from backend.fleet.source import POD_LABEL
from backend.launch import lock
from backend.launch.layout import Layout
from backend.launch.model import ProcessStatus, StackStatus
from backend.launch.options import DEFAULT_STATE


def find(state: Path | str = DEFAULT_STATE) -> Endpoints | None:
    """Where the parts of the running stack at `state` are; None when there is none, or it is not ready yet."""
    layout = _layout(state)
    try:
        endpoints = msgspec.json.decode(layout.endpoints.read_bytes(), type=Endpoints)
    except (OSError, msgspec.MsgspecError):
        return None
    return endpoints if lock.holder(layout.lock) == endpoints.pid and processes.alive(endpoints.pid) else None


def status(state: Path | str = DEFAULT_STATE, *, sample_s: float = 0.3) -> StackStatus | None:
    """Every process of the stack at `state`, with memory and processor time measured over `sample_s` (blocks that long).

    None when no stack runs there.
    """
    layout = _layout(state)
    pid = lock.holder(layout.lock)
    if not pid:
        return None
    table = [_up(pid, layout), *_parts(layout), *_pods(layout)]
    leaders = [row.pid for row in table if row.pid]
    before, began = processes.session_usage(leaders), time.monotonic()
    if sample_s > 0:
        time.sleep(sample_s)
    after, passed_s = processes.session_usage(leaders), max(time.monotonic() - began, 1e-3)
    for row in table:
        if row.pid and not after[row.pid].rss_bytes:
            row.state = "gone"
        elif row.pid:
            row.rss_bytes, row.cpu_s = after[row.pid].rss_bytes, round(after[row.pid].cpu_s, 2)
            row.cpu_percent = round(100 * (after[row.pid].cpu_s - before[row.pid].cpu_s) / passed_s, 1)
    endpoints = find(state)
    return StackStatus(
        state=str(layout.state),
        ready=endpoints is not None and all(row.state == "ready" for row in table),
        pid=pid,
        uptime_s=round(time.time() - processes.started_at(pid), 1),
        endpoints=endpoints,
        processes=table,
        rss_bytes=sum(row.rss_bytes for row in table),
        cpu_percent=round(sum(row.cpu_percent for row in table), 1),
    )


def _layout(state: Path | str) -> Layout:
    return Layout(Path(state).expanduser().resolve(), PORT_BASE)


def _up(pid: int, layout: Layout) -> ProcessStatus:
    return ProcessStatus(name="up", pid=pid, state="ready", started_at=processes.started_at(pid), log=str(layout.log("up")))


def _parts(layout: Layout) -> list[ProcessStatus]:
    try:
        return msgspec.json.decode(layout.table.read_bytes(), type=list[ProcessStatus])
    except (OSError, msgspec.MsgspecError):
        return []


def _pods(layout: Layout) -> list[ProcessStatus]:
    try:
        pods = msgspec.json.decode(layout.pods.read_bytes(), type=list[Pod])
    except (OSError, msgspec.MsgspecError):
        return []
    return [
        ProcessStatus(
            name=_shown(pod),
            kind="pod",
            pid=pod.pid,
            state=pod.state,
            restarts=pod.restarts,
            started_at=pod.started_at,
            url=f"http://{pod.address}",
            log=str(layout.state / "pods" / f"{pod.name}.log"),
            reason=pod.reason,
        )
        for pod in pods
    ]


def _shown(pod: Pod) -> str:
    """The name that people know: of a program that runs for a Pod object, the object's."""
    key = pod.labels.get(POD_LABEL, "")  # namespace_name_uid, and none of them has an underscore
    return key.split("_")[1] if key.count("_") == 2 else pod.name
