"""A replay that goes on in the background, so that a notebook can watch, change and measure the fleet under load."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import _loop, _show

if TYPE_CHECKING:
    from workbench.client import AsyncWorkbench
    from workbench.traffic import Replay


class RunningReplay(_show.Shown):
    """Traffic until `stop()`, by default the trace again and again. Made by `Workbench.start_replay`.

    Runs on the workbench's own loop thread and keeps every result, a few hundred bytes each.
    """

    def __init__(self, core: AsyncWorkbench, loop: _loop.LoopThread, trace: str | Path, options: dict[str, Any]) -> None:
        self.trace = Path(trace).name
        self.started_at = datetime.now(UTC)
        """Decision records of this traffic are not older."""
        self._loop = loop
        self._drain = asyncio.Event()
        options = {"repeat": 0, "progress": False, **options, "drain": self._drain}
        self._future = asyncio.run_coroutine_threadsafe(core.replay(trace, **options), loop.loop)

    @property
    def running(self) -> bool:
        return not self._future.done()

    def stop(self, timeout: float | None = None) -> Replay:
        """Send no more, wait for the requests under way, and say what became of all. Raises what ended the replay early, TimeoutError."""
        self._loop.loop.call_soon_threadsafe(self._drain.set)
        return self._future.result(timeout)

    def cancel(self) -> None:
        """End it at once: requests under way are given up."""
        self._future.cancel()

    def __enter__(self) -> RunningReplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.stop()
        else:
            self.cancel()

    def __repr__(self) -> str:
        return f"Replay of {self.trace} in the background, {'running' if self.running else 'ended'}"

    def _facts(self) -> dict[str, Any]:
        return {
            "title": repr(self),
            "note": "",
            "headers": (),
            "rows": [],
            "more": 0,
            "empty": ".stop() ends it and says what became of it.",
        }
