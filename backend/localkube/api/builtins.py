"""The built-in kinds: their fields in a short notation (builtins.yaml), compiled to the same schemas as those of custom resources.

A type is a row of `field:type`. Types are s(tring), i(nteger), b(oolean), n(umber), q(uantity), t(ime), I (integer or string),
`*` (anything), another name, `[T]` a list, `{T}` a map. Behind them `!` marks a required field, `?` one that may be null,
`@a,b` the merge keys of a list, `#` a list of values that merges, `=json` the default.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import yaml

from backend.localkube.api.kinds import Column, Kind, Scale
from backend.localkube.api.schema import LENIENT
from backend.localkube.api.status import Json

_SIMPLE = {"s": "string", "i": "integer", "b": "boolean", "n": "number", "q": "quantity", "t": "time"}
_MERGES = {"x-kubernetes-patch-strategy": "merge"}
"""Tells kubectl that a list merges in a strategic patch."""
_WORKLOAD_SCALE = Scale(".spec.replicas", ".status.replicas", "")


@cache
def _table() -> Json:
    """The file beside this module, read once."""
    found: Json = yaml.load((Path(__file__).with_name("builtins.yaml")).read_bytes(), yaml.CSafeLoader)
    return found


def _fields(words: list[str]) -> Json:
    """An object's schema from `field:type` words."""
    properties: Json = {}
    required = []
    for word in words:
        name, _, rest = word.partition(":")
        rest, _, default = rest.partition("=")
        rest, _, keys = rest.partition("@")
        if rest.endswith("!"):
            required.append(name)
        properties[name] = field = dict(_type(rest.rstrip("!?")))
        if rest.endswith("?"):
            field["nullable"] = True
        if keys:
            field |= {LENIENT: True, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys.split(","), **_MERGES}
            field["x-kubernetes-patch-merge-key"] = field["x-kubernetes-list-map-keys"][0]
        if default:
            field["default"] = json.loads(default)
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _type(word: str) -> Json:
    if word in _SIMPLE:
        return {"type": _SIMPLE[word]}
    if word == "I":
        return {"x-kubernetes-int-or-string": True}
    if word == "*":
        return {"x-kubernetes-preserve-unknown-fields": True}
    if word.endswith("#"):
        return {**_type(word[:-1]), LENIENT: True, "x-kubernetes-list-type": "set", **_MERGES}
    if word.startswith("["):
        return {"type": "array", "items": _type(word[1:-1])}
    if word.startswith("{"):
        return {"type": "object", "additionalProperties": _type(word[1:-1])}
    return _named(word)


@cache
def _named(name: str) -> Json:
    return _fields(_table()["types"][name].split())


def metadata_schema() -> Json:
    return _named("ObjectMeta")


def root(schema: Json) -> Json:
    """The schema of a whole object: with kind, apiVersion and metadata."""
    head = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": metadata_schema()}
    return {**schema, "type": "object", "properties": {**(schema.get("properties") or {}), **head}}


def columns(entries: Iterable[str]) -> tuple[Column, ...]:
    """`Name:path:priority` each, behind the column of names."""
    found = [Column("Name", "string", ".metadata.name", format="name")]
    for entry in entries:
        name, path, *priority = entry.split(":")
        is_age = path == "age"
        path = ".metadata.creationTimestamp" if is_age else path
        found.append(Column(name, "string", path, priority=int(priority[0]) if priority else 0, age=is_age))
    return tuple(found)


def kinds() -> list[Kind]:
    """All built-in kinds."""
    return [_kind(entry) for entry in _table()["kinds"]]


def _kind(entry: Json) -> Kind:
    group, _, version = entry["version"].rpartition("/")
    words = entry["fields"].split()
    return Kind(
        group=group,
        version=version,
        plural=entry["plural"],
        kind=entry["kind"],
        namespaced="cluster" not in entry,
        source=root(_fields(words)),
        short_names=tuple(entry.get("short", ())),
        categories=(entry["category"],) if "category" in entry else (),
        status=any(word.startswith("status:") for word in words),
        scale=_WORKLOAD_SCALE if entry["plural"] in ("deployments", "replicasets") else None,
        columns=columns(entry["columns"]),
        fields=tuple(entry.get("selectable", "").split()),
        counts=entry["plural"] in ("pods", "deployments", "replicasets", "customresourcedefinitions"),
    )
