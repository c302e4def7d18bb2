"""One event of a batch, from msgpack to positions and numbers: as a tagged array or as a map, of any version (engines.md 3).

Hashes and tokens are decoded on the way, since nobody may walk over a long prompt twice; other fields are only located.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from backend.kvindex.kernels.msgpack import (
    TOKEN_WIDTH,
    array_head,
    big_endian,
    map_head,
    name_code,
    name_code_of,
    read_hash,
    read_integer,
    skip,
)

KIND_BROKEN, KIND_UNKNOWN, KIND_STORED, KIND_REMOVED, KIND_CLEARED = -1, 0, 1, 2, 3
F_KIND, F_HASHES, F_TOKENS = 0, 1, 2
"""Kind; number of hashes and of tokens, -1 when the field is missing or wrong."""
F_PARENT, F_BLOCK_SIZE, F_LORA_ID, F_LORA_NAME, F_EXTRA, F_GROUP, F_SPEC, F_SALT, F_METADATA = 3, 4, 5, 6, 7, 8, 9, 10, 11
"""Positions, -1 when the field is missing."""
_F_OTHER = 12
FIELD_WORDS = 13

_STORED, _REMOVED, _CLEARED = (np.uint64(name_code_of(name)) for name in ("BlockStored", "BlockRemoved", "AllBlocksCleared"))
_TYPE, _HASHES, _PARENT, _TOKENS, _BLOCK_SIZE, _LORA_ID, _LORA_NAME, _EXTRA, _GROUP, _SPEC, _SALT, _METADATA = (
    np.uint64(name_code_of(name))
    for name in (
        "type",
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "lora_name",
        "extra_keys",
        "group_idx",
        "kv_cache_spec_kind",
        "cache_salt",
        "metadata",
    )
)
_STORED_ORDER = np.array(
    [_F_OTHER, F_HASHES, F_PARENT, F_TOKENS, F_BLOCK_SIZE, F_LORA_ID, _F_OTHER, F_LORA_NAME, F_EXTRA, F_GROUP, F_SPEC], np.int64
)
_REMOVED_ORDER = np.array([_F_OTHER, F_HASHES, _F_OTHER, F_GROUP], np.int64)


@njit
def read_hashes(data: Any, at: Any, end: Any, hashes: Any) -> Any:
    """(count or -1, position behind the value or -1)."""
    count, inside = array_head(data, at, end)
    if count < 0 or count > end - inside:
        return -1, skip(data, at, end)
    for which in range(count):
        if inside + 9 <= end and data[inside] == 0xCF:
            # nearly every hash there is; one load instead of the general way
            hashes[which] = big_endian(data, inside + 1, 8)
            inside += 9
            continue
        valid, value, inside = read_hash(data, inside, end)
        if not valid:
            return -1, skip(data, at, end)
        hashes[which] = value
    return count, inside


@njit
def read_tokens(data: Any, at: Any, end: Any, tokens: Any) -> Any:
    """(count or -1, position behind the value or -1). The loop has one table look-up and no branch a token; whatever is not a plain
    unsigned integer is left to the slow step."""
    count, inside = array_head(data, at, end)
    if count < 0 or count > end - inside:
        return -1, skip(data, at, end)
    which = 0
    while which < count:
        while which < count and inside + 5 <= end:
            first = data[inside]
            width = np.int64(TOKEN_WIDTH[first])
            if width > 4:
                break
            following = (
                (np.uint32(data[inside + 1]) << np.uint32(24))
                | (np.uint32(data[inside + 2]) << np.uint32(16))
                | (np.uint32(data[inside + 3]) << np.uint32(8))
                | np.uint32(data[inside + 4])
            )
            tokens[which] = following >> np.uint32(32 - 8 * width) if width > 0 else np.uint32(first)
            inside += 1 + width
            which += 1
        if which == count:
            break
        if inside >= end:
            return -1, skip(data, at, end)
        whole, negative, value, inside = read_integer(data, inside, end)
        if not whole or negative or value > np.uint64(0xFFFFFFFF):
            return -1, skip(data, at, end)
        tokens[which] = np.uint32(value)
        which += 1
    return count, inside


@njit
def _take(field: Any, data: Any, at: Any, end: Any, fields: Any, hashes: Any, tokens: Any) -> Any:
    """Note one field's value; position behind it, or -1."""
    if at < 0 or at >= end:
        return -1
    if field == F_HASHES:
        fields[F_HASHES], after = read_hashes(data, at, end, hashes)
        return after
    if field == F_TOKENS:
        fields[F_TOKENS], after = read_tokens(data, at, end, tokens)
        return after
    if field == F_LORA_NAME and map_head(data, at, end)[0] >= 0:
        field = F_METADATA
    fields[field] = at
    return skip(data, at, end)


@njit
def _kind_of(code: Any) -> Any:
    if code == _STORED:
        return KIND_STORED
    if code == _REMOVED:
        return KIND_REMOVED
    if code == _CLEARED:
        return KIND_CLEARED
    return KIND_UNKNOWN


@njit
def _field_of(code: Any) -> Any:
    if code == _HASHES:
        return F_HASHES
    if code == _PARENT:
        return F_PARENT
    if code == _TOKENS:
        return F_TOKENS
    if code == _BLOCK_SIZE:
        return F_BLOCK_SIZE
    if code == _LORA_ID:
        return F_LORA_ID
    if code == _LORA_NAME:
        return F_LORA_NAME
    if code == _EXTRA:
        return F_EXTRA
    if code == _GROUP:
        return F_GROUP
    if code == _SPEC:
        return F_SPEC
    if code == _SALT:
        return F_SALT
    if code == _METADATA:
        return F_METADATA
    return _F_OTHER


@njit
def read_event(data: Any, at: Any, end: Any, fields: Any, hashes: Any, tokens: Any) -> Any:
    """Fill `fields` from the event at `at`; position behind it, or -1 when it is cut off."""
    for field in range(FIELD_WORDS):
        fields[field] = -1
    count, inside = array_head(data, at, end)
    if count >= 0:
        return _read_array_event(data, at, end, count, inside, fields, hashes, tokens)
    count, inside = map_head(data, at, end)
    if count >= 0:
        return _read_map_event(data, inside, end, count, fields, hashes, tokens)
    return skip(data, at, end)


@njit
def _read_array_event(data: Any, at: Any, end: Any, count: Any, inside: Any, fields: Any, hashes: Any, tokens: Any) -> Any:
    code = name_code(data, inside, end) if count > 0 else np.uint64(0)
    if code == np.uint64(0):
        return skip(data, at, end)
    kind = _kind_of(code)
    fields[F_KIND] = kind
    inside = skip(data, inside, end)
    for which in range(1, count):
        field = _F_OTHER
        if kind == KIND_STORED and which < _STORED_ORDER.shape[0]:
            field = _STORED_ORDER[which]
        elif kind == KIND_REMOVED and which < _REMOVED_ORDER.shape[0]:
            field = _REMOVED_ORDER[which]
        inside = _take(field, data, inside, end, fields, hashes, tokens)
        if inside < 0:
            return -1
    return inside


@njit
def _read_map_event(data: Any, inside: Any, end: Any, pairs: Any, fields: Any, hashes: Any, tokens: Any) -> Any:
    for _ in range(pairs):
        code = name_code(data, inside, end)
        inside = skip(data, inside, end)
        if inside < 0:
            return -1
        if code == _TYPE:
            tag = name_code(data, inside, end)
            fields[F_KIND] = _kind_of(tag) if tag != np.uint64(0) else KIND_BROKEN
        inside = _take(_field_of(code), data, inside, end, fields, hashes, tokens)
        if inside < 0:
            return -1
    return inside
