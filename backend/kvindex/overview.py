"""Looking at the index as a whole: the map of pods and prefix space, what pods share, what one pod holds. Reads, never changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from backend.api.cache import SharedPrefix
from backend.kvindex import kernels, plain
from backend.kvindex import layout as at
from backend.kvindex.owners import Domain, OwnerState
from backend.kvindex.table import Table

_LOW = np.uint64(0xFFFFFFFF)


def map_of(table: Table, domains: Iterable[Domain], pods: Sequence[str], bins: int) -> npt.NDArray[np.int64]:
    """Blocks held, pods x bins; ranks of a pod are added up."""
    if bins < 1:
        raise ValueError("a map has at least one bin")
    by_owner = np.zeros((table.owners, bins), np.int64)
    parents, known = _tree(table, domains)
    if known.any():
        kernels.load_writing().map_bins(table.array, parents, known, by_owner)
    result = np.zeros((len(pods), bins), np.int64)
    position = {pod: row for row, pod in enumerate(pods)}
    for owner in table.list_owners():
        if owner.pod in position:
            result[position[owner.pod]] += by_owner[owner.number]
    return result


def shared_of(table: Table, domains: Iterable[Domain], limit: int) -> list[SharedPrefix]:
    """Where shared prefixes end, by holders x continuations."""
    parents, known = _tree(table, domains)
    best = np.zeros((max(1, limit), 4), np.int64)
    rows = kernels.load_writing().shared_blocks(table.array, parents, known, best)
    kernels.load_writing().depths_of(parents, known, best, rows)
    owners = {owner.number: owner for owner in table.list_owners()}
    found = []
    for depth, slot, _, children in best[: min(rows, limit)].tolist():
        index = table.words[at.H_TABLE] + slot * table.words[at.H_STRIDE]
        bitmap = plain.bitmap(table.words, index)
        holders = [owner for number, owner in owners.items() if bitmap >> number & 1]
        pods = sorted({owner.pod for owner in holders})
        size = max((owner.block_size for owner in holders), default=0)
        found.append(SharedPrefix(key=f"{table.words[index]:016x}", pods=pods, depth=depth, tokens=depth * size, children=children))
    return found


def held_by(table: Table, state: OwnerState) -> set[int]:
    """Engine hashes of the blocks that one owner holds."""
    entries = state.domain.labels[at.MAP_HEAD :].reshape(-1, 2)
    entries = entries[entries[:, 0] != 0]
    slots = (entries[:, 1] & _LOW).astype(np.int64)
    base = table.words[at.H_TABLE] + slots * table.words[at.H_STRIDE] + 1 + state.number // 64
    held = (table.array[base] >> np.uint64(state.number % 64)) & np.uint64(1)
    return {int(value) for value in entries[held == 1, 0]}


def _tree(table: Table, domains: Iterable[Domain]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
    """Parent of every held block, from the engine hashes of all domains."""
    parents, known = np.zeros(table.slots, np.uint32), np.zeros(table.slots, np.uint8)
    for domain in domains:
        kernels.load_writing().note_parents(table.array, domain.labels, parents, known)
    return parents, known
