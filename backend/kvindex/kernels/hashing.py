"""Hashes inside kernels: XXH64 of a block's tokens and of short texts, and the chain's mixing step. Same values as `kvindex.hashing`.

Helpers without signatures: they are compiled into the kernels that call them, which carry the signatures. Everything is uint64: one
int64 among them would turn a product into a float.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from backend.kvindex import hashing

_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(prime) for prime in (hashing.PRIME_1, hashing.PRIME_2, hashing.PRIME_3, hashing.PRIME_4, hashing.PRIME_5)
)
_MIX_1, _MIX_2 = np.uint64(hashing.MIX_1), np.uint64(hashing.MIX_2)
SEED = np.uint64(hashing.SEED)
_S1, _S7, _S8, _S11, _S12, _S18, _S23, _S27, _S29, _S31, _S32, _S33, _S64 = (
    np.uint64(by) for by in (1, 7, 8, 11, 12, 18, 23, 27, 29, 31, 32, 33, 64)
)
_ZERO, _ONE, _FOUR = np.uint64(0), np.uint64(1), np.uint64(4)


@njit
def rotate(value: Any, by: Any) -> Any:
    return (value << by) | (value >> (_S64 - by))


@njit
def mix(chain: Any, value: Any) -> Any:
    mixed = (chain ^ rotate(value, _S27)) * _MIX_1
    mixed ^= mixed >> _S32
    mixed *= _MIX_2
    mixed ^= mixed >> _S29
    return mixed + value


@njit
def _accumulate(accumulator: Any, lane: Any) -> Any:
    return rotate(accumulator + lane * _P2, _S31) * _P1


@njit
def _merge(value: Any, accumulator: Any) -> Any:
    return (value ^ _accumulate(_ZERO, accumulator)) * _P1 + _P4


@njit
def _avalanche(value: Any) -> Any:
    value = (value ^ (value >> _S33)) * _P2
    value = (value ^ (value >> _S29)) * _P3
    return value ^ (value >> _S32)


@njit
def _token_lane(tokens: Any, at: Any) -> Any:
    return np.uint64(tokens[at]) | (np.uint64(tokens[at + 1]) << _S32)


@njit
def xxh64_tokens(tokens: Any, start: Any, count: Any) -> Any:
    """XXH64 of `count` tokens as little-endian u32, from `tokens[start]` on. The caller has checked the bounds."""
    at = start
    end = start + count
    if count >= 8:
        lane_1 = SEED + _P1 + _P2
        lane_2 = SEED + _P2
        lane_3 = SEED
        lane_4 = SEED - _P1
        while at + 8 <= end:
            lane_1 = _accumulate(lane_1, _token_lane(tokens, at))
            lane_2 = _accumulate(lane_2, _token_lane(tokens, at + 2))
            lane_3 = _accumulate(lane_3, _token_lane(tokens, at + 4))
            lane_4 = _accumulate(lane_4, _token_lane(tokens, at + 6))
            at += 8
        value = rotate(lane_1, _S1) + rotate(lane_2, _S7) + rotate(lane_3, _S12) + rotate(lane_4, _S18)
        value = _merge(_merge(_merge(_merge(value, lane_1), lane_2), lane_3), lane_4)
    else:
        value = SEED + _P5
    value += np.uint64(count) * _FOUR
    while at + 2 <= end:
        value = rotate(value ^ _accumulate(_ZERO, _token_lane(tokens, at)), _S27) * _P1 + _P4
        at += 2
    if at < end:
        value = rotate(value ^ (np.uint64(tokens[at]) * _P1), _S23) * _P2 + _P3
    return _avalanche(value)


@njit
def _byte_lane(data: Any, at: Any, width: Any) -> Any:
    lane = _ZERO
    for which in range(width):
        lane |= np.uint64(data[at + which]) << (np.uint64(which) * _S8)
    return lane


@njit
def xxh64_bytes(data: Any, start: Any, count: Any) -> Any:
    """XXH64 of `count` bytes from `data[start]` on: names and salts, so simple rather than fast."""
    at = start
    end = start + count
    if count >= 32:
        lane_1 = SEED + _P1 + _P2
        lane_2 = SEED + _P2
        lane_3 = SEED
        lane_4 = SEED - _P1
        while at + 32 <= end:
            lane_1 = _accumulate(lane_1, _byte_lane(data, at, 8))
            lane_2 = _accumulate(lane_2, _byte_lane(data, at + 8, 8))
            lane_3 = _accumulate(lane_3, _byte_lane(data, at + 16, 8))
            lane_4 = _accumulate(lane_4, _byte_lane(data, at + 24, 8))
            at += 32
        value = rotate(lane_1, _S1) + rotate(lane_2, _S7) + rotate(lane_3, _S12) + rotate(lane_4, _S18)
        value = _merge(_merge(_merge(_merge(value, lane_1), lane_2), lane_3), lane_4)
    else:
        value = SEED + _P5
    value += np.uint64(count)
    while at + 8 <= end:
        value = rotate(value ^ _accumulate(_ZERO, _byte_lane(data, at, 8)), _S27) * _P1 + _P4
        at += 8
    if at + 4 <= end:
        value = rotate(value ^ (_byte_lane(data, at, 4) * _P1), _S23) * _P2 + _P3
        at += 4
    while at < end:
        value = rotate(value ^ (np.uint64(data[at]) * _P5), _S11) * _P1
        at += 1
    return _avalanche(value)


@njit
def next_key(chain: Any, block: Any, extra: Any) -> Any:
    """Key of a block from its predecessor's key. Never 0, which marks an empty slot."""
    key = mix(chain, block if extra == _ZERO else mix(extra, block))
    return key if key != _ZERO else _ONE
