"""Looking up prompts in the index, from any process, without a lock: what gateway workers import.

Follows the writer by itself: a word in a small file names the current generation, and the directory's version says when names or block
sizes changed. A look-up that such a change overtook is done again. Kernels are used as soon as they are loaded (`kernels.warm()`),
until then plain Python gives the same answers.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from backend.core.errors import NotFound
from backend.core.sharedfile import SharedFile
from backend.kvindex import hashing, kernels, plain
from backend.kvindex import layout as at
from backend.kvindex.matches import Matches
from backend.kvindex.table import CURRENT, Table, Words

Tokens = npt.NDArray[np.uint32]
_ATTEMPTS = 8
_REOPEN_AFTER_NS = 1_000_000_000
_MODELS_KEPT = 64


@dataclass(frozen=True)
class Group:
    """Owners of one block size: one walk along the prompt's keys serves them all."""

    block_size: int
    owners: Words
    """Bitmap of the group's owners."""
    pod_of_owner: npt.NDArray[np.int32]
    """Position of an owner's pod in `View.pods`."""


@dataclass
class View:
    """What the directory said when it was read last: valid for one version of one generation."""

    table: Table
    version: int
    pods: tuple[str, ...]
    groups: tuple[Group, ...]
    directories: dict[str, tuple[int, ...]]
    """First directory word of each owner, by pod."""
    starts: dict[tuple[str, int], int] = field(default_factory=dict)
    """Start of the chain by model and block size."""

    def start(self, model: str, block_size: int) -> int:
        found = self.starts.get((model, block_size))
        if found is None:
            if len(self.starts) >= _MODELS_KEPT:
                self.starts.clear()
            found = self.starts[model, block_size] = hashing.chain_start(hashing.model_seed(model), block_size)
        return found


class IndexReader:
    """Reads an index. One object a thread: a look-up reuses buffers."""

    def __init__(self, folder: Path | None, table: Table, current: SharedFile | None) -> None:
        self._folder = folder
        self._table = table
        self._current = current
        self._view: View | None = None
        self._reopened_at = 0

    @classmethod
    def open(cls, folder: Path) -> IndexReader:
        """The index whose files are in `folder`. Raises NotFound until its writer has published one."""
        current = SharedFile.open(folder / CURRENT)
        return IndexReader(folder, _open_generation(folder, current), current)

    @property
    def generation(self) -> int:
        return self._follow().generation

    def match_array(self, tokens: Tokens, model: str = "") -> tuple[tuple[str, ...], list[int]]:
        """The short way for the request path: every pod of the index, and the matched tokens of each in the same order.

        `tokens` is a contiguous uint32 array. The tuple is the same object until pods come or go.
        """
        return self._lookup(tokens, model, 0, 0)

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
        names, matched = self._lookup(as_tokens(tokens), model, hashing.adapter_hash(lora), hashing.salt_hash(salt))
        if pods is not None:
            wanted = set(pods)
            matched = [count if name in wanted else 0 for name, count in zip(names, matched, strict=True)]
        return Matches(names, matched)

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
        view = self._current_view()
        words = view.table.words
        return max((words[base + at.O_BLOCK_SIZE] for base in view.directories.get(pod, ())), default=0)

    def counters(self, pod: str) -> tuple[int, int]:
        """Blocks stored by and removed from the pod since the index knows it, all ranks together. For the request path: few words."""
        view = self._current_view()
        words = view.table.words
        stored = removed = 0
        for base in view.directories.get(pod, ()):
            stored += words[base + at.O_STORED]
            removed += words[base + at.O_REMOVED]
        return stored, removed

    def pods(self) -> tuple[str, ...]:
        return self._current_view().pods

    def state(self) -> Literal["live", "stale"]:
        """stale: the writer has not been heard of for 2 s; answers are from its last state."""
        if self._current is None:
            return "live"
        self._follow()
        age_ns = time.monotonic_ns() - self._current.words[at.W_HEARTBEAT_NS]
        if age_ns <= at.STALE_AFTER_S * 1e9:
            return "live"
        self._reopen_current()
        age_ns = time.monotonic_ns() - self._current.words[at.W_HEARTBEAT_NS]
        return "live" if age_ns <= at.STALE_AFTER_S * 1e9 else "stale"

    def _lookup(self, tokens: Tokens, model: str, adapter: int, salt: int) -> tuple[tuple[str, ...], list[int]]:
        for _ in range(_ATTEMPTS):
            view = self._current_view()
            matched = np.zeros(len(view.pods), np.int64)
            for group in view.groups:
                start = view.start(model, group.block_size)
                if adapter:
                    start = hashing.chain_start(hashing.model_seed(model), group.block_size, adapter)
                _match_group(view.table, group, tokens, start, salt, matched)
            if view.table.words[at.H_DIRECTORY_VERSION] == view.version:
                break
        return view.pods, matched.tolist()

    def _current_view(self) -> View:
        table = self._follow()
        view = self._view
        if view is None or view.table is not table or view.version != table.words[at.H_DIRECTORY_VERSION]:
            view = self._view = read_view(table)
        return view

    def _follow(self) -> Table:
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


def _match_group(table: Table, group: Group, tokens: Tokens, start: int, salt: int, matched: npt.NDArray[np.int64]) -> None:
    if kernels.ready():
        kernel: Any = kernels.load().match_prompt
        kernel(table.array, tokens, group.block_size, start, salt, group.owners, group.pod_of_owner, matched)
    else:
        plain.match_prompt(table.words, tokens, group.block_size, start, salt, group.owners, group.pod_of_owner, matched)


def read_view(table: Table) -> View:
    """The directory as a view. The version is read first: a change meanwhile makes the view outdated, never wrong for long."""
    version = table.words[at.H_DIRECTORY_VERSION]
    owners = list(table.list_owners())
    pods = tuple(dict.fromkeys(owner.pod for owner in owners))
    position = {pod: index for index, pod in enumerate(pods)}
    groups = []
    for block_size in sorted({owner.block_size for owner in owners} - {0}):
        bitmap = np.zeros(table.bitmap_words, np.uint64)
        pod_of_owner = np.full(table.owners, -1, np.int32)
        for owner in owners:
            if owner.block_size == block_size:
                bitmap[owner.number // 64] |= np.uint64(1 << (owner.number % 64))
                pod_of_owner[owner.number] = position[owner.pod]
        groups.append(Group(block_size, bitmap, pod_of_owner))
    directories: dict[str, tuple[int, ...]] = {}
    for owner in owners:
        directories[owner.pod] = (*directories.get(owner.pod, ()), table.directory(owner.number))
    return View(table, version, pods, tuple(groups), directories)


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
