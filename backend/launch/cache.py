"""Where compiled kernels are kept, so that nobody waits for the compiler twice."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def folder(state: Path) -> Path:
    """NUMBA_CACHE_DIR if set; else the environment's own, where the install put them; else below the state folder."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        return Path(given)
    installed = environment_folder()
    return installed if installed.is_dir() and os.access(installed, os.W_OK) else state / "numba-cache"


def environment_folder() -> Path:
    """The cache of this Python environment; `backend.launch.warm` fills it."""
    return Path(sys.prefix) / "numba-cache"
