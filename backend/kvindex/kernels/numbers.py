"""Token ids from JSON text to numbers without a Python object a token: a 128,000-token prompt is 128,000 ints otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

__all__ = ["parse_numbers"]

_LIMIT = np.int64(2**32)


@njit
def _after_blanks(data: Any, at: Any) -> Any:
    while at < data.shape[0] and (data[at] == 32 or data[at] == 10 or data[at] == 13 or data[at] == 9):
        at += 1
    return at


@njit(types.int64(types.Array(types.uint8, 1, "C", readonly=True), types.uint32[::1]), cache=True, nogil=True)
def parse_numbers(data: Any, numbers: Any) -> Any:
    """Read `[1, 2, 3]` into `numbers`; how many, or -1 - position of the first byte that is not as it must be.

    `numbers` must have room for one number every two bytes.
    """
    size = data.shape[0]
    at = _after_blanks(data, 0)
    if at >= size or data[at] != 91:
        return -1 - at
    at = _after_blanks(data, at + 1)
    count = 0
    if at < size and data[at] == 93:
        at = _after_blanks(data, at + 1)
        return 0 if at == size else -1 - at
    while at < size:
        start = at
        value = np.int64(0)
        while at < size and 48 <= data[at] <= 57:
            value = value * 10 + np.int64(data[at]) - 48
            if value >= _LIMIT:
                return -1 - start
            at += 1
        if at == start or (data[start] == 48 and at > start + 1):
            return -1 - start
        numbers[count] = np.uint32(value)
        count += 1
        at = _after_blanks(data, at)
        if at < size and data[at] == 44:
            at = _after_blanks(data, at + 1)
        elif at < size and data[at] == 93:
            at = _after_blanks(data, at + 1)
            return count if at == size else -1 - at
        else:
            return -1 - at
    return -1 - at
