"""Reading msgpack bytes inside kernels. Every reader is told where the buffer ends and answers position -1 rather than read past it.

Lengths come from whoever sends them, so each is compared with what is left before it is used. Nothing here recurses: containers only
add to the number of values still to be skipped, and each of those costs at least one byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from backend.kvindex import hashing
from backend.kvindex.kernels.hashing import mix, xxh64_bytes

ZERO, ONE = np.uint64(0), np.uint64(1)
_S8, _S32 = np.uint64(8), np.uint64(32)
_NIL, _FALSE, _TRUE, _FLOAT, _EXTENSION = (
    np.uint64(leaf) for leaf in (hashing.LEAF_NIL, hashing.LEAF_FALSE, hashing.LEAF_TRUE, hashing.LEAF_FLOAT, hashing.LEAF_EXTENSION)
)
_FNV_START, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)

FIXED = np.full(256, -1, np.int64)
"""Bytes of a value after its first, where the first alone says so; -1 where a length or a count follows."""
FIXED[0x00:0x80] = 0
FIXED[0xE0:0x100] = 0
FIXED[0xA0:0xC0] = np.arange(32)
FIXED[[0xC0, 0xC2, 0xC3]] = 0
FIXED[[0xCC, 0xD0]] = 1
FIXED[[0xCD, 0xD1, 0xD4]] = 2
FIXED[0xD5] = 3
FIXED[[0xCA, 0xCE, 0xD2]] = 4
FIXED[0xD6] = 5
FIXED[[0xCB, 0xCF, 0xD3]] = 8
FIXED[0xD7] = 9
FIXED[0xD8] = 17

TOKEN_WIDTH = np.full(256, 9, np.uint8)
"""Bytes after the first of an unsigned integer below 2**32; 9 for everything else."""
TOKEN_WIDTH[0x00:0x80] = 0
TOKEN_WIDTH[0xCC] = 1
TOKEN_WIDTH[0xCD] = 2
TOKEN_WIDTH[0xCE] = 4


def name_code_of(name: str) -> int:
    """The code that `name_code` gives for a field or event name."""
    code = int(_FNV_START)
    for byte in name.encode():
        code = ((code ^ byte) * int(_FNV_PRIME)) & hashing.MASK
    return code


@njit
def big_endian(data: Any, at: Any, width: Any) -> Any:
    value = ZERO
    for which in range(width):
        value = (value << _S8) | np.uint64(data[at + which])
    return value


@njit
def length_after(data: Any, at: Any, end: Any, width: Any) -> Any:
    """A length of `width` bytes behind the type byte at `at`; -1 when the buffer ends before it."""
    if at + 1 + width > end:
        return -1
    return np.int64(big_endian(data, at + 1, width))


@njit
def array_head(data: Any, at: Any, end: Any) -> Any:
    """(elements, position of the first); elements is -1 for anything but an array that the buffer could hold."""
    if at < 0 or at >= end:
        return -1, at
    first = data[at]
    count: Any = -1
    inside: Any = at + 1
    if 0x90 <= first <= 0x9F:
        count = np.int64(first & 15)
    elif first == 0xDC:
        count, inside = length_after(data, at, end, 2), at + 3
    elif first == 0xDD:
        count, inside = length_after(data, at, end, 4), at + 5
    return count, inside


@njit
def map_head(data: Any, at: Any, end: Any) -> Any:
    """(pairs, position of the first key); pairs is -1 for anything but a map."""
    if at < 0 or at >= end:
        return -1, at
    first = data[at]
    count: Any = -1
    inside: Any = at + 1
    if 0x80 <= first <= 0x8F:
        count = np.int64(first & 15)
    elif first == 0xDE:
        count, inside = length_after(data, at, end, 2), at + 3
    elif first == 0xDF:
        count, inside = length_after(data, at, end, 4), at + 5
    return count, inside


@njit
def text_span(data: Any, at: Any, end: Any) -> Any:
    """(start, length) of a text's bytes; length is -1 for anything else."""
    if at < 0 or at >= end:
        return at, -1
    first = data[at]
    start: Any = at + 1
    size: Any = -1
    if 0xA0 <= first <= 0xBF:
        size = np.int64(first & 31)
    elif first == 0xD9:
        start, size = at + 2, length_after(data, at, end, 1)
    elif first == 0xDA:
        start, size = at + 3, length_after(data, at, end, 2)
    elif first == 0xDB:
        start, size = at + 5, length_after(data, at, end, 4)
    if size > end - start:
        size = -1
    return start, size


@njit
def bytes_span(data: Any, at: Any, end: Any) -> Any:
    """(start, length) of binary data; length is -1 for anything else."""
    if at < 0 or at >= end:
        return at, -1
    first = data[at]
    start: Any = at + 1
    size: Any = -1
    if first == 0xC4:
        start, size = at + 2, length_after(data, at, end, 1)
    elif first == 0xC5:
        start, size = at + 3, length_after(data, at, end, 2)
    elif first == 0xC6:
        start, size = at + 5, length_after(data, at, end, 4)
    if size > end - start:
        size = -1
    return start, size


@njit
def _step(data: Any, at: Any, end: Any) -> Any:
    """(position behind a value's own bytes, values that it contains); position -1 when it is cut off or no msgpack."""
    first = data[at]
    fixed = FIXED[first]
    inside = 0
    if fixed >= 0:
        after = at + 1 + fixed
    elif first == 0xC4 or first == 0xD9:
        size = length_after(data, at, end, 1)
        after = at + 2 + size if size >= 0 else -1
    elif first == 0xC5 or first == 0xDA:
        size = length_after(data, at, end, 2)
        after = at + 3 + size if size >= 0 else -1
    elif first == 0xC6 or first == 0xDB:
        size = length_after(data, at, end, 4)
        after = at + 5 + size if size >= 0 else -1
    elif first == 0xC7 or first == 0xC8 or first == 0xC9:
        width = 1 if first == 0xC7 else 2 if first == 0xC8 else 4
        size = length_after(data, at, end, width)
        after = at + 2 + width + size if size >= 0 else -1
    else:
        inside, after = array_head(data, at, end)
        if inside < 0:
            inside, after = map_head(data, at, end)
            inside *= 2
        if inside < 0:
            after = -1
    if after > end:
        after = -1
    return after, inside


@njit
def skip(data: Any, at: Any, end: Any) -> Any:
    """Position behind the value at `at`, whatever it is; -1 when it is cut off or no msgpack."""
    left = 1
    while left > 0:
        if at < 0 or at >= end:
            return -1
        at, inside = _step(data, at, end)
        if at < 0:
            return -1
        left += inside - 1
    return at


@njit
def name_code(data: Any, at: Any, end: Any) -> Any:
    """A text as a number to compare names by; 0 for anything else."""
    start, size = text_span(data, at, end)
    if size < 0:
        return ZERO
    code = _FNV_START
    for which in range(size):
        code = (code ^ np.uint64(data[start + which])) * _FNV_PRIME
    return code


@njit
def read_integer(data: Any, at: Any, end: Any) -> Any:
    """(is one, is negative, value mod 2**64, position behind). Whole numbers only; booleans and floats are none."""
    first = data[at]
    if first <= 0x7F:
        return True, False, np.uint64(first), at + 1
    if first >= 0xE0:
        return True, True, np.uint64(np.int64(first) - 256), at + 1
    if first < 0xCC or first > 0xD3:
        return False, False, ZERO, at
    width = 1 << (np.int64(first) & 3)
    if at + 1 + width > end:
        return False, False, ZERO, at
    value = big_endian(data, at + 1, width)
    if first < 0xD0:
        return True, False, value, at + 1 + width
    negative = data[at + 1] >= 0x80
    if negative and width < 8:
        value |= ~ZERO << np.uint64(8 * width)
    return True, negative, value, at + 1 + width


@njit
def _hex_digit(byte: Any) -> Any:
    if 48 <= byte <= 57:
        return np.int64(byte) - 48
    if 97 <= byte <= 102:
        return np.int64(byte) - 87
    if 65 <= byte <= 70:
        return np.int64(byte) - 55
    return -1


@njit
def read_hash(data: Any, at: Any, end: Any) -> Any:
    """(is one, value mod 2**64, position behind): integers of either sign, big-endian bytes, hexadecimal text."""
    if at < 0 or at >= end:
        return False, ZERO, at
    whole, _, value, after = read_integer(data, at, end)
    if whole:
        return True, value, after
    start, size = bytes_span(data, at, end)
    if size > 0:
        kept = min(size, 8)
        return True, big_endian(data, start + size - kept, kept), start + size
    start, size = text_span(data, at, end)
    if size <= 0:
        return False, ZERO, at
    for which in range(size):
        digit = _hex_digit(data[start + which])
        if digit < 0:
            return False, ZERO, at
        value = (value << np.uint64(4)) | np.uint64(digit)
    return True, value, start + size


@njit
def fold_leaves(data: Any, at: Any, end: Any, adapter: Any) -> Any:
    """Hash of every leaf of the value at `at`, in order; texts that hash to `adapter` are left out. The value has been skipped once,
    so it is known to be whole."""
    folded = ZERO
    left = 1
    if data[at] == 0xC0:
        return folded
    while left > 0:
        after, inside = _step(data, at, end)
        first = data[at]
        start, size = text_span(data, at, end)
        if size >= 0:
            text = xxh64_bytes(data, start, size)
            if adapter == ZERO or text != adapter:
                folded = mix(folded, text)
        elif not _is_container(first):
            folded = mix(folded, _leaf_value(data, at, end))
        left += inside - 1
        at = after
    return folded


@njit
def _is_container(first: Any) -> Any:
    return 0x80 <= first <= 0x9F or 0xDC <= first <= 0xDF


@njit
def _leaf_value(data: Any, at: Any, end: Any) -> Any:
    first = data[at]
    whole, _, value, _ = read_integer(data, at, end)
    if whole:
        return value
    start, size = bytes_span(data, at, end)
    if size >= 0:
        return xxh64_bytes(data, start, size)
    if first == 0xC0:
        return _NIL
    if first == 0xC2:
        return _FALSE
    if first == 0xC3:
        return _TRUE
    return _FLOAT if first == 0xCA or first == 0xCB else _EXTENSION
