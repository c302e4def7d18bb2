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
from typing import Literal

import numpy as np
import numpy.typing as npt

from backend.core.errors import NotFound
from backend.core.sharedfile import SharedFile
from backend.kvindex import hashing, kernels, plain
from backend.kvindex import layout as at
from backend.kvindex.matches import Matches
from backend.kvindex.table import CURRENT, Table, Words
from backend.kvindex.tokens import bad_byte, parse_token_array

Tokens = npt.NDArray[np.uint32]
_ATTEMPTS = 8
_REOPEN_AFTER_NS = 1_000_000_000
_MODELS_KEPT = 64
_NUMBERS = 8192


@dataclass(frozen=True)
class Groups:
    """Owners of one block size are a group, a row of each array: one walk along the prompt's keys serves them all."""

    sizes: npt.NDArray[np.int64]
    """Tokens a block."""
    owners: Words
    """(groups, words): bitmap of each group's owners."""
    pod_of_owner: npt.NDArray[np.int32]
    """(groups, owners): position of an owner's pod in `View.pods`."""


@dataclass
class View:
    """What the directory said when it was read last: valid for one version of one generation."""

    table: Table
    words: memoryview
    """Of `table`."""
    version: int
    pods: tuple[str, ...]
    groups: Groups
    directories: dict[str, tuple[int, ...]]
    """First directory word of each owner, by pod."""
    block_sizes: dict[str, int]
    """By pod; 0 while unknown."""
    matched: npt.NDArray[np.int64]
    """Room for an answer."""
    starts: dict[tuple[str, int], Words] = field(default_factory=dict)
    """Start of the chain in each group, by model and adapter."""

    def start(self, model: str, adapter: int) -> Words:
        found = self.starts.get((model, adapter))
        if found is None:
            if len(self.starts) >= _MODELS_KEPT:
                self.starts.clear()
            seed = hashing.model_seed(model)
            chains = [hashing.chain_start(seed, size, adapter) for size in self.groups.sizes.tolist()]
            found = self.starts[model, adapter] = np.array(chains, np.uint64)
        return found


class IndexReader:
    """Reads an index. One object a thread: a look-up reuses buffers."""

    def __init__(self, folder: Path | None, table: Table, current: SharedFile | None) -> None:
        self._folder = folder
        self._table = table
        self._current = current
        self._view: View | None = None
        self._numbers = np.empty(_NUMBERS, np.uint32)
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

    def match_text(self, text: bytes, start: int, end: int, model: str = "") -> tuple[tuple[str, ...], list[int], int]:
        """The shortest way, for a prompt that stands as a JSON array of token ids in `text[start:end]`: pods, their matched tokens, and
        the number of the prompt's tokens. Raises ValueError for what is no such array."""
        if not kernels.ready():
            tokens = parse_token_array(text, start, end)
            return *self._lookup(tokens, model, 0, 0), len(tokens)
        if (end - start) // 2 >= len(self._numbers):
            self._numbers = np.empty(end - start, np.uint32)
        kernel = kernels.load().match_text
        for _ in range(_ATTEMPTS):
            view = self._current_view()
            groups, matched = view.groups, view.matched
            count = kernel(
                view.table.array, text, start, end, self._numbers,
                groups.sizes, view.start(model, 0), 0, groups.owners, groups.pod_of_owner, matched,
            )  # fmt: skip
            if count < 0:
                raise bad_byte(count, start)
            if view.words[at.H_DIRECTORY_VERSION] == view.version:
                break
        return view.pods, matched.tolist(), count

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
        return self._current_view().block_sizes.get(pod, 0)

    def counters(self, pod: str) -> tuple[int, int]:
        """Blocks stored by and removed from the pod since the index knows it, all ranks together. For the request path: few words."""
        view = self._current_view()
        words, owners = view.words, view.directories.get(pod, ())
        if len(owners) == 1:
            base = owners[0]
            return words[base + at.O_STORED], words[base + at.O_REMOVED]
        return sum(words[base + at.O_STORED] for base in owners), sum(words[base + at.O_REMOVED] for base in owners)

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
            groups, table = view.groups, view.table
            rest = (groups.sizes, view.start(model, adapter), salt, groups.owners, groups.pod_of_owner, view.matched)
            if kernels.ready():
                kernels.load().match_prompt(table.array, tokens, *rest)
            else:
                plain.match_prompt(table.words, tokens, *rest)
            if table.words[at.H_DIRECTORY_VERSION] == view.version:
                break
        return view.pods, view.matched.tolist()

    def _current_view(self) -> View:
        view, table, current = self._view, self._table, self._current
        if current is not None and current.words[at.W_GENERATION] != table.generation:
            table = self._follow()
        if view is None or view.table is not table or view.words[at.H_DIRECTORY_VERSION] != view.version:
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


def read_view(table: Table) -> View:
    """The directory as a view. The version is read first: a change meanwhile makes the view outdated, never wrong for long."""
    version = table.words[at.H_DIRECTORY_VERSION]
    owners = list(table.list_owners())
    pods = tuple(dict.fromkeys(owner.pod for owner in owners))
    position = {pod: index for index, pod in enumerate(pods)}
    sizes = sorted({owner.block_size for owner in owners} - {0})
    bitmaps = np.zeros((len(sizes), table.bitmap_words), np.uint64)
    pod_of_owner = np.full((len(sizes), table.owners), -1, np.int32)
    directories: dict[str, tuple[int, ...]] = {}
    block_sizes: dict[str, int] = {}
    for owner in owners:
        directories[owner.pod] = (*directories.get(owner.pod, ()), table.directory(owner.number))
        block_sizes[owner.pod] = max(block_sizes.get(owner.pod, 0), owner.block_size)
        if owner.block_size:
            group = sizes.index(owner.block_size)
            bitmaps[group, owner.number // 64] |= np.uint64(1 << (owner.number % 64))
            pod_of_owner[group, owner.number] = position[owner.pod]
    groups = Groups(np.array(sizes, np.int64), bitmaps, pod_of_owner)
    return View(table, table.words, version, pods, groups, directories, block_sizes, np.zeros(len(pods), np.int64))


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
