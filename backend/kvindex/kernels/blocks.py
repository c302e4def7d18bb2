"""Blocks of one owner in and out of the table, with what the writer keeps beside it: engine hashes and second copies.

Order within a slot: the key first, then the owner's bit. A reader that sees the key without the bit sees a block that is about to be
stored. Room has been made by the caller.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from backend.kvindex import cursor as c
from backend.kvindex.kernels.hashing import next_key, xxh64_tokens
from backend.kvindex.kernels.private import find, home, label_key, put, remove
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
    M_USED,
    MAP_HEAD,
    O_BLOCKS,
    O_REMOVED,
    O_STORED,
    OWNER_WORDS,
)

_ZERO, _ONE = np.uint64(0), np.uint64(1)
_S32, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
_RUN = 256


@njit
def _take_copy(words: Any, base: Any, bitmap_words: Any, owner: Any, directory: Any) -> None:
    """Clear the owner's bit of the slot whose bitmap begins at `base`; it is known to be set."""
    words[base + (owner >> 6)] &= ~(_ONE << (np.uint64(owner) & np.uint64(63)))
    words[H_COPIES] -= _ONE
    words[directory + O_BLOCKS] -= _ONE
    for word in range(bitmap_words):
        if words[base + word] != _ZERO:
            return
    words[H_DISTINCT] -= _ONE


@njit
def _count_copy(copies: Any, slot: Any) -> None:
    """One more copy of a block that the owner holds already."""
    index = find(copies, np.uint64(slot + 1))
    if index < 0:
        put(copies, np.uint64(slot + 1), _ONE)
    else:
        copies[index + 1] += _ONE


@njit
def _hold_blocks(words: Any, owner: Any, directory: Any, copies: Any, keys: Any, count: Any) -> None:
    """Give the owner `keys[:count]`, making slots for new blocks; the keys are replaced by the slots.

    Counters are kept in registers: a counter in memory a block would be a chain of stores and loads through the whole loop.
    """
    mask = np.int64(words[H_SLOTS]) - 1
    stride = np.int64(words[H_STRIDE])
    table = np.int64(words[H_TABLE])
    bitmap_words = np.int64(words[H_BITMAP_WORDS])
    bit = _ONE << (np.uint64(owner) & np.uint64(63))
    offset = 1 + (owner >> 6)
    made, given, fresh = 0, 0, 0
    for which in range(count):
        key = keys[which]
        slot = home(key, mask)
        there = words[table + slot * stride]
        while there != key and there != _ZERO:
            slot = (slot + 1) & mask
            there = words[table + slot * stride]
        base = table + slot * stride
        if there == _ZERO:
            words[base] = key
            made += 1
        before = words[base + offset]
        if before & bit != _ZERO:
            _count_copy(copies, slot)
        else:
            given += 1
            union = before
            if bitmap_words > 1:
                for word in range(bitmap_words):
                    union |= words[base + 1 + word]
            if union == _ZERO:
                fresh += 1
            words[base + offset] = before | bit
        keys[which] = np.uint64(slot)
    words[H_USED] += np.uint64(made)
    words[H_COPIES] += np.uint64(given)
    words[H_DISTINCT] += np.uint64(fresh)
    words[directory + O_BLOCKS] += np.uint64(given)


@njit
def _label_blocks(labels: Any, hashes: Any, start: Any, slots: Any, count: Any, parent: Any) -> Any:
    """Note under which engine hashes the owner knows `slots[:count]`; the last one plus 1, as the next block's parent."""
    mask = np.int64(labels[M_SLOTS]) - 1
    made = 0
    for which in range(count):
        key = label_key(hashes[start + which])
        at = home(key, mask)
        there = labels[MAP_HEAD + 2 * at]
        while there != key and there != _ZERO:
            at = (at + 1) & mask
            there = labels[MAP_HEAD + 2 * at]
        if there == _ZERO:
            labels[MAP_HEAD + 2 * at] = key
            made += 1
        labels[MAP_HEAD + 2 * at + 1] = (parent << _S32) | slots[which]
        parent = slots[which] + _ONE
    labels[M_USED] += np.uint64(made)
    return parent


@njit
def store_blocks(
    words: Any,
    labels: Any,
    copies: Any,
    owner: Any,
    parent: Any,
    chain: Any,
    hashes: Any,
    tokens: Any,
    extras: Any,
    size: Any,
    count: Any,
) -> None:
    """Chain, table and labels in three passes a run: misses of one pass overlap, which is worth a factor of six."""
    directory = np.int64(words[H_DIRECTORY]) + owner * OWNER_WORDS
    keys = np.empty(_RUN, np.uint64)
    before = np.uint64(parent)
    for start in range(0, count, _RUN):
        run = min(_RUN, count - start)
        for which in range(run):
            at = start + which
            chain = next_key(chain, xxh64_tokens(tokens, at * size, size), extras[at] if extras.shape[0] > 0 else _ZERO)
            keys[which] = chain
        _hold_blocks(words, owner, directory, copies, keys, run)
        before = _label_blocks(labels, hashes, start, keys, run, before)
    words[directory + O_STORED] += np.uint64(count)


@njit
def remove_blocks(words: Any, labels: Any, copies: Any, owner: Any, holders: Any, hashes: Any, count: Any, cursor: Any) -> None:
    """Take one copy of each block from the owner; a label goes with the last copy that any of its domain's `holders` had."""
    stride = np.int64(words[H_STRIDE])
    table = np.int64(words[H_TABLE])
    bitmap_words = np.int64(words[H_BITMAP_WORDS])
    directory = np.int64(words[H_DIRECTORY]) + owner * OWNER_WORDS
    bit = _ONE << (np.uint64(owner) & np.uint64(63))
    removed = 0
    for which in range(count):
        label = find(labels, label_key(hashes[which]))
        if label < 0:
            cursor[c.C_UNKNOWN] += 1
            continue
        slot = labels[label + 1] & _LOW
        base = table + np.int64(slot) * stride + 1
        if words[base + (owner >> 6)] & bit == _ZERO:
            cursor[c.C_UNKNOWN] += 1
            continue
        removed += 1
        if copies[M_USED] != _ZERO:
            further = find(copies, slot + _ONE)
            if further >= 0:
                copies[further + 1] -= _ONE
                if copies[further + 1] == _ZERO:
                    remove(copies, further)
                continue
        _take_copy(words, base, bitmap_words, owner, directory)
        held = False
        for word in range(bitmap_words):
            if words[base + word] & holders[word] != _ZERO:
                held = True
        if not held:
            remove(labels, label)
    cursor[c.C_REMOVED] += removed
    words[directory + O_REMOVED] += np.uint64(removed)
