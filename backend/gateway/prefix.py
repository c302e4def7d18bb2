"""The prefix index as the request path asks it: present, stale or absent is an answer, never an exception.

The index is made by another process and may come later or go away: it is opened when it is there, and looked for again every second
while it is not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from backend.core.errors import NotFound, WorkbenchError
from backend.gateway.model import IndexState
from backend.gateway.tokens import TokenIds
from backend.kvindex import kernels

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 1.0
CHECK_S = 0.1
"""Seconds between two looks at the writer's heartbeat: it changes a few times a second."""


class PrefixReader(Protocol):
    """What the gateway needs of `backend.kvindex.reader.IndexReader`."""

    def state(self) -> Literal["live", "stale"]: ...

    def match_array(self, tokens: Any, model: str = "") -> tuple[tuple[str, ...], list[int]]: ...

    def block_size(self, pod: str) -> int: ...

    def counters(self, pod: str) -> tuple[int, int]: ...


def _open(folder: Path) -> PrefixReader:
    from backend.kvindex.reader import IndexReader

    index: PrefixReader = IndexReader.open(folder)
    return index


def warm_kernels() -> None:
    """Load the compiled kernels; for a thread, it takes a second or two. Until then plain Python answers."""
    kernels.warm(writing=False)


class Prefix:
    """`state` is what a record says; `index` may only be used while it is "live"."""

    def __init__(self, folder: Path | None, *, opener: Callable[[Path], PrefixReader] = _open) -> None:
        self._folder = folder
        self._opener = opener
        self._next_look = 0.0
        self._places: dict[int, tuple[Sequence[str], tuple[str, ...], list[int]]] = {}
        self.index: PrefixReader | None = None
        self.state: IndexState = "absent"
        self.failures = 0

    def refresh(self) -> IndexState:
        """The state now; cheap enough for each request."""
        now = time.monotonic()
        if now < self._next_look:
            return self.state
        self._next_look = now + CHECK_S
        if self.index is None:
            self._next_look = now + LOOK_AGAIN_S
            if self._folder is None:
                return "absent"
            try:
                self.index = self._opener(self._folder)
            except NotFound:
                return "absent"
            except (ImportError, WorkbenchError) as error:
                self._failed(error)
                return "absent"
        try:
            self.state = self.index.state()
        except WorkbenchError as error:
            self._failed(error)
        return self.state

    def match(self, tokens: TokenIds, model: str, pods: Sequence[str]) -> list[int] | None:
        """Prefix hit of each of `pods` in tokens; None when the index cannot say (then `state` tells why)."""
        if self.refresh() != "live" or self.index is None:
            return None
        try:
            names, matched = self.index.match_array(tokens, model)
        except WorkbenchError as error:
            self._failed(error)
            return None
        matched.append(0)  # for pods that the index does not know
        return [matched[place] for place in self._places_of(pods, names)]

    def _places_of(self, pods: Sequence[str], names: tuple[str, ...]) -> list[int]:
        """Where each of `pods` stands in `names`. Both are the same objects until the fleet changes, so the answer is kept."""
        known = self._places.get(id(pods))
        if known is not None and known[0] is pods and known[1] is names:
            return known[2]
        if len(self._places) > 64:
            self._places.clear()
        places = {name: index for index, name in enumerate(names)}
        found = [places.get(pod, -1) for pod in pods]
        self._places[id(pods)] = (pods, names, found)
        return found

    def counters(self, pod: str) -> tuple[int, int]:
        if self.index is None:
            return 0, 0
        try:
            return self.index.counters(pod)
        except WorkbenchError as error:
            self._failed(error)
            return 0, 0

    def block_size(self, pod: str) -> int:
        return self.index.block_size(pod) if self.index is not None else 0

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        if self.failures == 1:
            log.warning("the prefix index cannot be used: %s", error)
        self.index = None
        self.state = "absent"
        self._next_look = time.monotonic() + LOOK_AGAIN_S
