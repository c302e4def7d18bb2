"""How decision records travel: a stream entry has one field, `records`, a msgpack list of DecisionRecord.

Owns the bytes on both sides; the gateway's publisher and the history's consumer both import it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from backend.api.decisions import DecisionRecord
from backend.core.errors import WireError
from backend.history.model import Facets

FIELD = b"records"
GROUP = "history"
CONSUMER = "writer"
"""One writer at a time, so a fixed name: after a `kill -9` the next one finds its own pending entries at once."""

_encoder = msgspec.msgpack.Encoder()
_batch = msgspec.msgpack.Decoder(list[DecisionRecord])
_parts = msgspec.msgpack.Decoder(list[msgspec.Raw])
_record = msgspec.msgpack.Decoder(DecisionRecord)
_facets = msgspec.msgpack.Decoder(Facets)


def encode_batch(records: Sequence[DecisionRecord]) -> bytes:
    return _encoder.encode(records)


def decode_batch(fields: Mapping[bytes, bytes], on_bad: Callable[[str], None] = lambda _: None) -> list[DecisionRecord]:
    """The records of a stream entry; `on_bad` is told about each that cannot be read and is left out.

    Raises WireError (`missing_field`, `not_records`) when the entry as a whole is no batch.
    """
    raw = fields.get(FIELD)
    if raw is None:
        raise WireError("missing_field", f"a stream entry without the field {FIELD.decode()!r}")
    try:
        return _batch.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _one_by_one(raw, on_bad)


def _one_by_one(raw: bytes, on_bad: Callable[[str], None]) -> list[DecisionRecord]:
    """One bad record must not take its neighbours with it."""
    try:
        parts = _parts.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError("not_records", f"a stream entry that is not a batch of records: {error}") from error
    readable = []
    for part in parts:
        try:
            readable.append(_record.decode(part))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            on_bad(str(error))
    return readable


def encode_record(record: DecisionRecord) -> bytes:
    return _encoder.encode(record)


def decode_record(raw: bytes) -> DecisionRecord:
    return _record.decode(raw)


def decode_facets(raw: bytes) -> Facets:
    return _facets.decode(raw)
