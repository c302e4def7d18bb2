"""Memory that a burst of work leaves behind in the C allocator: bounded arenas, given back afterwards. Does nothing without glibc."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

M_ARENA_MAX = -8
"""Of glibc's <malloc.h>."""


def bound_arenas(arenas: int = 2) -> None:
    """At most so many arenas: by default every thread gets its own, up to eight a core, and keeps what it once used."""
    libc = _glibc()
    if libc is not None:
        libc.mallopt(M_ARENA_MAX, arenas)


def give_back() -> None:
    """Return free pages to the system. Takes milliseconds: call it in a thread after a burst, never in a loop."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> Any:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None
