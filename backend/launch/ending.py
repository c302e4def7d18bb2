"""Ends a stack from outside, and clears away what a killed one left."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

from backend.core import files, processes
from backend.core.errors import StateFolderError
from backend.core.settings import PORT_BASE
from backend.launch import lock
from backend.launch.layout import Layout
from backend.launch.options import DEFAULT_STATE

PATIENCE_S = 12.0
"""Longer than a stack takes by itself at worst."""


def down(state: Path | str = DEFAULT_STATE) -> bool:
    """End the stack at `state` and wait until nothing of it is left; False when there was none.

    Raises StateFolderError when it belongs to another user.
    """
    layout = Layout(Path(state).expanduser().resolve(), PORT_BASE)
    pid = lock.holder(layout.lock)
    if not pid:
        return clear(layout)
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return clear(layout)
    except PermissionError as error:
        raise StateFolderError(f"The stack in {layout.state} (process {pid}) belongs to another user.") from error
    give_up = time.monotonic() + PATIENCE_S
    while lock.holder(layout.lock) == pid and time.monotonic() < give_up:
        time.sleep(0.05)
    if lock.holder(layout.lock) == pid:
        processes.signal_group(pid, signal.SIGKILL)
    clear(layout)
    return True


def clear(layout: Layout) -> bool:
    """End processes that carry this stack's mark and remove its run-time files; says whether there was anything.

    Logs, history, the token and Valkey's data stay.
    """
    found = end_leftovers(layout.stack_name)
    shared = files.shared_folder(layout.state)
    for path in (layout.endpoints, layout.table, layout.pods):
        found = path.exists() or found
        path.unlink(missing_ok=True)
    shutil.rmtree(shared, ignore_errors=True)
    return found


def end_leftovers(stack: str, *, patience_s: float = 0.5) -> bool:
    """SIGTERM, a moment, SIGKILL to everything that carries the stack's mark; says whether there was anything."""
    left = processes.of_stack(stack)
    if not left:
        return False
    for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, patience_s)):
        for pid in left:
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                pass
        give_up = time.monotonic() + wait_s
        while left and time.monotonic() < give_up:
            time.sleep(0.02)
            left = [pid for pid in left if processes.alive(pid)]
    return True
