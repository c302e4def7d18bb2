"""Port bases for tests that start whole stacks or subnets: free now, and different from test to test."""

from __future__ import annotations

import os
import socket
from pathlib import Path

STEP = 10
FIRST, LAST = 20_000, 30_000
"""Below Linux' range for outgoing connections (32768 on), which would take ports away between our look and their use."""


def free_base(seed: Path | str = "") -> int:
    """A port base whose ten ports can all be bound now. `seed` spreads callers over the range."""
    count = (LAST - FIRST) // STEP
    start = hash((str(seed), os.getpid())) % count
    for offset in range(count):
        base = FIRST + (start + offset) % count * STEP
        if all(_is_free(base + port) for port in range(STEP)):
            return base
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
