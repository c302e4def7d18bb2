"""Token ids from JSON text to numbers without a Python object a token: a 128,000-token prompt is 128,000 ints otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

__all__ = ["parse_numbers"]

TEXT = types.Bytes(types.uint8, 1, "C", readonly=True)
"""A Python bytes object, read where it lies."""
_MOST = np.uint64(2**32 - 1)
_ZERO, _ONE, _NINE, _TEN, _ZERO_DIGIT = (np.uint64(value) for value in (0, 1, 9, 10, 48))
_COMMA, _OPEN, _CLOSE = 44, 91, 93


@njit
def _is_blank(byte: Any) -> Any:
    return byte == 32 or byte == 10 or byte == 13 or byte == 9


@njit
def _after_blanks(text: Any, at: Any, last: Any) -> Any:
    while at < last and _is_blank(text[at]):
        at += _ONE
    return at


@njit
def read_numbers(text: Any, start: Any, end: Any, numbers: Any) -> Any:
    """Read the JSON array `text[start:end]`, as `[1, 2, 3]`, into `numbers`; how many, or -1 - position of the first byte that is not
    as it must be. `numbers` must have room for one number every two bytes. The bounds are the caller's word.

    The last byte that counts is known to be a bracket before the first number is read, so the digits need no bounds. Positions are
    unsigned: a signed one would be looked at for being negative, at each byte.
    """
    if end - start < 2:
        return -1 - start
    at, last = np.uint64(start), np.uint64(end - 1)
    while last > at and _is_blank(text[last]):
        last -= _ONE
    at = _after_blanks(text, at, last)
    if last == at or text[at] != _OPEN or text[last] != _CLOSE:
        return -1 - np.int64(at)
    at = _after_blanks(text, at + _ONE, last)
    if at == last:
        return np.int64(0)
    count = _ZERO
    while True:
        first = at
        value = np.uint64(text[at]) - _ZERO_DIGIT
        if value > _NINE:
            return -1 - np.int64(at)
        at += _ONE
        digit = np.uint64(text[at]) - _ZERO_DIGIT
        while digit <= _NINE:
            value = value * _TEN + digit
            at += _ONE
            digit = np.uint64(text[at]) - _ZERO_DIGIT
        length = at - first
        if length > _TEN or value > _MOST or (text[first] == 48 and length > _ONE):
            return -1 - np.int64(first)
        numbers[count] = np.uint32(value)
        count += _ONE
        if text[at] != _COMMA:
            at = _after_blanks(text, at, last)
            if at == last:
                return np.int64(count)
            if text[at] != _COMMA:
                return -1 - np.int64(at)
        at += _ONE
        if _is_blank(text[at]):
            at = _after_blanks(text, at, last)


@njit(types.int64(TEXT, types.int64, types.int64, types.uint32[::1]), cache=True, nogil=True)
def parse_numbers(text: Any, start: Any, end: Any, numbers: Any) -> Any:
    """`read_numbers` for callers that only want the numbers."""
    return read_numbers(text, start, end, numbers)
