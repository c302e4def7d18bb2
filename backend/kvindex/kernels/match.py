"""The longest cached prefix of a prompt for every pod, read from the shared table without a lock.

Keys are hashed in short runs and then looked up, so that cache misses of a run overlap while a prompt that nobody holds costs one run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.cpython.unsafe.numbers import trailing_zeros

from backend.kvindex.kernels.hashing import next_key, xxh64_tokens
from backend.kvindex.kernels.numbers import TEXT, read_numbers
from backend.kvindex.kernels.private import home
from backend.kvindex.layout import H_BITMAP_WORDS, H_SLOTS, H_STRIDE, H_TABLE

__all__ = ["hash_prompt", "match_prompt", "match_text"]

_ZERO, _ONE = np.uint64(0), np.uint64(1)
_RUN = 64
_FIRST_RUN = 8

_READ_WORDS = types.Array(types.uint64, 1, "C", readonly=True)
_READ_TOKENS = types.Array(types.uint32, 1, "C", readonly=True)
_WORDS = types.uint64[::1]
_ASKED = (types.uint64[:, ::1], types.uint64, types.int32[:, ::1], types.int64[::1])
"""groups, first_extra, pod_of_owner, matched: see `match_prompt`."""


@njit
def find_block(words: Any, table: Any, stride: Any, mask: Any, key: Any) -> Any:
    """Index of a block's key word, or -1. The load of one half bounds the walk, a garbled header does not happen: see `reader`."""
    at = home(key, mask)
    while True:
        index = table + at * stride
        there = words[index]
        if there == key:
            return index
        if there == _ZERO:
            return -1
        at = (at + 1) & mask


@njit
def _settle(leaving: Any, first_owner: Any, tokens: Any, pod_of_owner: Any, matched: Any) -> None:
    """Owners that leave the race at this block: their pods get at least what they matched so far."""
    while leaving != _ZERO:
        pod = pod_of_owner[first_owner + np.int64(trailing_zeros(leaving))]
        if pod >= 0 and matched[pod] < tokens:
            matched[pod] = tokens
        leaving &= leaving - _ONE


@njit
def _match_group(
    words: Any, tokens: Any, block_size: Any, start: Any, first_extra: Any, owners: Any, pod_of_owner: Any, matched: Any
) -> None:
    """Raise `matched[pod]` to the tokens that one of the pod's `owners` (a bitmap) holds from the beginning on."""
    mask = np.int64(words[H_SLOTS]) - 1
    stride = np.int64(words[H_STRIDE])
    table = np.int64(words[H_TABLE])
    bitmap_words = np.int64(words[H_BITMAP_WORDS])
    blocks = tokens.shape[0] // block_size
    keys = np.empty(_RUN, np.uint64)
    active = owners.copy()
    chain = start
    at = 0
    run = _FIRST_RUN
    alive = True
    while at < blocks and alive:
        count = min(run, blocks - at)
        for which in range(count):
            extra = first_extra if at + which == 0 else _ZERO
            chain = next_key(chain, xxh64_tokens(tokens, (at + which) * block_size, block_size), extra)
            keys[which] = chain
        for which in range(count):
            index = find_block(words, table, stride, mask, keys[which])
            if index < 0:
                alive = False
                break
            remaining = _ZERO
            for word in range(bitmap_words):
                before = active[word]
                if before != _ZERO:
                    now = before & words[index + 1 + word]
                    if now != before:
                        _settle(before ^ now, word * 64, at * block_size, pod_of_owner, matched)
                        active[word] = now
                    remaining |= now
            if remaining == _ZERO:
                alive = False
                break
            at += 1
        run = _RUN
    for word in range(bitmap_words):
        _settle(active[word], word * 64, at * block_size, pod_of_owner, matched)


@njit
def _match_groups(words: Any, tokens: Any, groups: Any, first_extra: Any, pod_of_owner: Any, matched: Any) -> None:
    matched[:] = 0
    for group in range(groups.shape[0]):
        size, start, owners = np.int64(groups[group, 0]), groups[group, 1], groups[group, 2:]
        _match_group(words, tokens, size, start, first_extra, owners, pod_of_owner[group], matched)


@njit(types.void(_READ_WORDS, _READ_TOKENS, *_ASKED), cache=True, nogil=True)
def match_prompt(words: Any, tokens: Any, groups: Any, first_extra: Any, pod_of_owner: Any, matched: Any) -> None:
    """Set `matched[pod]` to the tokens of the prompt that the pod holds from its beginning on.

    Owners of one block size are a group, a row of `groups`: the size, the start of the chain of keys, then a bitmap of the owners; and
    a row of `pod_of_owner`. `first_extra` is the hash of the salt, or 0.
    """
    _match_groups(words, tokens, groups, first_extra, pod_of_owner, matched)


@njit(types.int64(_READ_WORDS, TEXT, types.int64, types.int64, types.uint32[::1], *_ASKED), cache=True, nogil=True)
def match_text(
    words: Any, text: Any, start: Any, end: Any, numbers: Any, groups: Any, first_extra: Any, pod_of_owner: Any, matched: Any
) -> Any:
    """`match_prompt` for a prompt that stands as a JSON array in `text[start:end]`; its tokens, or `read_numbers`' complaint."""
    count = read_numbers(text, start, end, numbers)
    if count >= 0:
        _match_groups(words, numbers[:count], groups, first_extra, pod_of_owner, matched)
    return count


@njit(types.void(_READ_TOKENS, types.int64, types.uint64, types.uint64, _WORDS), cache=True, nogil=True)
def hash_prompt(tokens: Any, block_size: Any, start: Any, first_extra: Any, keys: Any) -> None:
    """Keys of the prompt's whole blocks into `keys`."""
    chain = start
    for block in range(keys.shape[0]):
        extra = first_extra if block == 0 else _ZERO
        chain = next_key(chain, xxh64_tokens(tokens, block * block_size, block_size), extra)
        keys[block] = chain
