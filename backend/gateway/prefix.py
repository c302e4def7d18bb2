"""The prefix index as the request path asks it: present, stale or absent is an answer, never an exception.

The index is made by another process and may come later or go away: it is opened when it is there, and looked for again every second
while it is not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, Protocol

from backend.core.errors import NotFound, WorkbenchError
from backend.gateway.model import IndexState
from backend.gateway.tokens import TokenIds
from backend.kvindex import kernels
from backend.kvindex.tokens import parse_token_array

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 1.0
CHECK_S = 0.1
"""Seconds between two looks at the writer's heartbeat: it changes a few times a second."""


_Pick = Callable[[list[int]], Sequence[int]]


def _picker(places: Sequence[int]) -> _Pick:
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: [values[place] for place in places]


class PrefixReader(Protocol):
    """What the gateway needs of `backend.kvindex.reader.IndexReader`."""

    def state(self) -> Literal["live", "stale"]: ...

    def match_array(self, tokens: Any, model: str = "") -> tuple[tuple[str, ...], list[int]]: ...

    def match_text(self, text: bytes, start: int, end: int, model: str = "") -> tuple[tuple[str, ...], list[int], int]: ...

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
        self._picks: dict[int, tuple[Sequence[str], tuple[str, ...], _Pick]] = {}
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
        return self._of_pods(pods, names, matched)

    def match_text(self, text: bytes, start: int, end: int, model: str, pods: Sequence[str]) -> tuple[list[int] | None, int]:
        """The same for a prompt that stands as a JSON array of token ids in `text[start:end]`, and the number of its tokens. Raises
        ValueError for what is no such array."""
        if self.refresh() == "live" and self.index is not None:
            try:
                names, matched, count = self.index.match_text(text, start, end, model)
            except WorkbenchError as error:
                self._failed(error)
            else:
                return self._of_pods(pods, names, matched), count
        return None, len(parse_token_array(text, start, end))

    def _of_pods(self, pods: Sequence[str], names: tuple[str, ...], matched: list[int]) -> list[int]:
        """`matched`, which is of the index's `names`, in the order of `pods`. Both are the same objects until the fleet changes, so the
        way from one to the other is kept."""
        matched.append(0)  # for pods that the index does not know
        known = self._picks.get(id(pods))
        if known is not None and known[0] is pods and known[1] is names:
            return list(known[2](matched))
        if len(self._picks) > 64:
            self._picks.clear()
        places = {name: index for index, name in enumerate(names)}
        pick = _picker([places.get(pod, -1) for pod in pods])
        self._picks[id(pods)] = (pods, names, pick)
        return list(pick(matched))

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
