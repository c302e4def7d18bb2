"""Breaking ties with the random number that the caller drew, so that equal pods share the load and a decision can be taken again."""

from __future__ import annotations

from collections.abc import Sequence


def pick(tied: Sequence[int], random: float) -> int:
    """One of `tied` (at least one), each as likely as the others."""
    return tied[int(random * len(tied))] if len(tied) > 1 else tied[0]


def least_of(values: Sequence[float], random: float) -> int:
    """Index of the smallest value."""
    least = min(values)
    return pick([index for index, value in enumerate(values) if value == least], random)
