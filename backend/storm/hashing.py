"""Short hashes of templates: which pod is of which version.

The hash is taken over canonical JSON from which everything that an API server fills in by default is stripped, so that a template and
its stored copy are the same version. Role templates use SHA-256, since nobody would notice a collision (the upgrade would silently do
nothing); revisions use FNV-1a as the field does, because a collision of names is seen and counted.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import msgspec

from .names import HASH_LENGTH

ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""No vowels and no digits that look like letters: a hash is never a word."""

_FNV_OFFSET, _FNV_PRIME = 2166136261, 16777619

_DEFAULTS: dict[str, Any] = {
    "dnsPolicy": "ClusterFirst",
    "restartPolicy": "Always",
    "schedulerName": "default-scheduler",
    "terminationGracePeriodSeconds": 30,
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
    "protocol": "TCP",
    "enableServiceLinks": True,
}
"""Fields of a pod template that an API server may add, with the value it adds."""


def fnv1a_32(data: bytes) -> int:
    value = _FNV_OFFSET
    for byte in data:
        value = ((value ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return value


def encode_number(number: int) -> str:
    """Six characters of a number's decimal text, each moved into the alphabet; shorter ones are padded with 0."""
    return "".join(ALPHABET[ord(digit) % len(ALPHABET)] for digit in str(number))[:HASH_LENGTH].rjust(HASH_LENGTH, "0")


def strip_defaults(value: Any) -> Any:
    """`value` without nulls, without empty containers and without the defaults of pod templates."""
    if isinstance(value, dict):
        kept = {}
        for key, item in value.items():
            stripped = strip_defaults(item)
            if stripped is None or stripped in ({}, []) or (key in _DEFAULTS and _DEFAULTS[key] == stripped):
                continue
            kept[key] = stripped
        return kept
    if isinstance(value, list):
        return [strip_defaults(item) for item in value]
    return value


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and without defaults: equal for equal meaning."""
    return msgspec.json.encode(strip_defaults(value), order="deterministic")


def template_hash(template: Any) -> str:
    """Six characters for a role's pod template; the value of the label `role-template-hash`."""
    return _template_hash(msgspec.json.encode(template))


@lru_cache(maxsize=1024)
def _template_hash(encoded: bytes) -> str:
    digest = int.from_bytes(hashlib.sha256(canonical(msgspec.json.decode(encoded))).digest(), "big")
    letters = []
    for _ in range(HASH_LENGTH):
        digest, letter = divmod(digest, len(ALPHABET))
        letters.append(ALPHABET[letter])
    return "".join(letters)


def revision_hash(data: bytes, collisions: int) -> str:
    """Six characters for canonical revision data; another `collisions` count gives another name."""
    return _revision_hash(data + str(collisions).encode())


@lru_cache(maxsize=1024)
def _revision_hash(data: bytes) -> str:
    return encode_number(fnv1a_32(data))
