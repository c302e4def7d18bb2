"""One daemon thread with an event loop, on which the synchronous facade runs the asynchronous client.

Why a thread: in Jupyter a loop runs already in the main thread, so `asyncio.run` raises there; patching that loop to be
re-entrant would change how every other library in the kernel behaves.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_current: LoopThread | None = None


class LoopThread:
    """Runs coroutines for callers in other threads."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="workbench", daemon=True)
        self.thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """The coroutine's result or error. KeyboardInterrupt and a passed `timeout` cancel it.

        Raises RuntimeError when called from a coroutine of this very loop: it would wait for itself.
        """
        if threading.current_thread() is self.thread:
            coroutine.close()
            raise RuntimeError("A synchronous workbench was used inside its own loop; use workbench.connect(..., asynchronous=True) there.")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise


def shared() -> LoopThread:
    """The process' loop thread, started on first use; a forked child gets one of its own."""
    global _current
    with _lock:
        if _current is None or _current.pid != os.getpid():
            _current = LoopThread()
        return _current
