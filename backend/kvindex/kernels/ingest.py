"""From raw bytes of a KV-event publisher to the table, in one call for many messages. No Python object is made on this way.

Owns the rules of events: what is read, what is refused and why, what waits. Blocks themselves are `blocks`' business; there is one
writer, so nothing here is locked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from backend.kvindex import cursor as c
from backend.kvindex import hashing
from backend.kvindex.kernels import events as e
from backend.kvindex.kernels.blocks import remove_blocks, store_blocks
from backend.kvindex.kernels.hashing import mix, xxh64_bytes
from backend.kvindex.kernels.msgpack import (
    array_head,
    fold_leaves,
    map_head,
    name_code,
    name_code_of,
    read_hash,
    read_integer,
    skip,
    text_span,
)
from backend.kvindex.kernels.private import find, label_key
from backend.kvindex.layout import (
    H_DIRECTORY,
    H_DIRECTORY_VERSION,
    H_SLOTS,
    H_STRIDE,
    H_TABLE,
    H_USED,
    H_VERSION,
    M_SLOTS,
    M_USED,
    O_BLOCK_SIZE,
    O_IGNORED_GROUPS,
    OWNER_WORDS,
)

__all__ = ["ingest_messages"]

_ZERO, _ONE = np.uint64(0), np.uint64(1)
_LOW = np.uint64(0xFFFFFFFF)
_EVENTS, _CACHE_SALT = np.uint64(name_code_of("events")), np.uint64(name_code_of("cache_salt"))
_FULL, _MLA = np.uint64(name_code_of("full_attention")), np.uint64(name_code_of("mla_attention"))
_BY_NUMBER = np.uint64(hashing.ADAPTER_BY_NUMBER)

_WORDS = types.uint64[::1]
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_COUNTS = types.int64[::1]


@njit
def _group_bit(data: Any, end: Any, fields: Any) -> Any:
    """Bit of the event's KV-cache group; group 0 where it names none."""
    group = _ZERO
    if fields[e.F_GROUP] >= 0:
        whole, _, value, _ = read_integer(data, fields[e.F_GROUP], end)
        if whole:
            group = value & np.uint64(63)
    return _ONE << group


@njit
def _other_attention(data: Any, end: Any, fields: Any) -> Any:
    """Whether the event names a kind of cache that holds less than whole prefixes."""
    if fields[e.F_SPEC] < 0:
        return False
    code = name_code(data, fields[e.F_SPEC], end)
    return code != _ZERO and code != _FULL and code != _MLA


@njit
def _adapter(data: Any, end: Any, fields: Any) -> Any:
    """(adapter's hash, its name's hash): by name, else by number; 0 for the base model."""
    if fields[e.F_LORA_NAME] >= 0:
        start, size = text_span(data, fields[e.F_LORA_NAME], end)
        if size > 0:
            name = xxh64_bytes(data, start, size)
            return name, name
    if fields[e.F_LORA_ID] >= 0:
        whole, _, value, _ = read_integer(data, fields[e.F_LORA_ID], end)
        if whole and value != _ZERO:
            return mix(_BY_NUMBER, value), _ZERO
    return _ZERO, _ZERO


@njit
def _salt(data: Any, end: Any, fields: Any) -> Any:
    """Contribution of a salt that is a field of its own (SGLang), 0 without one."""
    at = fields[e.F_SALT]
    if at < 0 and fields[e.F_METADATA] >= 0:
        pairs, inside = map_head(data, fields[e.F_METADATA], end)
        for _ in range(pairs):
            code = name_code(data, inside, end)
            inside = skip(data, inside, end)
            if code == _CACHE_SALT:
                at = inside
            inside = skip(data, inside, end)
    if at < 0:
        return _ZERO
    start, size = text_span(data, at, end)
    return mix(_ZERO, xxh64_bytes(data, start, size)) if size > 0 else _ZERO


@njit
def _extras(data: Any, end: Any, fields: Any, adapter: Any, first_salt: Any, count: Any, extras: Any) -> Any:
    """Fill `extras` with a value for each block; False when there is nothing to say and `extras` is not touched."""
    elements, inside = -1, -1
    if fields[e.F_EXTRA] >= 0:
        elements, inside = array_head(data, fields[e.F_EXTRA], end)
    any_extra = first_salt != _ZERO
    for _ in range(min(elements, count)):
        if data[inside] != 0xC0:
            any_extra = True
            break
        inside += 1
    if not any_extra:
        return False
    extras[:count] = _ZERO
    if elements > 0:
        inside = array_head(data, fields[e.F_EXTRA], end)[1]
        for which in range(min(elements, count)):
            extras[which] = fold_leaves(data, inside, end, adapter)
            inside = skip(data, inside, end)
    if first_salt != _ZERO and extras[0] == _ZERO:
        extras[0] = first_salt
    return True


@njit
def _judge_stored(data: Any, end: Any, fields: Any) -> Any:
    """(fault or -1, block size, has a parent, parent's hash) of a BlockStored."""
    if fields[e.F_HASHES] < 0:
        return c.BAD_HASH, 0, False, _ZERO
    has_parent, parent = False, _ZERO
    if fields[e.F_PARENT] >= 0 and data[fields[e.F_PARENT]] != 0xC0:
        has_parent, parent, _ = read_hash(data, fields[e.F_PARENT], end)
        if not has_parent:
            return c.BAD_PARENT, 0, False, _ZERO
    if fields[e.F_TOKENS] < 0:
        return c.BAD_TOKEN, 0, False, _ZERO
    block_size: Any = 0
    if fields[e.F_BLOCK_SIZE] >= 0:
        whole, negative, value, _ = read_integer(data, fields[e.F_BLOCK_SIZE], end)
        if whole and not negative and value <= np.uint64(1 << 24):
            block_size = np.int64(value)
    if block_size == 0 and fields[e.F_HASHES] > 0:
        return c.BAD_BLOCK_SIZE, 0, False, _ZERO
    if block_size * fields[e.F_HASHES] != fields[e.F_TOKENS]:
        return c.TOKEN_COUNT, 0, False, _ZERO
    return -1, block_size, has_parent, parent


@njit
def _apply_stored(
    words: Any, labels: Any, copies: Any, owner: Any, model: Any, data: Any, begin: Any, behind: Any, end: Any,
    fields: Any, hashes: Any, tokens: Any, extras: Any, cursor: Any, parked: Any,
) -> Any:  # fmt: skip
    """Store an event that has been read; a status."""
    fault, block_size, has_parent, parent_hash = _judge_stored(data, end, fields)
    if fault >= 0:
        cursor[c.C_REASONS + fault] += 1
        return c.DONE
    directory = np.int64(words[H_DIRECTORY]) + owner * OWNER_WORDS
    group = _group_bit(data, end, fields)
    if _other_attention(data, end, fields):
        words[directory + O_IGNORED_GROUPS] |= group
    count = fields[e.F_HASHES]
    if words[directory + O_IGNORED_GROUPS] & group != _ZERO:
        cursor[c.C_IGNORED] += 1
        return c.DONE
    if count == 0:
        return c.DONE
    cursor[c.C_NEEDED] = count
    room = np.uint64(2 * count)
    if words[H_USED] * np.uint64(2) + room > words[H_SLOTS]:
        return c.NEEDS_SLOTS
    if labels[M_USED] * np.uint64(2) + room > labels[M_SLOTS]:
        return c.NEEDS_LABELS
    if copies[M_USED] * np.uint64(2) + room > copies[M_SLOTS]:
        return c.NEEDS_COPIES
    adapter, adapter_name = _adapter(data, end, fields)
    parent: Any = 0
    if has_parent:
        label = find(labels, label_key(parent_hash))
        if label < 0:
            if cursor[c.C_PARKED] >= c.PARKED_SPANS:
                return c.PARKED_FULL
            at = cursor[c.C_PARKED] * 3
            parked[at], parked[at + 1], parked[at + 2] = cursor[c.C_MESSAGE], begin, behind
            cursor[c.C_PARKED] += 1
            cursor[c.C_PARKED_BLOCKS] += count
            return c.DONE
        slot = np.int64(labels[label + 1] & _LOW)
        parent = slot + 1
        chain = words[np.int64(words[H_TABLE]) + slot * np.int64(words[H_STRIDE])]
    else:
        chain = mix(mix(model, np.uint64(block_size)), adapter)
    salt = _ZERO if has_parent else _salt(data, end, fields)
    given = extras if _extras(data, end, fields, adapter_name, salt, count, extras) else extras[:0]
    if np.uint64(block_size) > words[directory + O_BLOCK_SIZE]:
        words[directory + O_BLOCK_SIZE] = np.uint64(block_size)
        words[H_DIRECTORY_VERSION] += _ONE
    store_blocks(words, labels, copies, owner, parent, chain, hashes, tokens, given, block_size, count)
    cursor[c.C_STORED] += count
    return c.DONE


@njit
def _apply_removed(
    words: Any, labels: Any, copies: Any, owner: Any, holders: Any, data: Any, end: Any, fields: Any, hashes: Any, cursor: Any
) -> None:
    if fields[e.F_HASHES] < 0:
        cursor[c.C_REASONS + c.BAD_HASH] += 1
        return
    directory = np.int64(words[H_DIRECTORY]) + owner * OWNER_WORDS
    if words[directory + O_IGNORED_GROUPS] & _group_bit(data, end, fields) != _ZERO:
        cursor[c.C_IGNORED] += 1
        return
    remove_blocks(words, labels, copies, owner, holders, hashes, fields[e.F_HASHES], cursor)


@njit
def _events_of(data: Any, at: Any, end: Any) -> Any:
    """(number of events, position of the first) of a batch; the number is -1 when this is no batch."""
    elements, inside = array_head(data, at, end)
    if elements >= 0:
        if elements < 2:
            return -1, at
        return array_head(data, skip(data, inside, end), end)
    pairs, inside = map_head(data, at, end)
    found = -1
    for _ in range(pairs):
        code = name_code(data, inside, end)
        inside = skip(data, inside, end)
        if inside < 0:
            break
        if code == _EVENTS:
            found = inside
        inside = skip(data, inside, end)
        if inside < 0:
            break
    return array_head(data, found, end)


@njit(
    types.int64(
        _WORDS, _WORDS, _WORDS, _WORDS, types.int64, types.uint64, _BYTES, _COUNTS, _COUNTS, _COUNTS, _WORDS, types.uint32[::1], _WORDS
    ),
    cache=True,
    nogil=True,
)
def ingest_messages(
    words: Any, labels: Any, copies: Any, holders: Any, owner: Any, model: Any, data: Any, bounds: Any, cursor: Any, parked: Any,
    hashes: Any, tokens: Any, extras: Any,
) -> Any:  # fmt: skip
    """Apply messages `data[bounds[i]:bounds[i + 1]]` from `cursor` on; a status of `backend.kvindex.cursor`.

    `hashes`, `tokens` and `extras` are scratch, each at least as long as the longest message has bytes.
    """
    fields = np.empty(e.FIELD_WORDS, np.int64)
    words[H_VERSION] += _ONE
    while cursor[c.C_MESSAGE] < bounds.shape[0] - 1:
        end = bounds[cursor[c.C_MESSAGE] + 1]
        if cursor[c.C_EVENTS_LEFT] < 0:
            left, first = _events_of(data, bounds[cursor[c.C_MESSAGE]], end)
            if left < 0:
                cursor[c.C_REASONS + c.NOT_A_BATCH] += 1
                left = 0
            cursor[c.C_EVENTS_LEFT], cursor[c.C_POSITION] = left, first
        while cursor[c.C_EVENTS_LEFT] > 0:
            begin = cursor[c.C_POSITION]
            behind = e.read_event(data, begin, end, fields, hashes, tokens)
            if behind < 0:
                cursor[c.C_REASONS + c.TRUNCATED] += 1
                cursor[c.C_EVENTS_LEFT] = 0
                break
            kind = fields[e.F_KIND]
            if kind == e.KIND_STORED:
                status = _apply_stored(
                    words, labels, copies, owner, model, data, begin, behind, end, fields, hashes, tokens, extras, cursor, parked
                )
                if status != c.DONE:
                    return status
            elif kind == e.KIND_REMOVED:
                _apply_removed(words, labels, copies, owner, holders, data, end, fields, hashes, cursor)
            elif kind != e.KIND_CLEARED:
                cursor[c.C_REASONS + (c.UNKNOWN_KIND if kind == e.KIND_UNKNOWN else c.NOT_AN_EVENT)] += 1
            cursor[c.C_POSITION] = behind
            cursor[c.C_EVENTS_LEFT] -= 1
            if kind == e.KIND_CLEARED:
                return c.CLEARED
        cursor[c.C_MESSAGE] += 1
        cursor[c.C_EVENTS_LEFT] = -1
    return c.DONE
