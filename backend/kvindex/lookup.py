"""One question asked over and over: how much of a prompt does each of these pods hold? What the directory says of them is read once,
until its version says that names or block sizes changed; a look-up that such a change overtook is done again.

Kernels are used as soon as they are loaded (`kernels.warm()`), until then plain Python gives the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from backend.kvindex import hashing, kernels, plain
from backend.kvindex import layout as at
from backend.kvindex.table import Table, Words
from backend.kvindex.tokens import bad_byte, parse_token_array

Tokens = npt.NDArray[np.uint32]
_ATTEMPTS = 8
_MODELS_KEPT = 64
_NUMBERS = 8192


class Follower(Protocol):
    """Who knows the index's current memory: `reader.IndexReader`."""

    def follow(self) -> Table: ...


@dataclass
class View:
    """What the directory says of `pods`: valid for one version of one generation."""

    table: Table
    words: memoryview
    """Of `table`."""
    version: int
    pods: tuple[str, ...]
    groups: Words
    """Owners of one block size are a group, a row: the size, room for the start of its chain, the bitmap of its owners."""
    pod_of_owner: npt.NDArray[np.int32]
    """(groups, owners): position of an owner's pod in `pods`; -1 for others' owners."""
    directories: list[list[int]]
    """First directory word of each owner of each pod."""
    block_sizes: list[int]
    """Of each pod; 0 while unknown."""
    matched: npt.NDArray[np.int64]
    """Room for an answer."""
    by_model: dict[str, Words] = field(default_factory=dict)
    """`groups` with the chains' starts, by model."""

    def groups_of(self, model: str, adapter: int = 0) -> Words:
        found = None if adapter else self.by_model.get(model)
        if found is None:
            seed = hashing.model_seed(model)
            found = self.groups.copy()
            found[:, 1] = [hashing.chain_start(seed, size, adapter) for size in found[:, 0].tolist()]
            if not adapter:
                if len(self.by_model) >= _MODELS_KEPT:
                    self.by_model.clear()
                self.by_model[model] = found
        return found

    def counters(self, place: int) -> tuple[int, int]:
        """Blocks stored by and removed from a pod since the index knows it, all ranks together."""
        words = self.words
        owners = self.directories[place]
        if len(owners) == 1:  # as with nearly every pod
            base = owners[0]
            return words[base + at.O_STORED], words[base + at.O_REMOVED]
        stored = removed = 0
        for base in owners:
            stored += words[base + at.O_STORED]
            removed += words[base + at.O_REMOVED]
        return stored, removed


class Lookup:
    """Answers are in the order of `pods`; without them, of all pods that the index knows. One object a thread: buffers are used again."""

    def __init__(self, index: Follower, pods: Sequence[str] | None = None) -> None:
        self._index = index
        self._asked = pods
        self._view: View | None = None
        self._numbers = np.empty(_NUMBERS, np.uint32)
        self._match_text: Any = None

    def match(self, tokens: Tokens, model: str = "", adapter: int = 0, salt: int = 0) -> tuple[tuple[str, ...], list[int]]:
        """The pods, and the tokens of the prompt that each holds from its beginning on. `adapter` and `salt`: their hashes."""
        for _ in range(_ATTEMPTS):
            view = self.view()
            rest = (view.groups_of(model, adapter), salt, view.pod_of_owner, view.matched)
            if kernels.ready():
                kernels.load().match_prompt(view.table.array, tokens, *rest)
            else:
                plain.match_prompt(view.words, tokens, *rest)
            if view.words[at.H_DIRECTORY_VERSION] == view.version:
                break
        return view.pods, view.matched.tolist()

    def match_text(self, text: bytes, start: int, end: int, model: str = "") -> tuple[list[int], int]:
        """The short way of the request path, for a prompt that stands as a JSON array of token ids in `text[start:end]`: matched tokens
        of each pod, and how many the prompt has. Raises ValueError for what is no such array."""
        kernel, numbers = self._match_text, self._numbers
        if kernel is None:
            if not kernels.ready():
                tokens = parse_token_array(text, start, end)
                return self.match(tokens, model)[1], len(tokens)
            kernel = self._match_text = kernels.load().match_text
        if (end - start) // 2 >= len(numbers):
            numbers = self._numbers = np.empty(end - start, np.uint32)
        for _ in range(_ATTEMPTS):
            view = self._view
            if view is None or view.words[at.H_DIRECTORY_VERSION] != view.version or view.table is not self._index.follow():
                view = self.view()
            groups = view.by_model.get(model)
            if groups is None:
                groups = view.groups_of(model)
            matched = view.matched
            count = kernel(view.table.array, text, start, end, numbers, groups, 0, view.pod_of_owner, matched)
            if count < 0:
                raise bad_byte(count, start)
            if view.words[at.H_DIRECTORY_VERSION] == view.version:
                break
        return matched.tolist(), count

    def source(self, place: int) -> tuple[int, int, int]:
        """Block size of the pod at `place` (0 while unknown), and the blocks that it stored and lost, as of the last look-up's memory."""
        view = self._view or self.view()
        return view.block_sizes[place], *view.counters(place)

    def view(self) -> View:
        """As of now."""
        view, table = self._view, self._index.follow()
        if view is None or view.table is not table or view.words[at.H_DIRECTORY_VERSION] != view.version:
            view = self._view = read_view(table, self._asked)
        return view


def read_view(table: Table, asked: Sequence[str] | None) -> View:
    """The version is read first: a change meanwhile makes the view outdated, never wrong for long."""
    version = table.words[at.H_DIRECTORY_VERSION]
    owners = list(table.list_owners())
    pods = tuple(dict.fromkeys(owner.pod for owner in owners)) if asked is None else tuple(asked)
    place = {pod: index for index, pod in enumerate(pods)}
    sizes = sorted({owner.block_size for owner in owners} - {0})
    groups = np.zeros((len(sizes), 2 + table.bitmap_words), np.uint64)
    groups[:, 0] = sizes
    pod_of_owner = np.full((len(sizes), table.owners), -1, np.int32)
    directories: list[list[int]] = [[] for _ in pods]
    block_sizes = [0] * len(pods)
    for owner in owners:
        at_place = place.get(owner.pod)
        if at_place is None:
            continue
        directories[at_place].append(table.directory(owner.number))
        block_sizes[at_place] = max(block_sizes[at_place], owner.block_size)
        if owner.block_size:
            group = sizes.index(owner.block_size)
            groups[group, 2 + owner.number // 64] |= np.uint64(1 << (owner.number % 64))
            pod_of_owner[group, owner.number] = at_place
    return View(table, table.words, version, pods, groups, pod_of_owner, directories, block_sizes, np.zeros(len(pods), np.int64))
