"""How a write or a deletion was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Write:
    """How a write was asked for, and what the client should be warned of. `trusted` = by this process, which may bind pods."""

    dry_run: bool = False
    validation: str = "Ignore"
    patch: bool = False
    trusted: bool = False
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Deletion:
    """How a deletion was asked for. `grace_s` None takes the pod's own."""

    grace_s: int | None = None
    propagation: str = ""
    uid: str = ""
    version: str = ""
    dry_run: bool = False
