"""Our own key of a block: a chained 64-bit hash over (model, LoRA adapter, salt, block size, tokens), in plain Python.

Engine hashes differ between engines, versions and processes; this key does not, so it unites them. The kernels compute the same
(`kernels/hashing.py`); tests hold both to each other and to the xxhash library.

    start    = mix(mix(xxh64(model), block size), adapter)
    block_i  = xxh64(tokens_i as little-endian u32), mixed with the block's extra keys where it has any
    key_i    = mix(key_{i-1}, block_i), never 0
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Tokens = npt.NDArray[np.uint32]

MASK = 2**64 - 1
PRIME_1 = 0x9E3779B185EBCA87
PRIME_2 = 0xC2B2AE3D27D4EB4F
PRIME_3 = 0x165667B19E3779F9
PRIME_4 = 0x85EBCA77C2B2AE63
PRIME_5 = 0x27D4EB2F165667C5
MIX_1 = 0x9E3779B97F4A7C15
MIX_2 = 0xBF58476D1CE4E5B9
SEED = 0x6B76696E646578
ADAPTER_BY_NUMBER = 0xA4093822299F31D0
"""Old engines name a LoRA adapter by number only; number 3 is not the adapter that is called "3"."""
LEAF_NIL, LEAF_FALSE, LEAF_TRUE, LEAF_FLOAT, LEAF_EXTENSION = 3, 5, 7, 11, 13


def rotate(value: int, by: int) -> int:
    return ((value << by) | (value >> (64 - by))) & MASK


def mix(chain: int, value: int) -> int:
    """The serial step of a chain: cheap, since the block's own hash has done the heavy part."""
    mixed = ((chain ^ rotate(value, 27)) * MIX_1) & MASK
    mixed ^= mixed >> 32
    mixed = (mixed * MIX_2) & MASK
    mixed ^= mixed >> 29
    return (mixed + value) & MASK


def _round(lane: int) -> int:
    return (rotate((lane * PRIME_2) & MASK, 31) * PRIME_1) & MASK


def _accumulate(accumulator: int, lane: int) -> int:
    return (rotate((accumulator + lane * PRIME_2) & MASK, 31) * PRIME_1) & MASK


def _avalanche(value: int) -> int:
    value = ((value ^ (value >> 33)) * PRIME_2) & MASK
    value = ((value ^ (value >> 29)) * PRIME_3) & MASK
    return value ^ (value >> 32)


def xxh64(data: bytes, seed: int = SEED) -> int:
    """XXH64, equal to `xxhash.xxh64_intdigest(data, seed)`."""
    size, at = len(data), 0
    if size >= 32:
        lanes = [(seed + PRIME_1 + PRIME_2) & MASK, (seed + PRIME_2) & MASK, seed, (seed - PRIME_1) & MASK]
        while at + 32 <= size:
            for which in range(4):
                lanes[which] = _accumulate(lanes[which], int.from_bytes(data[at : at + 8], "little"))
                at += 8
        value = sum(rotate(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) & MASK
        for lane in lanes:
            value = ((value ^ _round(lane)) * PRIME_1 + PRIME_4) & MASK
    else:
        value = (seed + PRIME_5) & MASK
    value = (value + size) & MASK
    while at + 8 <= size:
        value = (rotate(value ^ _round(int.from_bytes(data[at : at + 8], "little")), 27) * PRIME_1 + PRIME_4) & MASK
        at += 8
    if at + 4 <= size:
        value = (rotate(value ^ (int.from_bytes(data[at : at + 4], "little") * PRIME_1) & MASK, 23) * PRIME_2 + PRIME_3) & MASK
        at += 4
    for byte in data[at:]:
        value = (rotate(value ^ (byte * PRIME_5) & MASK, 11) * PRIME_1) & MASK
    return _avalanche(value)


def model_seed(model: str) -> int:
    return xxh64(model.encode())


def adapter_hash(lora: str | int | None) -> int:
    """0 for the base model; by name where an engine gives one, else by number."""
    if not lora:
        return 0
    return mix(ADAPTER_BY_NUMBER, lora & MASK) if isinstance(lora, int) else text_hash(lora)


def text_hash(text: str) -> int:
    return xxh64(text.encode("utf-8", "surrogateescape"))


def chain_start(model: int, block_size: int, adapter: int = 0) -> int:
    """What the first block of a prompt is chained to; `model` is a `model_seed`."""
    return mix(mix(model, block_size), adapter)


def salt_hash(salt: str | None) -> int:
    """Contribution of a cache salt to the first block; the same as of an extra key with that text."""
    return mix(0, text_hash(salt)) if salt else 0


def extra_hash(extra: object, lora_name: str | None = None) -> int:
    """Contribution of a block's extra keys (multimodal ids, salt): every leaf in order, nesting ignored; 0 for none.

    The adapter's name is left out: engines repeat it here, and the chain's start has it already.
    """
    value = 0
    if extra is None:
        return value
    for leaf in _leaves(extra):
        if isinstance(leaf, str):
            if lora_name and leaf == lora_name:
                continue
            value = mix(value, text_hash(leaf))
        else:
            value = mix(value, _leaf_hash(leaf))
    return value


def _leaf_hash(leaf: object) -> int:
    if isinstance(leaf, bytes):
        return xxh64(leaf)
    if leaf is None:
        return LEAF_NIL
    if isinstance(leaf, bool):
        return LEAF_TRUE if leaf else LEAF_FALSE
    if isinstance(leaf, int):
        return leaf & MASK
    return LEAF_FLOAT if isinstance(leaf, float) else LEAF_EXTENSION


def _leaves(value: object) -> Iterable[object]:
    if isinstance(value, list | tuple):
        for element in value:
            yield from _leaves(element)
    elif isinstance(value, Mapping):
        for key, element in value.items():
            yield from _leaves(key)
            yield from _leaves(element)
    else:
        yield value


def block_hashes(tokens: Tokens, block_size: int) -> list[int]:
    """xxh64 of every whole block, all blocks side by side in numpy: a few hundred microseconds whatever the prompt's length."""
    blocks = len(tokens) // block_size
    if blocks == 0:
        return []
    rows = np.ascontiguousarray(tokens[: blocks * block_size].reshape(blocks, block_size)).astype(np.uint64)
    pairs = block_size // 2
    lanes = rows[:, 0 : pairs * 2 : 2] | (rows[:, 1 : pairs * 2 : 2] << np.uint64(32))
    with np.errstate(over="ignore"):
        return [int(value) for value in _xxh64_rows(lanes, rows[:, -1] if block_size % 2 else None, block_size * 4)]


def _rotate_rows(values: Words, by: int) -> Words:
    return (values << np.uint64(by)) | (values >> np.uint64(64 - by))


def _xxh64_rows(lanes: Words, last: Words | None, size: int) -> Words:
    p1, p2, p3, p4 = (np.uint64(prime) for prime in (PRIME_1, PRIME_2, PRIME_3, PRIME_4))
    count, width = lanes.shape
    at = 0
    if width >= 4:
        starts = (SEED + PRIME_1 + PRIME_2, SEED + PRIME_2, SEED, SEED - PRIME_1)
        states = [np.full(count, start & MASK, np.uint64) for start in starts]
        while at + 4 <= width:
            states = [_rotate_rows(state + lanes[:, at + which] * p2, 31) * p1 for which, state in enumerate(states)]
            at += 4
        value = _rotate_rows(states[0], 1) + _rotate_rows(states[1], 7) + _rotate_rows(states[2], 12) + _rotate_rows(states[3], 18)
        for state in states:
            value = (value ^ (_rotate_rows(state * p2, 31) * p1)) * p1 + p4
    else:
        value = np.full(count, (SEED + PRIME_5) & MASK, np.uint64)
    value = value + np.uint64(size)
    while at < width:
        value = _rotate_rows(value ^ (_rotate_rows(lanes[:, at] * p2, 31) * p1), 27) * p1 + p4
        at += 1
    if last is not None:
        value = _rotate_rows(value ^ (last * p1), 23) * p2 + p3
    value = (value ^ (value >> np.uint64(33))) * p2
    value = (value ^ (value >> np.uint64(29))) * p3
    return value ^ (value >> np.uint64(32))


def chain_keys(tokens: Tokens, block_size: int, start: int, first_extra: int = 0) -> list[int]:
    """Keys of every whole block of a prompt."""
    keys = []
    key = start
    for at, block in enumerate(block_hashes(tokens, block_size)):
        key = mix(key, mix(first_extra, block) if first_extra and at == 0 else block) or 1
        keys.append(key)
    return keys
