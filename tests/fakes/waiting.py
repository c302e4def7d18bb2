"""Waiting for what happens on real sockets and in real processes, bounded; where time itself is tested, a clock is handed in instead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Return as soon as `condition` holds; TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - another process or socket is waited for, which sets no event of ours
            await asyncio.sleep(0.01)
