"""The index in plain Python: what serves while the kernels are being compiled, and the reference that the kernels are tested against.

Works on the same words and the same private maps as the kernels, so that one can take over from the other between two calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from backend.kvindex import hashing
from backend.kvindex import layout as at

Tokens = npt.NDArray[np.uint32]
_RUN = 32


def home(key: int, mask: int) -> int:
    return (((key * hashing.MIX_1) & hashing.MASK) >> 32) & mask


def find_block(words: memoryview, key: int) -> int:
    """Index of a block's key word, or -1."""
    mask, stride, table = words[at.H_SLOTS] - 1, words[at.H_STRIDE], words[at.H_TABLE]
    slot = home(key, mask)
    while True:
        index: int = table + slot * stride
        there = words[index]
        if there == key:
            return index
        if there == 0:
            return -1
        slot = (slot + 1) & mask


def bitmap(words: memoryview, index: int) -> int:
    """Owners of the block whose key word is at `index`, as one number."""
    value = 0
    for word in range(words[at.H_BITMAP_WORDS]):
        value |= words[index + 1 + word] << (64 * word)
    return value


def match_prompt(words: memoryview, tokens: Tokens, groups: Any, first_extra: int, pod_of_owner: Any, matched: Any) -> None:
    """As the kernel of this name: set `matched[pod]` to the tokens that the pod holds from the prompt's beginning on."""
    matched[:] = 0
    for group, (size, start, *owners) in enumerate(groups.tolist()):
        _match_group(words, tokens, size, start, first_extra, owners, pod_of_owner[group], matched)


def _match_group(
    words: memoryview, tokens: Tokens, block_size: int, start: int, first_extra: int, owners: list[int], pod_of_owner: Any, matched: Any
) -> None:
    active = sum(word << (64 * which) for which, word in enumerate(owners))
    blocks = len(tokens) // block_size
    chain, walked = start, 0
    while walked < blocks and active:
        run = hashing.block_hashes(tokens[walked * block_size : (walked + _RUN) * block_size], block_size)
        for block in run:
            chain = hashing.mix(chain, hashing.mix(first_extra, block) if first_extra and walked == 0 else block) or 1
            index = find_block(words, chain)
            held = active & bitmap(words, index) if index >= 0 else 0
            _settle(active & ~held, walked * block_size, pod_of_owner, matched)
            active = held
            if not active:
                return
            walked += 1
    _settle(active, walked * block_size, pod_of_owner, matched)


def _settle(leaving: int, tokens: int, pod_of_owner: Any, matched: Any) -> None:
    while leaving:
        owner = (leaving & -leaving).bit_length() - 1
        pod = pod_of_owner[owner]
        if pod >= 0 and matched[pod] < tokens:
            matched[pod] = tokens
        leaving &= leaving - 1


# -- the writer's private maps, as kernels/private.py


def find(entries: memoryview, key: int) -> int:
    mask = entries[at.M_SLOTS] - 1
    place = home(key, mask)
    while True:
        index: int = at.MAP_HEAD + 2 * place
        there = entries[index]
        if there == key:
            return index
        if there == 0:
            return -1
        place = (place + 1) & mask


def put(entries: memoryview, key: int, value: int) -> None:
    mask = entries[at.M_SLOTS] - 1
    place = home(key, mask)
    while entries[at.MAP_HEAD + 2 * place] not in (0, key):
        place = (place + 1) & mask
    index = at.MAP_HEAD + 2 * place
    if entries[index] == 0:
        entries[index] = key
        entries[at.M_USED] += 1
    entries[index + 1] = value


def remove(entries: memoryview, index: int) -> None:
    mask = entries[at.M_SLOTS] - 1
    gap = place = (index - at.MAP_HEAD) // 2
    while True:
        place = (place + 1) & mask
        key = entries[at.MAP_HEAD + 2 * place]
        if key == 0:
            break
        if ((place - home(key, mask)) & mask) >= ((place - gap) & mask):
            entries[at.MAP_HEAD + 2 * gap] = key
            entries[at.MAP_HEAD + 2 * gap + 1] = entries[at.MAP_HEAD + 2 * place + 1]
            gap = place
    entries[at.MAP_HEAD + 2 * gap] = 0
    entries[at.MAP_HEAD + 2 * gap + 1] = 0
    entries[at.M_USED] -= 1


def label_key(engine_hash: int) -> int:
    return engine_hash or hashing.MIX_1
