"""What an ingested message did, from the counters of the pass that applied it. Pure."""

from __future__ import annotations

import msgspec

from backend.kvindex import cursor as c


class IngestResult(msgspec.Struct, frozen=True):
    """What a message did. `stored` and `removed` count blocks, the rest events."""

    stored: int = 0
    removed: int = 0
    cleared: int = 0
    skipped: int = 0
    parked: int = 0
    """Events whose parent is unknown: something was missed, a replay may bring it."""
    unknown: int = 0
    """Removals of blocks that the pod was not known to hold."""
    ignored: int = 0
    """Events about cache groups that hold less than whole prefixes."""
    reasons: dict[str, int] = {}
    """Skipped events by reason."""


def result_of(counts: list[int], parked: int) -> IngestResult:
    reasons = {}
    if any(counts[c.C_REASONS : -1]):
        reasons = {reason: count for reason, count in zip(c.REASONS, counts[c.C_REASONS :], strict=False) if count}
    return IngestResult(
        stored=counts[c.C_STORED],
        removed=counts[c.C_REMOVED],
        cleared=counts[-1],
        skipped=sum(reasons.values()),
        parked=parked,
        unknown=counts[c.C_UNKNOWN],
        ignored=counts[c.C_IGNORED],
        reasons=reasons,
    )
