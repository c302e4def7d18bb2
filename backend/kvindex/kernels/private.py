"""The writer's private maps: engine hash to slot, slot to number of further copies. Open addressing, one flat array a map.

Removal moves later entries up instead of leaving marks, so that a map under steady eviction never needs cleaning. No reader sees
these maps. A key is never 0 (`label_key`, slot + 1); load is kept at or below one half by the callers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from backend.kvindex import hashing
from backend.kvindex.layout import M_SLOTS, M_USED, MAP_HEAD

__all__ = ["drop_free_labels", "rehash_map"]

_SPREAD = np.uint64(hashing.MIX_1)
_S32 = np.uint64(32)
_ZERO, _ONE, _TWO = np.uint64(0), np.uint64(1), np.uint64(2)
_LOW = np.uint64(0xFFFFFFFF)
_WORDS = types.uint64[::1]


@njit
def home(key: Any, mask: Any) -> Any:
    """First position of a key: the middle bits of a product, since engine hashes may be anything, small numbers too."""
    return np.int64(((key * _SPREAD) >> _S32) & np.uint64(mask))


@njit
def label_key(engine_hash: Any) -> Any:
    """An engine hash as a map's key; the one value that marks an empty place is moved out of the way."""
    return engine_hash if engine_hash != _ZERO else _SPREAD


@njit
def find(entries: Any, key: Any) -> Any:
    """Index of the entry's key word, or -1."""
    mask = np.int64(entries[M_SLOTS]) - 1
    at = home(key, mask)
    while True:
        index = MAP_HEAD + 2 * at
        there = entries[index]
        if there == key:
            return index
        if there == _ZERO:
            return -1
        at = (at + 1) & mask


@njit
def put(entries: Any, key: Any, value: Any) -> None:
    """Set, replacing what was there. The caller has made sure that there is room."""
    mask = np.int64(entries[M_SLOTS]) - 1
    at = home(key, mask)
    while True:
        index = MAP_HEAD + 2 * at
        there = entries[index]
        if there == key or there == _ZERO:  # noqa: SIM109 (a tuple is no help to the compiler)
            if there == _ZERO:
                entries[index] = key
                entries[M_USED] += _ONE
            entries[index + 1] = value
            return
        at = (at + 1) & mask


@njit
def remove(entries: Any, index: Any) -> None:
    """Take the entry at `index` out and close the gap: each later entry of the run moves up if its home allows."""
    mask = np.int64(entries[M_SLOTS]) - 1
    gap = (index - MAP_HEAD) // 2
    at = gap
    while True:
        at = (at + 1) & mask
        key = entries[MAP_HEAD + 2 * at]
        if key == _ZERO:
            break
        if ((at - home(key, mask)) & mask) >= ((at - gap) & mask):
            entries[MAP_HEAD + 2 * gap] = key
            entries[MAP_HEAD + 2 * gap + 1] = entries[MAP_HEAD + 2 * at + 1]
            gap = at
    entries[MAP_HEAD + 2 * gap] = _ZERO
    entries[MAP_HEAD + 2 * gap + 1] = _ZERO
    entries[M_USED] -= _ONE


@njit(types.void(_WORDS, _WORDS, types.uint32[::1], types.boolean), cache=True, nogil=True)
def rehash_map(old: Any, new: Any, moved: Any, keys_are_slots: Any) -> None:
    """Copy `old` into the empty `new`. `moved[slot]` is a slot's place in a rebuilt table plus 1, 0 when it is gone; empty: no move.

    Labels carry slots in their values (slot in the low half, parent's slot plus 1 in the high half), copy counts in their keys.
    """
    for at in range(np.int64(old[M_SLOTS])):
        key = old[MAP_HEAD + 2 * at]
        value = old[MAP_HEAD + 2 * at + 1]
        if key == _ZERO:
            continue
        if moved.shape[0] > 0:
            if keys_are_slots:
                key = np.uint64(moved[np.int64(key) - 1])
                if key == _ZERO:
                    continue
            else:
                slot = np.uint64(moved[np.int64(value & _LOW)])
                if slot == _ZERO:
                    continue
                parent = value >> _S32
                if parent != _ZERO:
                    parent = np.uint64(moved[np.int64(parent) - 1])
                value = (parent << _S32) | (slot - _ONE)
        put(new, key, value)


@njit(types.int64(_WORDS, _WORDS, types.int64, types.int64, types.int64, _WORDS), cache=True, nogil=True)
def drop_free_labels(labels: Any, words: Any, table: Any, stride: Any, bitmap_words: Any, holders: Any) -> Any:
    """Remove labels of blocks that none of `holders` (a bitmap of owners) has any more; how many went.

    Walks backwards and looks at a place again after a removal, since removal moves entries up.
    """
    dropped = 0
    at = np.int64(labels[M_SLOTS]) - 1
    while at >= 0:
        index = MAP_HEAD + 2 * at
        if labels[index] != _ZERO:
            base = table + np.int64(labels[index + 1] & _LOW) * stride + 1
            held = False
            for word in range(bitmap_words):
                if words[base + word] & holders[word] != _ZERO:
                    held = True
            if not held:
                remove(labels, index)
                dropped += 1
                continue
        at -= 1
    return dropped
