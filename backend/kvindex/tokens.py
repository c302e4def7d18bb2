"""Token ids from the JSON text of a request's body to an array, without a Python object a token."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from backend.kvindex import kernels

_decoder = msgspec.json.Decoder(list[int])
_PROBLEM = "not a JSON list of token ids (whole numbers from 0 to 2**32 - 1)"


def parse_token_array(raw: bytes | memoryview) -> npt.NDArray[np.uint32]:
    """`b"[1, 2, 3]"` as uint32. Raises ValueError for anything but a list of whole numbers from 0 to 2**32 - 1."""
    if not kernels.ready():
        return _parse_plainly(raw)
    data = np.frombuffer(raw, np.uint8)
    numbers = np.empty(len(data) // 2 + 1, np.uint32)
    count = kernels.load().parse_numbers(data, numbers)
    if count < 0:
        raise ValueError(f"{_PROBLEM}: see byte {-1 - count}")
    return numbers[:count]


def _parse_plainly(raw: bytes | memoryview) -> npt.NDArray[np.uint32]:
    text = bytes(raw)
    try:
        numbers = _decoder.decode(text)
        # msgspec takes 1.0 and 1e2 for whole numbers, the kernel and the engines do not
        if any(byte in text for byte in b"-.eE"):
            raise ValueError(_PROBLEM)
        return np.array(numbers, np.uint32)
    except (msgspec.DecodeError, msgspec.ValidationError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"{_PROBLEM}: {error}") from error
