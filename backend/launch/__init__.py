"""Which processes run, how they start, stop and are restarted; the only door to backend jobs for the command line.

`stack.up(UpOptions(...))` runs a stack, `find(state)` says where one is; `stack.down`, `stack.status` and `stack.detached` do the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backend.api.endpoints import Endpoints


def find(state: Path | str) -> Endpoints | None:
    """Where the parts of the running stack at `state` are; None when there is none, or it is not ready yet."""
    from backend.launch import look

    return look.find(state)
