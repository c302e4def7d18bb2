"""KV events as engines publish them, made readable: every variant of vLLM and SGLang of the table in engines.md 3.

The readable twin of the kernels: both must give the same verdict on every message, so every rule stands here once in plain words.
Never touches the index.
"""

from __future__ import annotations

import struct
from typing import Literal

import msgspec

from backend.core.errors import WireError
from backend.kvindex import lenient
from backend.kvindex.hashing import MASK

Kind = Literal["stored", "removed", "cleared"]
_KINDS: dict[str, Kind] = {"BlockStored": "stored", "BlockRemoved": "removed", "AllBlocksCleared": "cleared"}
_STORED_ORDER = (
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
    "locality",
    "ownership",
    "session_id",
)
_REMOVED_ORDER = ("block_hashes", "medium", "group_idx", "locality", "ownership")
_HEX = frozenset("0123456789abcdefABCDEF")
_LARGEST_BLOCK = 2**24


class Event(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One event. Fields that a kind or a version does not have keep their defaults."""

    kind: Kind
    block_hashes: list[int] = []
    """Engine's hashes modulo 2**64."""
    parent_hash: int | None = None
    """Hash of the block before the first one; None at a prompt's beginning."""
    token_ids: list[int] = []
    block_size: int = 0
    lora_id: int | None = None
    lora_name: str | None = None
    medium: str | None = None
    """GPU, CPU, STORAGE, ... in capitals, whatever the engine writes."""
    extra_keys: list[object] | None = None
    """For each block what else its hash depends on: salt, multimodal ids."""
    cache_salt: str | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    session_id: str | None = None


class Batch(msgspec.Struct, kw_only=True):
    """One message: the events of one scheduler step."""

    timestamp: float
    rank: int | None
    """Data-parallel rank, None where the producer does not say."""
    events: list[Event]
    skipped: dict[str, int] = {}
    """Events that could not be read, by reason (`cursor.REASONS`)."""


def decode_batch(payload: bytes) -> Batch:
    """Read one message. Raises WireError("not_a_batch") when it is none; a broken event is counted in `skipped`."""
    try:
        decoded = msgspec.msgpack.decode(payload)
    except (msgspec.DecodeError, RecursionError, ValueError, TypeError):
        decoded = lenient.decode_batch(payload)
    timestamp, raw_events, rank = _parts(decoded)
    events: list[Event] = []
    skipped: dict[str, int] = {}
    for raw in raw_events:
        try:
            events.append(_event(raw))
        except WireError as error:
            skipped[error.reason] = skipped.get(error.reason, 0) + 1
    return Batch(timestamp=timestamp, rank=rank, events=events, skipped=skipped)


def batch_timestamp(payload: bytes) -> float:
    """When the engine made a message, read from its first bytes; 0 when they do not say."""
    if len(payload) >= 10 and 0x90 <= payload[0] <= 0x9F and payload[1] == 0xCB:
        return float(struct.unpack_from(">d", payload, 2)[0])
    return 0.0


def encode_event(event: Event) -> bytes:
    """A BlockStored as a message of its own, in the map form: what waits for its parent is kept as bytes."""
    fields = {"type": "BlockStored", "parent_block_hash": event.parent_hash}
    for name in ("block_hashes", "token_ids", "block_size", "lora_id", "lora_name", "extra_keys", "cache_salt", "group_idx"):
        fields[name] = getattr(event, name)
    fields["kv_cache_spec_kind"] = event.kv_cache_spec_kind
    return msgspec.msgpack.encode([0.0, [fields]])


def _parts(decoded: object) -> tuple[float, list[object], int | None]:
    if isinstance(decoded, list) and len(decoded) >= 2:
        timestamp, events, rank = decoded[0], decoded[1], decoded[2] if len(decoded) > 2 else None
    elif isinstance(decoded, dict):
        timestamp = decoded.get("ts", decoded.get("timestamp"))
        events = decoded.get("events")
        rank = decoded.get("data_parallel_rank", decoded.get("attn_dp_rank"))
    else:
        raise WireError("not_a_batch")
    if not isinstance(events, list):
        raise WireError("not_a_batch")
    seconds = float(timestamp) if isinstance(timestamp, int | float) and not isinstance(timestamp, bool) else 0.0
    return seconds, events, _integer(rank)


def _event(raw: object) -> Event:
    """One event from its array or map. Raises WireError with a reason of `cursor.REASONS`."""
    fields = _fields(raw)
    kind = _KINDS.get(fields["type"])  # type: ignore[call-overload]
    if kind is None:
        raise WireError("unknown_kind", f"an event of kind {fields['type']!r}")
    if kind == "cleared":
        return Event(kind=kind)
    hashes = _hashes(fields.get("block_hashes"))
    medium = _text(fields.get("medium"))
    event = Event(
        kind=kind,
        block_hashes=hashes,
        medium=medium.upper() if medium else None,
        group_idx=_integer(fields.get("group_idx")),
    )
    return _stored(event, fields) if kind == "stored" else event


def _fields(raw: object) -> dict[object, object]:
    if raw is lenient.TRUNCATED:
        raise WireError("truncated")
    if isinstance(raw, dict) and isinstance(raw.get("type"), str):
        return raw
    if not isinstance(raw, list) or not raw or not isinstance(raw[0], str):
        raise WireError("not_an_event")
    order = {"BlockStored": _STORED_ORDER, "BlockRemoved": _REMOVED_ORDER}.get(raw[0], ())
    fields: dict[object, object] = dict(zip(order, raw[1:], strict=False))
    if isinstance(fields.get("lora_name"), dict):
        # SGLang 0.5.18 has a map of metadata where vLLM has the adapter's name
        fields["metadata"] = fields.pop("lora_name")
    fields["type"] = raw[0]
    return fields


def _stored(event: Event, fields: dict[object, object]) -> Event:
    parent = fields.get("parent_block_hash")
    if parent is not None:
        event.parent_hash = _hash(parent)
        if event.parent_hash is None:
            raise WireError("bad_parent")
    tokens = fields.get("token_ids")
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 2**32 for token in tokens):
        raise WireError("bad_token")
    event.token_ids = tokens
    size = _integer(fields.get("block_size"))
    event.block_size = size if size is not None and 0 <= size <= _LARGEST_BLOCK else 0
    if event.block_size == 0 and event.block_hashes:
        raise WireError("bad_block_size")
    if event.block_size * len(event.block_hashes) != len(tokens):
        raise WireError("token_count", f"{len(tokens)} tokens for {len(event.block_hashes)} blocks of {event.block_size}")
    event.lora_id = _integer(fields.get("lora_id"))
    event.lora_name = _text(fields.get("lora_name"))
    extra = fields.get("extra_keys")
    event.extra_keys = extra if isinstance(extra, list) else None
    salt = fields.get("cache_salt")
    metadata = fields.get("metadata")
    if "cache_salt" not in fields and isinstance(metadata, dict):
        salt = metadata.get("cache_salt")
    event.cache_salt = _text(salt)
    event.kv_cache_spec_kind = _text(fields.get("kv_cache_spec_kind"))
    event.session_id = _text(fields.get("session_id"))
    return event


def _hashes(value: object) -> list[int]:
    if not isinstance(value, list):
        raise WireError("bad_hash")
    hashes = [_hash(element) for element in value]
    if None in hashes:
        raise WireError("bad_hash")
    return hashes  # type: ignore[return-value]


def _hash(value: object) -> int | None:
    """A hash modulo 2**64: whole number of either sign, big-endian bytes, hexadecimal text."""
    if type(value) is int:
        return value & MASK
    if isinstance(value, bytes) and value:
        return int.from_bytes(value[-8:], "big")
    if isinstance(value, str) and value and _HEX.issuperset(value):
        return int(value, 16) & MASK
    return None


def _integer(value: object) -> int | None:
    return value if type(value) is int else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
