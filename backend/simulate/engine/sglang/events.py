"""SGLang's block hashes and how each of its versions writes KV events: the second half of `specs/engines.md` 3's table as data.

Hashes are a chain of SHA-256 over token ids, published as signed 64-bit numbers. A page is told when its first copy is stored and
removed with the last one. From 0.5.10 on, stores that continue a chain and removals that follow each other are one event.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec

from backend.core.errors import UsageError
from backend.simulate.engine.dialect import Version
from backend.simulate.engine.model import AllBlocksCleared, BlockRemoved, BlockStored, Event

_MEDIUM = "GPU"

# Fields that came with a version, in wire order: (since, stored, removed).
_FIELDS: tuple[tuple[Version, tuple[str, ...], tuple[str, ...]], ...] = (
    ((0, 4), ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id"), ("block_hashes",)),
    ((0, 5, 10), ("medium",), ("medium",)),
    ((0, 5, 20), ("cache_salt", "session_id"), ()),
    ((0, 5, 22), ("lora_name",), ()),
)
_NO_DEFAULT = frozenset({"block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium"})
_JOINED_SINCE: Version = (0, 5, 10)
_METADATA: tuple[Version, Version] = (0, 5, 18), (0, 5, 20)
_MAPS_SINCE: Version = (0, 5, 20)
_REPLAY_TOPIC_SINCE: Version = (0, 5, 22)


class SglangHasher:
    """Chains page hashes. A salted prompt's chain begins with a digest of its salt."""

    def extend(self, hashes: list[bytes], tokens: list[int], block_size: int, *, cache_salt: str | None = None) -> None:
        """Append to `hashes` those of the full pages of `tokens` that it does not have yet."""
        parent = hashes[-1] if hashes else b"" if cache_salt is None else hashlib.sha256(f"cache_salt:{cache_salt}".encode()).digest()
        for start in range(len(hashes) * block_size, len(tokens) - block_size + 1, block_size):
            parent = hashlib.sha256(parent + struct.pack(f"<{block_size}I", *tokens[start : start + block_size])).digest()
            hashes.append(parent)


def signed_hash(digest: bytes) -> int:
    """The form of a hash in events: the digest's first eight bytes as a signed number."""
    return int.from_bytes(digest[:8], "big", signed=True)


@dataclass(frozen=True)
class SglangDialect:
    """One version's event encoding. Use `sglang_dialect_of`."""

    maps: bool
    joined: bool
    metadata: bool
    """A salted store of the array form ends with a map that has the salt."""
    replay_has_topic: bool
    stored_fields: tuple[str, ...]
    removed_fields: tuple[str, ...]

    def encode(self, at: float, events: Sequence[Event], *, block_size: int, rank: int = 0) -> bytes:
        """One batch as it goes over the wire. `at` is seconds since 1970."""
        told = _joined(events) if self.joined else _single(events, block_size)
        return msgspec.msgpack.encode([at, [self._event(event, block_size) for event in told], rank])

    def _event(self, event: Event, block_size: int) -> object:
        if isinstance(event, AllBlocksCleared):
            return self._shape("AllBlocksCleared", {}, ())
        values: dict[str, object] = {"block_hashes": [signed_hash(digest) for digest in event.hashes], "medium": _MEDIUM}
        if isinstance(event, BlockRemoved):
            return self._shape("BlockRemoved", values, self.removed_fields)
        values |= {
            "parent_block_hash": None if event.parent is None else signed_hash(event.parent),
            "token_ids": event.tokens,
            "block_size": block_size,
            "cache_salt": event.cache_salt,
            "session_id": event.session_id,
        }
        shaped = self._shape("BlockStored", values, self.stored_fields)
        if self.metadata and event.cache_salt is not None and isinstance(shaped, list):
            shaped.append({"cache_salt": event.cache_salt})
        return shaped

    def _shape(self, tag: str, values: dict[str, object], fields: tuple[str, ...]) -> object:
        if self.maps:
            kept = {name: values.get(name) for name in fields if name in _NO_DEFAULT or values.get(name) is not None}
            return {"type": tag, **kept}
        return [tag, *(values.get(name) for name in fields)]


def sglang_dialect_of(version: Version) -> SglangDialect:
    """The dialect that `version` speaks; versions beyond the table speak its last row. Raises UsageError where there is none."""
    if version < (0, 4, 10):
        raise UsageError("SGLang publishes KV events from 0.4.10 on.", fix="Choose a later --version, or leave --kv-events out.")
    stored: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    for since, more_stored, more_removed in _FIELDS:
        if version >= since:
            stored += more_stored
            removed += more_removed
    return SglangDialect(
        maps=version >= _MAPS_SINCE,
        joined=version >= _JOINED_SINCE,
        metadata=_METADATA[0] <= version < _METADATA[1],
        replay_has_topic=version >= _REPLAY_TOPIC_SINCE,
        stored_fields=stored,
        removed_fields=removed,
    )


def _joined(events: Iterable[Event]) -> list[Event]:
    """Neighbours that tell one story as one event."""
    told: list[Event] = []
    for event in events:
        last = told[-1] if told else None
        if isinstance(event, BlockRemoved) and isinstance(last, BlockRemoved):
            told[-1] = BlockRemoved([*last.hashes, *event.hashes])
        elif isinstance(event, BlockStored) and isinstance(last, BlockStored) and _continues(event, last):
            told[-1] = replace(last, hashes=[*last.hashes, *event.hashes], tokens=[*last.tokens, *event.tokens])
        else:
            told.append(event)
    return told


def _continues(event: BlockStored, before: BlockStored) -> bool:
    return event.parent == before.hashes[-1] and (event.cache_salt, event.session_id) == (before.cache_salt, before.session_id)


def _single(events: Iterable[Event], block_size: int) -> list[Event]:
    """One event a page."""
    told: list[Event] = []
    for event in events:
        if not isinstance(event, BlockStored):
            told.append(event)
            continue
        parent = event.parent
        for at, digest in enumerate(event.hashes):
            tokens = event.tokens[at * block_size : (at + 1) * block_size]
            told.append(replace(event, hashes=[digest], parent=parent, tokens=tokens, extra_keys=[]))
            parent = digest
    return told
