"""msgpack for messages that a strict decoder refuses as a whole: cut off, nested too deeply, text that is no UTF-8, odd map keys.

Slow and only for such messages. Walks without recursion as the kernels do, so that what can be saved of a message is the same for both.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from backend.core.errors import WireError

TRUNCATED: Final = object()
"""Stands for the event at which a message breaks off."""
UNREADABLE: Final = object()
"""Stands for a value nested too deeply: no field of ours is."""
_DEEPEST = 32
_FIXED = {
    **dict.fromkeys((0xCC, 0xD0), 1),
    **dict.fromkeys((0xCD, 0xD1, 0xD4), 2),
    0xD5: 3,
    **dict.fromkeys((0xCA, 0xCE, 0xD2), 4),
    0xD6: 5,
    **dict.fromkeys((0xCB, 0xCF, 0xD3), 8),
    0xD7: 9,
    0xD8: 17,
}
_LENGTH_WIDTH = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4}
_COUNT_WIDTH = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}


class _CutOff(Exception):
    """The buffer ends inside a value, or the bytes are no msgpack."""


def decode_batch(payload: bytes) -> object:
    """The message as far as it can be read: `[timestamp, events, rank]` with TRUNCATED where it breaks off."""
    try:
        count, at, is_map = _container(payload, 0)
        if is_map:
            events_at = _events_of_map(payload, count, at)
            return {"events": _events(payload, events_at)}
        if count < 2:
            raise WireError("not_a_batch")
        events_at = skip(payload, at)
        timestamp = _value(payload, at)
        events = _events(payload, events_at)
        rank = _rank(payload, events_at) if count > 2 else None
    except _CutOff as error:
        raise WireError("not_a_batch") from error
    return [timestamp, events, rank]


def skip(data: bytes, at: int) -> int:
    """Position behind the value at `at`."""
    left = 1
    while left:
        at, inside = _step(data, at)
        left += inside - 1
    return at


def _events(data: bytes, at: int) -> list[object]:
    count, at, is_map = _container(data, at)
    if is_map:
        raise _CutOff
    events: list[object] = []
    for _ in range(count):
        try:
            behind = skip(data, at)
        except _CutOff:
            events.append(TRUNCATED)
            break
        events.append(_value(data, at))
        at = behind
    return events


def _rank(data: bytes, events_at: int) -> object:
    try:
        return _value(data, skip(data, events_at))
    except _CutOff:
        return None


def _events_of_map(data: bytes, pairs: int, at: int) -> int:
    """Position of the last value under the key `events`, as far as the map can be read."""
    found = -1
    try:
        for _ in range(pairs):
            key = _value(data, at)
            at = skip(data, at)
            if key == "events":
                found = at
            at = skip(data, at)
    except _CutOff:
        pass
    if found < 0:
        raise _CutOff
    return found


def _number(data: bytes, at: int, width: int) -> int:
    if at + width > len(data):
        raise _CutOff
    return int.from_bytes(data[at : at + width], "big")


def _container(data: bytes, at: int) -> tuple[int, int, bool]:
    """(elements or pairs, position of the first, is a map)."""
    if at >= len(data):
        raise _CutOff
    first = data[at]
    if 0x80 <= first <= 0x9F:
        return first & 15, at + 1, first < 0x90
    width = _COUNT_WIDTH.get(first)
    if width is None:
        raise _CutOff
    return _number(data, at + 1, width), at + 1 + width, first >= 0xDE


def _step(data: bytes, at: int) -> tuple[int, int]:
    """(position behind a value's own bytes, values inside it)."""
    if at >= len(data):
        raise _CutOff
    first = data[at]
    inside = 0
    if first <= 0x7F or first >= 0xE0 or first in (0xC0, 0xC2, 0xC3):
        behind = at + 1
    elif 0xA0 <= first <= 0xBF:
        behind = at + 1 + (first & 31)
    elif first in _FIXED:
        behind = at + 1 + _FIXED[first]
    elif first in _LENGTH_WIDTH:
        width = _LENGTH_WIDTH[first]
        behind = at + 1 + width + _number(data, at + 1, width) + (1 if 0xC7 <= first <= 0xC9 else 0)
    else:
        inside, behind, is_map = _container(data, at)
        inside *= 2 if is_map else 1
    if behind > len(data):
        raise _CutOff
    return behind, inside


def _value(data: bytes, at: int, depth: int = 0) -> object:
    """The value at `at`; texts keep bytes that are no UTF-8, maps keep keys that are texts."""
    behind, _ = _step(data, at)
    first = data[at]
    if 0x80 <= first <= 0x9F or first in _COUNT_WIDTH:
        return _nested(data, at, depth) if depth < _DEEPEST else UNREADABLE
    if 0xA0 <= first <= 0xBF or first in (0xD9, 0xDA, 0xDB):
        start = at + 1 + (_LENGTH_WIDTH[first] if first > 0xBF else 0)
        return data[start:behind].decode("utf-8", "surrogateescape")
    if 0xC7 <= first <= 0xC9 or 0xD4 <= first <= 0xD8:
        return UNREADABLE
    try:
        return msgspec.msgpack.decode(data[at:behind])
    except (msgspec.DecodeError, struct.error) as error:
        raise _CutOff from error


def _nested(data: bytes, at: int, depth: int) -> object:
    count, at, is_map = _container(data, at)
    if not is_map:
        elements = []
        for _ in range(count):
            elements.append(_value(data, at, depth + 1))
            at = skip(data, at)
        return elements
    pairs: dict[object, object] = {}
    for _ in range(count):
        key = _value(data, at, depth + 1)
        at = skip(data, at)
        value = _value(data, at, depth + 1)
        at = skip(data, at)
        if isinstance(key, str):
            pairs[key] = value
    return pairs
