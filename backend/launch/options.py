"""What `workbench up` was asked for, and how it tells its caller what happens."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from backend.core.settings import PORT_BASE

DEFAULT_STATE = Path(".workbench")


@dataclass(frozen=True)
class UpOptions:
    """Options of `workbench up`; `fleet=None` starts the sample fleet: three StormServices, eight simulated engines."""

    state: Path = DEFAULT_STATE
    port_base: int = PORT_BASE
    fleet: Path | None = None
    workers: int = 2
    dashboard: bool = True
    traffic: bool = True
    exit_after_s: float | None = None
    redis_url: str = field(default_factory=lambda: os.environ.get("REDIS_URL", ""), repr=False)
    """A Valkey or Redis to use instead of starting one; the variable REDIS_URL unless given."""
    start_timeout_s: float = 60.0
    """Seconds until parts that are not ready fail the start."""


ProgressKind = Literal["starting", "ready", "died", "restarting", "failing", "stopping", "stopped", "warning", "up"]


@dataclass(frozen=True)
class Progress:
    """Something happened to a part (or, with an empty `part`, to the stack)."""

    kind: ProgressKind
    part: str = ""
    text: str = ""
    """For people; may have several lines (the end of a log)."""
    done: int = 0
    """Parts and pods that are ready."""
    total: int = 0


OnProgress = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Tell nobody."""
