"""Hashes of KV blocks as vLLM makes them: a chain over (parent, tokens, extra keys), each step a SHA-256.

The result is a label that consumers must treat as opaque; it is reproduced here bit for bit so that simulated and real engines
can stand in one test. Pickle protocol 5 is part of the definition.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
from collections.abc import Callable
from typing import Literal, Protocol

from backend.simulate.engine.model import ExtraKeys

Algorithm = Literal["sha256", "sha256_cbor"]
ALGORITHMS: tuple[Algorithm, ...] = ("sha256", "sha256_cbor")

_PICKLE_PROTOCOL = 5
_UNSET_SEED = "vllm-none-hash"
# From here on an unset seed is a constant and extra keys carry their kind; before, every process drew 32 random bytes.
_FIXED_SEED_SINCE = (0, 31)


class Hasher(Protocol):
    """What the engine core asks of a family's block hashes."""

    def extend(self, hashes: list[bytes], tokens: list[int], block_size: int, *, cache_salt: str | None = None) -> None:
        """Append to `hashes` those of the full blocks of `tokens` that it does not have yet."""


class BlockHasher:
    """Chains block hashes. `seed` is the engine's PYTHONHASHSEED, None when it is not set."""

    def __init__(self, *, algorithm: Algorithm = "sha256", seed: str | None = None, version: tuple[int, ...] = (0, 32)) -> None:
        self._digest = _pickled if algorithm == "sha256" else _canonical_cbor
        self._tagged = version >= _FIXED_SEED_SINCE
        if seed is None and not self._tagged:
            self.root = os.urandom(32)
        else:
            self.root = self._digest(_UNSET_SEED if seed is None else seed)

    def extend(self, hashes: list[bytes], tokens: list[int], block_size: int, *, cache_salt: str | None = None) -> None:
        """Append to `hashes` those of the full blocks of `tokens` that it does not have yet."""
        parent = hashes[-1] if hashes else self.root
        for start in range(len(hashes) * block_size, len(tokens) - block_size + 1, block_size):
            extra = self._extra(start, cache_salt)
            parent = self._digest((parent, tuple(tokens[start : start + block_size]), extra))
            hashes.append(parent)

    def _extra(self, start: int, cache_salt: str | None) -> tuple[object, ...] | None:
        if cache_salt is None or start > 0:
            return None
        return (("cache_salt", cache_salt),) if self._tagged else (cache_salt,)


def extra_keys(block: int, cache_salt: str | None) -> ExtraKeys:
    """Extra keys of a prompt's block number `block` as events carry them."""
    return (cache_salt,) if cache_salt is not None and block == 0 else None


def short_hash(digest: bytes) -> int:
    """The unsigned 64-bit form of a hash in events: the digest's last eight bytes."""
    return int.from_bytes(digest[-8:], "big")


def _pickled(value: object) -> bytes:
    return hashlib.sha256(pickle.dumps(value, protocol=_PICKLE_PROTOCOL)).digest()


def _canonical_cbor(value: object) -> bytes:
    out = bytearray()
    _write_cbor(out, value)
    return hashlib.sha256(out).digest()


def _write_cbor(out: bytearray, value: object) -> None:
    """RFC 8949 core deterministic encoding of the few kinds that a block hash is made of."""
    if value is None:
        out.append(0xF6)
    elif isinstance(value, int):
        _write_head(out, 0, value)
    elif isinstance(value, bytes):
        _write_head(out, 2, len(value))
        out += value
    elif isinstance(value, str):
        encoded = value.encode()
        _write_head(out, 3, len(encoded))
        out += encoded
    elif isinstance(value, tuple):
        _write_head(out, 4, len(value))
        for item in value:
            _write_cbor(out, item)
    else:
        raise TypeError(f"a block hash is not made of {type(value).__name__}")


_HEADS: tuple[tuple[int, int, Callable[[int], bytes]], ...] = (
    (1 << 8, 24, struct.Struct(">B").pack),
    (1 << 16, 25, struct.Struct(">H").pack),
    (1 << 32, 26, struct.Struct(">I").pack),
    (1 << 64, 27, struct.Struct(">Q").pack),
)


def _write_head(out: bytearray, major: int, number: int) -> None:
    if number < 24:
        out.append(major << 5 | number)
        return
    for limit, short, pack in _HEADS:
        if number < limit:
            out.append(major << 5 | short)
            out += pack(number)
            return
    raise ValueError(f"{number} does not fit CBOR's 64 bits")
