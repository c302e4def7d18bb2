"""How the ingest kernel and its caller talk: where it stands, what it counted, why it stopped. Plain ints, no numba.

The kernel stops in front of an event that does not fit and is called again from there once its caller has made room.
"""

from __future__ import annotations

DONE = 0
NEEDS_SLOTS, NEEDS_LABELS, NEEDS_COPIES = 1, 2, 3
"""Stopped in front of an event: the table, the owner's engine hashes or its second copies need a larger array."""
CLEARED = 4
"""Stopped behind an AllBlocksCleared: the caller forgets what the owner held, then goes on."""
PARKED_FULL = 5
"""Stopped in front of an event: take the parked spans first."""

C_MESSAGE, C_POSITION, C_EVENTS_LEFT = 0, 1, 2
"""Message under way, position in it, events left of it (-1: its head is not read yet)."""
C_STORED, C_REMOVED, C_UNKNOWN = 3, 4, 5
"""Blocks stored, copies removed, removals of blocks that the owner was not known to hold."""
C_PARKED, C_PARKED_BLOCKS = 6, 7
"""Spans of events whose parent is unknown, and their blocks."""
C_IGNORED = 8
"""Events about groups that say nothing about prefixes."""
C_NEEDED = 9
"""Blocks of the event in front of which the kernel stopped."""
C_REASONS = 16

REASONS = (
    "not_a_batch",
    "truncated",
    "not_an_event",
    "unknown_kind",
    "bad_hash",
    "bad_parent",
    "bad_token",
    "bad_block_size",
    "token_count",
)
"""Why an event was skipped. The order in which an event with several faults is judged, and the order of the counters."""
NOT_A_BATCH, TRUNCATED, NOT_AN_EVENT, UNKNOWN_KIND, BAD_HASH, BAD_PARENT, BAD_TOKEN, BAD_BLOCK_SIZE, TOKEN_COUNT = range(len(REASONS))

CURSOR_WORDS = C_REASONS + len(REASONS)
PARKED_SPANS = 64
"""Spans (message, start, end) that one call can hand back."""
