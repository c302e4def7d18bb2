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
from backend.kvindex.tokens import parse_token_array

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 1.0
LOOKUPS_KEPT = 64
CHECK_S = 0.1
"""Seconds between two looks at the writer's heartbeat: it changes a few times a second."""


class PodsLookup(Protocol):
    """What the gateway needs of `backend.kvindex.lookup.Lookup`."""

    def match(self, tokens: Any, model: str = "") -> tuple[Sequence[str], list[int]]: ...

    def match_text(self, text: bytes, start: int, end: int, model: str = "") -> tuple[list[int], int]: ...

    def source(self, place: int) -> tuple[int, int, int]: ...


class PrefixReader(Protocol):
    """What the gateway needs of `backend.kvindex.reader.IndexReader`."""

    def state(self) -> Literal["live", "stale"]: ...

    def lookup(self, pods: Sequence[str]) -> PodsLookup: ...

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
        self._lookups: dict[int, tuple[Sequence[str], PodsLookup]] = {}
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
        if self.refresh() != "live":
            return None
        try:
            return self._lookup(pods).match(tokens, model)[1]
        except WorkbenchError as error:
            self._failed(error)
            return None

    def match_text(self, text: bytes, start: int, end: int, model: str, pods: Sequence[str]) -> tuple[list[int] | None, int]:
        """The same for a prompt that stands as a JSON array of token ids in `text[start:end]`, and the number of its tokens. Raises
        ValueError for what is no such array."""
        if (self.state if time.monotonic() < self._next_look else self.refresh()) == "live":
            known = self._lookups.get(id(pods))
            try:
                lookup = known[1] if known is not None and known[0] is pods else self._lookup(pods)
                return lookup.match_text(text, start, end, model)
            except WorkbenchError as error:
                self._failed(error)
        return None, len(parse_token_array(text, start, end))

    def source(self, pods: Sequence[str], place: int) -> tuple[int, int, int]:
        """Of one of the pods just asked about: its block size, and the blocks that it stored and lost until now."""
        known = self._lookups.get(id(pods))
        return known[1].source(place) if known is not None else (0, 0, 0)

    def counters(self, pod: str) -> tuple[int, int]:
        """Blocks that the pod stored and lost until now."""
        if self.index is None:
            return 0, 0
        try:
            return self.index.counters(pod)
        except WorkbenchError as error:
            self._failed(error)
            return 0, 0

    def _lookup(self, pods: Sequence[str]) -> PodsLookup:
        """Kept as long as `pods` is the same object, as it is until the fleet changes."""
        known = self._lookups.get(id(pods))
        if known is not None and known[0] is pods:
            return known[1]
        if self.index is None:
            raise NotFound("There is no index.")
        if len(self._lookups) >= LOOKUPS_KEPT:
            self._lookups.clear()
        lookup = self.index.lookup(pods)
        self._lookups[id(pods)] = (pods, lookup)
        return lookup

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        if self.failures == 1:
            log.warning("the prefix index cannot be used: %s", error)
        self.index = None
        self._lookups.clear()
        self.state = "absent"
        self._next_look = time.monotonic() + LOOK_AGAIN_S
