"""How each vLLM version writes KV events and frames replays: the version table of `specs/engines.md` 3 as data, and its encoder.

A batch is the same array in every version; an event is a positional array before 0.24 and a map from then on. Arrays end before
their trailing empty fields, maps leave out fields that are empty and have a default.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol

import msgspec

from backend.core.errors import UsageError
from backend.simulate.engine.hashing import short_hash
from backend.simulate.engine.model import AllBlocksCleared, BlockRemoved, BlockStored, Event

Version = tuple[int, ...]

_MEDIUM = "GPU"
_SPEC_KIND = "full_attention"

# Fields that came with a version, in wire order: (since, stored, removed).
_FIELDS: tuple[tuple[Version, tuple[str, ...], tuple[str, ...]], ...] = (
    ((0, 9), ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id"), ("block_hashes",)),
    ((0, 10, 2), ("medium",), ("medium",)),
    ((0, 14), ("lora_name",), ()),
    ((0, 17), ("extra_keys",), ()),
    ((0, 20), ("group_idx",), ("group_idx",)),
    ((0, 22), ("kv_cache_spec_kind", "kv_cache_spec_sliding_window"), ()),
    ((0, 26), ("locality",), ("locality",)),
    ((0, 29), ("ownership",), ("ownership",)),
    ((0, 30), ("session_id",), ()),
)
_NO_DEFAULT = frozenset({"block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name"})
_MAPS_SINCE: Version = (0, 24)
_REPLAY_TOPIC_SINCE: Version = (0, 26)
_BYTE_HASHES_SINCE: Version = (0, 10, 2)


class EventDialect(Protocol):
    """How one family writes KV events."""

    @property
    def replay_has_topic(self) -> bool:
        """Replayed batches carry their topic."""

    def encode(self, at: float, events: Items[Event], *, block_size: int, rank: int = 0) -> bytes:
        """One batch as it goes over the wire. `at` is seconds since 1970."""


def parse_version(text: str) -> Version:
    """`"0.32.0"` as (0, 32, 0). Raises UsageError."""
    try:
        return tuple(int(part) for part in text.split(".")[:3])
    except ValueError:
        raise UsageError(f"{text!r} is not a version.", fix="Write it like 0.32.0.") from None


@dataclass(frozen=True)
class Dialect:
    """One version's event encoding. Use `dialect_of`."""

    maps: bool
    replay_has_topic: bool
    stored_fields: tuple[str, ...]
    removed_fields: tuple[str, ...]
    byte_hashes: bool = False
    """Publish whole 32-byte digests instead of their low 64 bits (VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0)."""

    def encode(self, at: float, events: Items[Event], *, block_size: int, rank: int = 0) -> bytes:
        """One batch as it goes over the wire. `at` is seconds since 1970."""
        return msgspec.msgpack.encode([at, [self._event(event, block_size) for event in events], rank])

    def _event(self, event: Event, block_size: int) -> object:
        if isinstance(event, AllBlocksCleared):
            return self._shape("AllBlocksCleared", {}, ())
        values: dict[str, object] = {"block_hashes": [self._hash(digest) for digest in event.hashes], "medium": _MEDIUM, "group_idx": 0}
        if isinstance(event, BlockRemoved):
            return self._shape("BlockRemoved", values, self.removed_fields)
        return self._shape("BlockStored", values | self._stored(event, block_size), self.stored_fields)

    def _stored(self, event: BlockStored, block_size: int) -> dict[str, object]:
        return {
            "parent_block_hash": None if event.parent is None else self._hash(event.parent),
            "token_ids": event.tokens,
            "block_size": block_size,
            "extra_keys": event.extra_keys,
            "kv_cache_spec_kind": _SPEC_KIND,
            "session_id": event.session_id,
        }

    def _shape(self, tag: str, values: dict[str, object], fields: tuple[str, ...]) -> object:
        if self.maps:
            kept = {name: values.get(name) for name in fields if name in _NO_DEFAULT or values.get(name) is not None}
            return {"type": tag, **kept}
        row = [values.get(name) for name in fields]
        while row and row[-1] is None and fields[len(row) - 1] not in _NO_DEFAULT:
            row.pop()
        return [tag, *row]

    def _hash(self, digest: bytes) -> int | bytes:
        return digest if self.byte_hashes else short_hash(digest)


def dialect_of(version: Version, *, byte_hashes: bool = False) -> Dialect:
    """The dialect that `version` speaks; versions beyond the table speak its last row. Raises UsageError where there is none."""
    if version < _FIELDS[0][0]:
        raise UsageError("vLLM publishes KV events from 0.9 on.", fix="Choose a later --version, or leave --kv-events out.")
    if byte_hashes and version < _BYTE_HASHES_SINCE:
        raise UsageError("vLLM publishes whole hashes from 0.10.2 on.", fix="Choose a later --version, or integer hashes.")
    stored: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    for since, more_stored, more_removed in _FIELDS:
        if version >= since:
            stored += more_stored
            removed += more_removed
    return Dialect(version >= _MAPS_SINCE, version >= _REPLAY_TOPIC_SINCE, stored, removed, byte_hashes)
