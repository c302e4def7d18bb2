"""What a pod should be (`PodSpec`), what the runtime knows of it (`Tracked`), what happens to it and what is done about it.

Types only: no clock, no process, no file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import msgspec

RestartPolicy = Literal["Always", "OnFailure", "Never"]


class ProbeKind(StrEnum):
    """What a probe decides: that the start is over, whether requests may come, whether the process must be replaced."""

    STARTUP = "startup"
    READINESS = "readiness"
    LIVENESS = "liveness"


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """How one kind of probe asks. Names and meaning are Kubernetes'; durations in seconds."""

    path: str | None = "/health"
    """Path of a GET; None: opening a connection is enough."""
    port: int = 0
    """0: the pod's HTTP port."""
    period_s: float = 10.0
    timeout_s: float = 1.0
    initial_delay_s: float = 0.0
    successes: int = 1
    """Good answers in a row that make it pass."""
    failures: int = 3
    """Bad answers in a row that make it fail."""


class Probes(msgspec.Struct, frozen=True, kw_only=True):
    """A container's probes. Without a startup probe the start is over at once, without a liveness probe nothing is taken for hung."""

    readiness: Probe
    startup: Probe | None = None
    liveness: Probe | None = None


class PodSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One program as the fleet file, or a container of a Pod, wants it. Two specs with the same `digest` need no restart between them."""

    name: str
    engine: str = "vllm"
    version: str = ""
    model: str
    role: str = ""
    roleset: str = ""
    labels: dict[str, str] = {}
    args: dict[str, str] = {}
    """Flags of the engine without their dashes; "true" is a flag alone, "false" leaves it out."""
    env: dict[str, str] = {}
    grace_s: float | None = None
    """Seconds from SIGTERM to SIGKILL; None: the runtime's own."""
    startup_s: float = 600.0
    """Seconds until a pod that never became ready is started anew; 0: never. Real engines load weights for minutes."""
    image: str = ""
    command: list[str] = []
    """The whole command line with its {places}; empty: the engine's row of the command table."""
    pod: str = ""
    """Name of the pod whose address it shares; empty: it has one of its own."""
    port: int = 0
    """Where it answers HTTP; 0: the port of the address space."""
    probes: Probes | None = None
    """None: /health, as often and as patiently as the runtime likes."""
    leave_s: float | None = None
    """Seconds from "not ready" to SIGTERM (a preStop sleep); None: the runtime's own."""
    restart: RestartPolicy = "Always"

    @property
    def digest(self) -> str:
        """Ten hex digits over everything that the process was started with."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:10]


class Phase(StrEnum):
    """Where a pod is in its life. `PodState` of the API shows LEAVING and ENDING both as "stopping"."""

    BACKOFF = "backoff"
    STARTING = "starting"
    READY = "ready"
    UNREADY = "unready"
    LEAVING = "leaving"
    """Announced as not ready, so that routers stop choosing it; not yet told itself."""
    ENDING = "ending"
    """Has had SIGTERM."""
    DONE = "done"
    """Ended, and its restart policy leaves it so."""


RUNNING = frozenset({Phase.STARTING, Phase.READY, Phase.UNREADY, Phase.LEAVING, Phase.ENDING})


class Goal(StrEnum):
    """What becomes of the pod when its process is gone."""

    RUN = "run"
    REMOVE = "remove"


@dataclass(frozen=True)
class Ended:
    """How the process before this one ended. Times are seconds since 1970."""

    code: int | None
    """Exit code, negative: the signal that ended it; None: unknown, since it was not our child."""
    reason: str
    started_at: float
    ended_at: float
    number: int = 0
    """Of the process."""


@dataclass(frozen=True)
class Tracked:
    """Everything the runtime remembers of a pod. Times without `_at` in their name are of the monotonic clock."""

    spec: PodSpec
    next_spec: PodSpec | None = None
    """Spec of the next process, when it differs from the running one's."""
    phase: Phase = Phase.BACKOFF
    goal: Goal = Goal.RUN
    pid: int = 0
    started_at: float = 0.0
    """Start of the process, seconds since 1970."""
    since: float = 0.0
    """When this phase began."""
    due: float = 0.0
    """When this phase's timer ends: next start, SIGTERM, SIGKILL, or the end of patience with a start."""
    backoff_s: float = 0.0
    """Wait before the last restart; 0 before the first crash."""
    failures: int = 0
    """Probes failed in a row."""
    restarts: int = 0
    planned: bool = False
    """The process ends because we asked: no back-off, not counted as a crash."""
    reason: str = ""
    began: float = 0.0
    """Start of the process."""
    started: bool = False
    """Its start is over: the startup probe passed, or there is none."""
    successes: int = 0
    """Probes passed in a row, while it is not ready."""
    liveness_failures: int = 0
    kill_at: float = 0.0
    """SIGKILL is due then at the latest; 0: after the spec's own grace."""
    ended: Ended | None = None


@dataclass(frozen=True)
class Limits:
    """How patient the runtime is; durations in seconds."""

    grace_s: float = 5.0
    leave_s: float = 0.6
    """From "not ready" in pods.json to SIGTERM: two looks of those who follow the file."""
    first_backoff_s: float = 0.5
    longest_backoff_s: float = 30.0
    healthy_s: float = 30.0
    """A process that was up this long is forgiven its earlier crashes."""
    unready_after: int = 2
    """Probes failed in a row until a pod gets no new requests."""
    restart_after: int = 12
    """Probes failed in a row until its process is taken for hung and replaced (liveness)."""


# What can happen to a pod.


@dataclass(frozen=True)
class Wanted:
    """The fleet file has it, like this."""

    spec: PodSpec


@dataclass(frozen=True)
class Unwanted:
    """The fleet file no longer has it, or the whole stack ends (`at_once`: nobody is left to be told first)."""

    at_once: bool = False
    grace_s: float | None = None
    """Seconds until SIGKILL, leaving included; None: as the spec says. A shorter one may follow."""


@dataclass(frozen=True)
class RestartAsked:
    """Somebody asked for a new process."""


@dataclass(frozen=True)
class Started:
    """Its process exists."""

    pid: int
    started_at: float


@dataclass(frozen=True)
class Adopted:
    """A process of an earlier runtime is still there and is what we want."""

    pid: int
    started_at: float
    restarts: int = 0
    ready: bool = False
    """It was ready when last seen: it stays so until a probe says otherwise, or routers would drop a healthy fleet."""


@dataclass(frozen=True)
class Exited:
    """Its process is gone, or could not be started."""

    reason: str
    code: int | None = 1
    """As in `Ended`."""
    at: float = 0.0
    """Seconds since 1970."""


@dataclass(frozen=True)
class Probed:
    """A probe came back."""

    ok: bool
    reason: str = ""
    kind: ProbeKind = ProbeKind.READINESS


@dataclass(frozen=True)
class Tick:
    """Time passed: `due` may be over."""


Event = Wanted | Unwanted | RestartAsked | Started | Adopted | Exited | Probed | Tick


class Action(StrEnum):
    """What the runtime does about it."""

    START = "start"
    TERMINATE = "terminate"
    KILL = "kill"
    FORGET = "forget"


@dataclass(frozen=True)
class Step:
    """A pod after an event, and what to do."""

    pod: Tracked
    actions: tuple[Action, ...] = field(default=())
