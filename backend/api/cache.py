"""What every pod has cached."""

from __future__ import annotations

from typing import Literal

import msgspec

SourceStatus = Literal["connecting", "replaying", "live", "lost", "unsupported", "error"]


class SourceState(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The event stream of one data-parallel rank of one pod."""

    pod: str
    rank: int = 0
    endpoint: str = ""
    replay_endpoint: str = ""
    status: SourceStatus = "connecting"
    reason: str = ""
    last_sequence: int = -1
    last_event_at: float = 0.0
    """When the engine made the newest batch (its clock), 0 before the first."""
    lag_ms: float | None = None
    """Engine's time stamp to indexed, of the newest live batch."""
    batches: int = 0
    gaps: int = 0
    """Holes in the sequence seen."""
    missed: int = 0
    """Batches that replay could not bring back."""
    restarts: int = 0
    reconnects: int = 0
    stored: int = 0
    removed: int = 0
    cleared: int = 0
    skipped: dict[str, int] = {}
    """Events left out by reason: unreadable ones, and `unknown_parent` for blocks whose beginning was never seen."""
    blocks: int = 0
    """Blocks held now, as the index has it."""
    block_size: int = 0


class SourcePage(msgspec.Struct, kw_only=True):
    """All event streams; they fit one page."""

    items: list[SourceState]
    next: str | None = None
    problem: str = ""
    """Why routing looks at an older index; empty while it sees this one."""


class SharedPrefix(msgspec.Struct, kw_only=True):
    """A block that several pods hold, or that many blocks follow: what the fleet shares."""

    key: str
    """Our 64-bit hash of the block and everything before it, 16 hex digits."""
    pods: list[str]
    depth: int
    """Blocks from the prompt's beginning."""
    tokens: int
    """Tokens up to and including this block."""
    children: int
    """Blocks that continue it."""


class CacheMap(msgspec.Struct, kw_only=True):
    """Pods x buckets of the prefix space: `blocks[i][j]` blocks that `pods[i]` holds in bucket `j`."""

    at: float
    version: int
    pods: list[str]
    bins: int
    blocks: list[list[int]]
    totals: list[int]
    """Blocks a pod holds."""
    distinct: int
    """Distinct blocks in the fleet."""
    copies: int
    """Sum of `totals`; copies / distinct is the duplicate ratio."""
    shared: list[SharedPrefix] = []
    stale: bool = False
    """The index's writer is away: this is the last state."""


class ProbeMatch(msgspec.Struct, kw_only=True):
    pod: str
    matched_tokens: int
    share: float
    """Of the prompt, 0..1."""


class ProbeRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Exactly one of `tokens`, `prompt`, `messages`. `model` may be empty when the fleet serves one."""

    model: str = ""
    tokens: list[int] | None = None
    prompt: str | None = None
    messages: list[dict[str, object]] | None = None


class ProbeResult(msgspec.Struct, kw_only=True):
    """Which pod holds how much of a prompt, best first."""

    model: str
    tokens: int
    matches: list[ProbeMatch]
    index_state: Literal["live", "stale", "absent"] = "live"


class IndexStats(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The index as a whole."""

    generation: int = 0
    distinct_blocks: int = 0
    copies: int = 0
    capacity_blocks: int = 0
    bytes: int = 0
    pods: list[str] = []
    stale: bool = False
    parked: int = 0
    """Blocks that wait for their unknown parent."""
    ready: bool = True
    """False while the first replay of a start runs."""
