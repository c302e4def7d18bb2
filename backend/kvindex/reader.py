"""The index from any process, without a lock: what gateway workers import.

Follows the writer by itself: a word in a small file names the current generation. The looking up is in `lookup`.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from backend.core.errors import NotFound
from backend.core.sharedfile import SharedFile
from backend.kvindex import hashing, kernels
from backend.kvindex import layout as at
from backend.kvindex.lookup import Lookup, Tokens
from backend.kvindex.matches import Matches
from backend.kvindex.table import CURRENT, Table, Words

_ATTEMPTS = 8
_REOPEN_AFTER_NS = 1_000_000_000


class IndexReader:
    """Reads an index. One object a thread: a look-up reuses buffers."""

    def __init__(self, folder: Path | None, table: Table, current: SharedFile | None) -> None:
        self._folder = folder
        self._table = table
        self._current = current
        self._all = Lookup(self)
        self._reopened_at = 0

    @classmethod
    def open(cls, folder: Path) -> IndexReader:
        """The index whose files are in `folder`. Raises NotFound until its writer has published one."""
        current = SharedFile.open(folder / CURRENT)
        return IndexReader(folder, _open_generation(folder, current), current)

    @property
    def generation(self) -> int:
        return self.follow().generation

    def lookup(self, pods: Sequence[str]) -> Lookup:
        """For one who asks about the same pods again and again."""
        return Lookup(self, pods)

    def match(
        self,
        tokens: Sequence[int] | Tokens,
        *,
        model: str = "",
        lora: str | int | None = None,
        salt: str | None = None,
        pods: Iterable[str] | None = None,
    ) -> Matches:
        """Tokens of the prompt that each pod holds from its beginning on, in whole blocks of the pod's own size.

        `lora` is an adapter's name (its number where an old engine gives no name), `salt` the request's cache salt, `pods` restricts
        the answer.
        """
        lookup = self._all if pods is None else Lookup(self, tuple(dict.fromkeys(pods)))
        return Matches(*lookup.match(as_tokens(tokens), model, hashing.adapter_hash(lora), hashing.salt_hash(salt)))

    def hash_tokens(self, tokens: Sequence[int] | Tokens, model: str = "", block_size: int = 16) -> Words:
        """Our keys of the prompt's whole blocks."""
        array = as_tokens(tokens)
        start = hashing.chain_start(hashing.model_seed(model), block_size)
        if not kernels.ready():
            return np.array(hashing.chain_keys(array, block_size, start), np.uint64)
        keys = np.empty(len(array) // block_size, np.uint64)
        kernels.load().hash_prompt(array, block_size, np.uint64(start), np.uint64(0), keys)
        return keys

    def block_size(self, pod: str) -> int:
        """Tokens of a block as the pod's events had it; 0 while unknown."""
        view = self._all.view()
        return view.block_sizes[view.pods.index(pod)] if pod in view.pods else 0

    def counters(self, pod: str) -> tuple[int, int]:
        """Blocks stored by and removed from the pod since the index knows it, all ranks together."""
        view = self._all.view()
        return view.counters(view.pods.index(pod)) if pod in view.pods else (0, 0)

    def pods(self) -> tuple[str, ...]:
        return self._all.view().pods

    def state(self) -> Literal["live", "stale"]:
        """stale: the writer has not been heard of for 2 s; answers are from its last state."""
        if self._current is None:
            return "live"
        self.follow()
        age_ns = time.monotonic_ns() - self._current.words[at.W_HEARTBEAT_NS]
        if age_ns <= at.STALE_AFTER_S * 1e9:
            return "live"
        self._reopen_current()
        age_ns = time.monotonic_ns() - self._current.words[at.W_HEARTBEAT_NS]
        return "live" if age_ns <= at.STALE_AFTER_S * 1e9 else "stale"

    def follow(self) -> Table:
        """The current generation's table, mapped anew when the writer has swapped."""
        current = self._current
        if current is not None and current.words[at.W_GENERATION] != self._table.generation:
            assert self._folder is not None
            self._table = _open_generation(self._folder, current)
        return self._table

    def _reopen_current(self) -> None:
        """A stack that was started anew may have made its files anew: look at the name again, at most once a second."""
        now = time.monotonic_ns()
        if self._folder is None or now - self._reopened_at < _REOPEN_AFTER_NS:
            return
        self._reopened_at = now
        try:
            current = SharedFile.open(self._folder / CURRENT)
            table = _open_generation(self._folder, current)
        except NotFound:
            return
        if current.words[at.W_WRITER_PID] or current.words[at.W_GENERATION]:
            self._current, self._table = current, table


def as_tokens(tokens: Sequence[int] | Tokens) -> Tokens:
    """Token ids as a contiguous uint32 array. Raises ValueError for what is no token id."""
    if isinstance(tokens, np.ndarray) and tokens.dtype == np.uint32:
        return np.ascontiguousarray(tokens)
    try:
        if not isinstance(tokens, np.ndarray):
            # array takes whole numbers in range only, and a third of the time numpy needs for a list
            return np.array(array("I", tokens), np.uint32)
        if tokens.dtype.kind not in "iu" or (tokens.size and (tokens.min() < 0 or tokens.max() >= 2**32)):
            raise OverflowError
        return np.ascontiguousarray(tokens, np.uint32)
    except (OverflowError, TypeError) as error:
        raise ValueError("token ids are whole numbers from 0 to 2**32 - 1") from error


def _open_generation(folder: Path, current: SharedFile) -> Table:
    """The generation that `current` names; the writer may swap between our reading its name and our opening it."""
    for _ in range(_ATTEMPTS):
        generation = current.words[at.W_GENERATION]
        if generation == 0:
            break
        try:
            return Table.open(folder, generation)
        except NotFound:
            if current.words[at.W_GENERATION] == generation:
                raise
    raise NotFound(f"The index in {folder} has not been published yet.")
