"""Why the engine's real prefix hit differs from the one that the index promised: one pure function over the evidence.

The evidence is counted, not guessed: how many blocks the chosen pod stored and lost between the decision and the answer, and whether
other requests were running there when it was chosen (their blocks reach the engine's cache before the event reaches the index).
"""

from __future__ import annotations

import msgspec

from backend.api.decisions import HitClass


class Evidence(msgspec.Struct, gc=False):
    """Lifetime counts of the chosen pod in the index, in blocks, at two moments."""

    stored_before: int = 0
    removed_before: int = 0
    stored_after: int = 0
    removed_after: int = 0
    in_flight: int = 0
    """Other requests on the pod when it was chosen."""


def classify(predicted_tokens: int | None, cached_tokens: int | None, block_size: int, evidence: Evidence) -> HitClass:
    """`unpredicted` when there is nothing to compare: no index was asked, or the engine did not report its hit."""
    if predicted_tokens is None or cached_tokens is None:
        return "unpredicted"
    difference = cached_tokens - predicted_tokens
    if difference == 0:
        return "exact"
    if abs(difference) <= max(block_size, 1):
        return "within_block"
    if difference > 0:
        raced = evidence.stored_after > evidence.stored_before or evidence.in_flight > 0
        return "raced" if raced else "unknown"
    return "evicted" if evidence.removed_after > evidence.removed_before else "unknown"
