"""Blocks that a prefill keeps after its end, until the decode that needs them has fetched them or their lease is over.

A lease begins when the prefill ends. It stands still while somebody is connected for these blocks, who may still wait for room of
his own, and begins anew when he goes away without having fetched. Times are seconds of the caller's monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from backend.simulate.engine.blocks import BlockPool


@dataclass(slots=True)
class _Held:
    blocks: list[int]
    tokens: int
    until: float


class HeldBlocks:
    """By the name of the request that computed them."""

    def __init__(self, pool: BlockPool, lease_s: float) -> None:
        self._pool = pool
        self._lease_s = lease_s
        self._held: dict[str, _Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._held

    def add(self, request_id: str, blocks: list[int], tokens: int, now: float) -> None:
        """`blocks` have the KV of `tokens` tokens and are in use until they are released."""
        self._held[request_id] = _Held(blocks, tokens, now + self._lease_s)

    def blocks_of(self, request_id: str) -> list[int]:
        held = self._held.get(request_id)
        return [] if held is None else list(held.blocks)

    def pin(self, request_id: str) -> int | None:
        """Somebody comes to fetch: the lease stands still. How many tokens there are; None when nothing has this name."""
        held = self._held.get(request_id)
        if held is None:
            return None
        held.until = math.inf
        return held.tokens

    def unpin(self, request_id: str, now: float) -> None:
        """He went away without having fetched."""
        held = self._held.get(request_id)
        if held is not None:
            held.until = now + self._lease_s

    def release(self, request_id: str) -> bool:
        """Fetched, or wanted no more. False when nothing has this name."""
        held = self._held.pop(request_id, None)
        if held is not None:
            self._pool.release(held.blocks)
        return held is not None

    def expire(self, now: float) -> list[str]:
        """Give up what nobody fetched in time; the requests that it belonged to."""
        over = [request_id for request_id, held in self._held.items() if held.until <= now]
        for request_id in over:
            self.release(request_id)
        return over

    def next_expiry(self) -> float | None:
        """When the next lease is over; None when none runs."""
        ends = [held.until for held in self._held.values() if held.until < math.inf]
        return min(ends, default=None)
