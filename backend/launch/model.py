"""What runs, as `workbench status` reports it, and as `up` keeps it in STATE/processes.json for others to read."""

from __future__ import annotations

from typing import Literal

import msgspec

from backend.api.endpoints import Endpoints

ProcessState = Literal["starting", "ready", "backoff", "stopped", "unready", "stopping", "failed", "gone"]


class ProcessStatus(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One process: a part of the stack or a pod."""

    name: str
    kind: Literal["part", "pod"] = "part"
    pid: int = 0
    state: ProcessState = "stopped"
    restarts: int = 0
    started_at: float = 0.0
    url: str = ""
    log: str = ""
    reason: str = ""
    """Why it is not ready, for people."""
    rss_bytes: int = 0
    """Resident memory of its session (a master and its workers count together). Shared pages count in each."""
    cpu_s: float = 0.0
    """Processor seconds since its start."""
    cpu_percent: float = 0.0
    """Of one core, over the moment that was looked at."""


class StackStatus(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A stack that runs, or starts (`ready` is false then)."""

    state: str
    ready: bool = False
    pid: int = 0
    uptime_s: float = 0.0
    endpoints: Endpoints | None = None
    processes: list[ProcessStatus] = []
    rss_bytes: int = 0
    cpu_percent: float = 0.0

    def __repr__(self) -> str:
        rows = [("NAME", "PID", "STATE", "RESTARTS", "MEMORY", "CPU", "URL")]
        for row in self.processes:
            pid = str(row.pid) if row.pid else "-"
            memory = f"{row.rss_bytes / 2**20:.0f} MiB"
            rows.append((row.name, pid, row.state, str(row.restarts), memory, f"{row.cpu_percent:.1f} %", row.url or row.reason))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        total = f"{self.rss_bytes / 2**20:.0f} MiB resident, {self.cpu_percent:.1f} % of one core"
        return "\n".join([f"{self.state}: {'ready' if self.ready else 'not ready'}, up {self.uptime_s:.0f} s, {total}", *lines])
