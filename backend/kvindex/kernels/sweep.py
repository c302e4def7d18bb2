"""Walks over the whole table: take an owner out, rebuild into a new file, and see what is there (map, shared prefixes)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.cpython.unsafe.numbers import trailing_zeros

from backend.kvindex.kernels.private import home
from backend.kvindex.layout import (
    H_BITMAP_WORDS,
    H_COPIES,
    H_DIRECTORY,
    H_DISTINCT,
    H_SLOTS,
    H_STRIDE,
    H_TABLE,
    H_USED,
    M_SLOTS,
    MAP_HEAD,
    O_BLOCKS,
    OWNER_WORDS,
)

__all__ = ["clear_owner", "copy_table", "depths_of", "map_bins", "note_parents", "shared_blocks"]

_ZERO, _ONE = np.uint64(0), np.uint64(1)
_S32, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
_WORDS = types.uint64[::1]
_SLOTS = types.uint32[::1]


@njit
def _empty(words: Any, base: Any, bitmap_words: Any) -> Any:
    union = _ZERO
    for word in range(bitmap_words):
        union |= words[base + word]
    return union == _ZERO


@njit
def _count(words: Any, base: Any, bitmap_words: Any) -> Any:
    count = 0
    for word in range(bitmap_words):
        left = words[base + word]
        while left != _ZERO:
            left &= left - _ONE
            count += 1
    return count


@njit(types.int64(_WORDS, types.int64), cache=True, nogil=True)
def clear_owner(words: Any, owner: Any) -> Any:
    """Take every block from `owner`; how many it held."""
    stride = np.int64(words[H_STRIDE])
    table = np.int64(words[H_TABLE])
    bitmap_words = np.int64(words[H_BITMAP_WORDS])
    bit = _ONE << (np.uint64(owner) & np.uint64(63))
    offset = 1 + (owner >> 6)
    held, gone = 0, 0
    for slot in range(np.int64(words[H_SLOTS])):
        index = table + slot * stride
        if words[index + offset] & bit != _ZERO:
            words[index + offset] &= ~bit
            held += 1
            if _empty(words, index + 1, bitmap_words):
                gone += 1
    words[H_COPIES] -= np.uint64(held)
    words[H_DISTINCT] -= np.uint64(gone)
    words[np.int64(words[H_DIRECTORY]) + owner * OWNER_WORDS + O_BLOCKS] = _ZERO
    return held


@njit(types.void(_WORDS, _WORDS, _SLOTS), cache=True, nogil=True)
def copy_table(old: Any, new: Any, moved: Any) -> None:
    """Copy blocks that somebody holds into the empty `new`; `moved[slot]` becomes the new slot plus 1, 0 for what is left behind."""
    old_stride, new_stride = np.int64(old[H_STRIDE]), np.int64(new[H_STRIDE])
    old_table, new_table = np.int64(old[H_TABLE]), np.int64(new[H_TABLE])
    bitmap_words = np.int64(old[H_BITMAP_WORDS])
    mask = np.int64(new[H_SLOTS]) - 1
    for slot in range(np.int64(old[H_SLOTS])):
        index = old_table + slot * old_stride
        moved[slot] = 0
        if old[index] == _ZERO or _empty(old, index + 1, bitmap_words):
            continue
        at = home(old[index], mask)
        while new[new_table + at * new_stride] != _ZERO:
            at = (at + 1) & mask
        there = new_table + at * new_stride
        new[there] = old[index]
        for word in range(bitmap_words):
            new[there + 1 + word] = old[index + 1 + word]
        new[H_USED] += _ONE
        moved[slot] = np.uint32(at + 1)


@njit(types.void(_WORDS, _WORDS, _SLOTS, types.uint8[::1]), cache=True, nogil=True)
def note_parents(words: Any, labels: Any, parents: Any, known: Any) -> None:
    """From one domain's labels: `parents[slot]` is the parent's slot plus 1 (0 at a prompt's beginning) where `known[slot]` is set."""
    stride = np.int64(words[H_STRIDE])
    table = np.int64(words[H_TABLE])
    bitmap_words = np.int64(words[H_BITMAP_WORDS])
    for at in range(np.int64(labels[M_SLOTS])):
        if labels[MAP_HEAD + 2 * at] == _ZERO:
            continue
        value = labels[MAP_HEAD + 2 * at + 1]
        slot = np.int64(value & _LOW)
        if known[slot] == 0 and not _empty(words, table + slot * stride + 1, bitmap_words):
            known[slot] = 1
            parents[slot] = np.uint32(value >> _S32)


@njit(types.void(_SLOTS, types.uint8[::1], _SLOTS, _SLOTS, _SLOTS), cache=True, nogil=True)
def _link_children(parents: Any, known: Any, first_child: Any, next_sibling: Any, children: Any) -> None:
    """Lists of children, all as slot plus 1; index 0 of `first_child` lists the blocks without a living parent."""
    for slot in range(known.shape[0] - 1, -1, -1):
        if known[slot] == 0:
            continue
        parent: Any = np.int64(parents[slot])
        if parent > 0 and known[parent - 1] == 0:
            parent = 0
        next_sibling[slot + 1] = first_child[parent]
        first_child[parent] = np.uint32(slot + 1)
        children[parent] += np.uint32(1)


@njit(types.void(_WORDS, _SLOTS, types.uint8[::1], types.int64[:, ::1]), cache=True, nogil=True)
def map_bins(words: Any, parents: Any, known: Any, bins: Any) -> None:
    """Count `bins[owner, bin]`. The prefix space is the tree of blocks in depth-first order, cut into bins of equally many blocks:
    what belongs together stands together, whatever its hashes are."""
    stride = np.int64(words[H_STRIDE])
    table = np.int64(words[H_TABLE])
    bitmap_words = np.int64(words[H_BITMAP_WORDS])
    slots = known.shape[0]
    first_child = np.zeros(slots + 1, np.uint32)
    next_sibling = np.zeros(slots + 1, np.uint32)
    children = np.zeros(slots + 1, np.uint32)
    _link_children(parents, known, first_child, next_sibling, children)
    total: Any = 0
    for slot in range(slots):
        total += np.int64(known[slot])
    position = 0
    at: Any = np.int64(first_child[0])
    while at != 0:
        base = table + (at - 1) * stride + 1
        column = position * bins.shape[1] // total
        position += 1
        for word in range(bitmap_words):
            holders = words[base + word]
            while holders != _ZERO:
                bins[word * 64 + np.int64(trailing_zeros(holders)), column] += 1
                holders &= holders - _ONE
        following = np.int64(first_child[at])
        while following == 0 and at != 0:
            following = np.int64(next_sibling[at])
            if following == 0:
                at = np.int64(parents[at - 1])
                if at > 0 and known[at - 1] == 0:
                    at = 0
        at = following


@njit(types.int64(_WORDS, _SLOTS, types.uint8[::1], types.int64[:, ::1]), cache=True, nogil=True)
def shared_blocks(words: Any, parents: Any, known: Any, best: Any) -> Any:
    """Fill `best` (rows: score, slot, holders, children) with the blocks that most pods share or most prompts continue; rows used.

    Only blocks where a shared prefix ends count: the next block is held by fewer, or several different blocks follow.
    """
    stride = np.int64(words[H_STRIDE])
    table = np.int64(words[H_TABLE])
    bitmap_words = np.int64(words[H_BITMAP_WORDS])
    slots = known.shape[0]
    children = np.zeros(slots, np.uint32)
    widest = np.zeros(slots, np.uint16)
    for slot in range(slots):
        if known[slot] == 1 and parents[slot] > 0:
            parent = np.int64(parents[slot]) - 1
            children[parent] += np.uint32(1)
            widest[parent] = max(widest[parent], np.uint16(_count(words, table + slot * stride + 1, bitmap_words)))
    used = 0
    for slot in range(slots):
        if known[slot] == 0:
            continue
        holders = _count(words, table + slot * stride + 1, bitmap_words)
        if not (children[slot] >= 2 or (holders >= 2 and np.int64(widest[slot]) < holders)):
            continue
        score = holders * max(np.int64(children[slot]), 1)
        if used == best.shape[0] and score <= best[used - 1, 0]:
            continue
        row = used if used < best.shape[0] else used - 1
        used = min(used + 1, best.shape[0])
        while row > 0 and best[row - 1, 0] < score:
            best[row, :] = best[row - 1, :]
            row -= 1
        best[row, 0], best[row, 1], best[row, 2], best[row, 3] = score, slot, holders, children[slot]
    return used


@njit(types.void(_SLOTS, types.uint8[::1], types.int64[:, ::1], types.int64), cache=True, nogil=True)
def depths_of(parents: Any, known: Any, best: Any, rows: Any) -> None:
    """Replace each row's score by its depth: blocks from the prompt's beginning, as far as parents are known."""
    for row in range(rows):
        slot = best[row, 1]
        depth = 1
        while parents[slot] > 0 and known[np.int64(parents[slot]) - 1] == 1 and depth < known.shape[0]:
            slot = np.int64(parents[slot]) - 1
            depth += 1
        best[row, 0] = depth
