"""Token ids from the JSON text of a request's body to an array, without a Python object a token."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from backend.kvindex import kernels

_decoder = msgspec.json.Decoder(list[int])
_PROBLEM = "not a JSON list of token ids (whole numbers from 0 to 2**32 - 1)"


def parse_token_array(text: bytes, start: int = 0, end: int | None = None) -> npt.NDArray[np.uint32]:
    """`b"[1, 2, 3]"` as uint32; `text[start:end]` of a longer text. Raises ValueError for anything but a list of whole numbers from 0
    to 2**32 - 1."""
    end = len(text) if end is None else end
    if not kernels.ready():
        return _parse_plainly(text[start:end])
    numbers = np.empty((end - start) // 2 + 1, np.uint32)
    count = kernels.load().parse_numbers(text, start, end, numbers)
    if count < 0:
        raise bad_byte(count, start)
    return numbers[:count]


def bad_byte(count: int, start: int) -> ValueError:
    """What to raise when a kernel answered -1 - position instead of a count."""
    return ValueError(f"{_PROBLEM}: see byte {-1 - count - start}")


def _parse_plainly(text: bytes) -> npt.NDArray[np.uint32]:
    try:
        numbers = _decoder.decode(text)
        # msgspec takes 1.0 and 1e2 for whole numbers, the kernel and the engines do not
        if any(byte in text for byte in b"-.eE"):
            raise ValueError(_PROBLEM)
        return np.array(numbers, np.uint32)
    except (msgspec.DecodeError, msgspec.ValidationError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"{_PROBLEM}: {error}") from error
