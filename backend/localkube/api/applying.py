"""Server-side apply: a manager states the fields it wants, owns them, and gives up those that it leaves out.

Ownership is kept for apply alone, in metadata.managedFields as the real server does (fieldsV1); other writes are not recorded,
so they never conflict and a later apply simply overwrites them.
"""

from __future__ import annotations

import json
from typing import Any

from backend.localkube.api import patches, status
from backend.localkube.api.kinds import Kind
from backend.localkube.api.metadata import timestamp
from backend.localkube.api.schema import Schema
from backend.localkube.api.status import ApiError, Json

_NOT_OWNED = frozenset({"name", "namespace", "uid", "resourceVersion", "creationTimestamp", "generation"})
Path = tuple[str, ...]
"""Steps of fieldsV1: `f:name` a field, `k:{...}` an element by its keys, `v:...` a value of a set."""


class Apply:
    """One apply request. Raises ApiError (400) when the body is none."""

    def __init__(self, body: Json, manager: str, kind: Kind, *, force: bool, now: float, sub: str = "") -> None:
        self._manager, self._kind, self._force, self._now, self._sub = manager, kind, force, now, sub
        if body.get("apiVersion") != kind.api_version or body.get("kind") != kind.kind:
            raise status.bad_request(f"apply needs apiVersion {kind.api_version} and kind {kind.kind} in its body")
        meta = body.get("metadata") or {}
        if meta.get("managedFields"):
            raise status.bad_request("metadata.managedFields must be nil")
        unknown: list[str] = []
        kind.schema.shape(body, "", unknown)
        if unknown:
            raise ApiError(500, "", f"failed to create typed patch object: .{unknown[0]}: field not declared in schema")
        if sub == "status":
            body = {part: value for part, value in body.items() if part in ("apiVersion", "kind", "metadata", "status")}
        self._body = body
        owned = {part: value for part, value in body.items() if part not in ("apiVersion", "kind", "metadata")}
        if own := {part: value for part, value in meta.items() if part not in _NOT_OWNED}:
            owned["metadata"] = own
        self._paths = leaves(owned, kind.schema)

    def new(self, name: str) -> Json:
        """The object that an apply creates. Raises ApiError (409) when the body speaks of one that must be there."""
        meta = self._body.get("metadata") or {}
        if meta.get("uid") or meta.get("resourceVersion"):
            raise status.conflict(self._kind, name, "the object does not exist")
        return {**self._body, "metadata": {**meta, "name": meta.get("name", name), "managedFields": [self._entry()]}}

    def onto(self, old: Json) -> Json:
        """`old` with what is applied, without what this manager gave up. Raises ApiError (409) for a conflict."""
        meta = old["metadata"]
        entries = [entry for entry in meta.get("managedFields", ()) if entry.get("operation") == "Apply"]
        before = next((entry for entry in entries if self._is_mine(entry)), None)
        others = [entry for entry in entries if not self._is_mine(entry)]
        applied = patches.strategic(old, self._body, self._kind.schema, at_end=True)
        self._refuse_conflicts(old, applied, others)
        kept = {path for entry in others for path in paths_of(entry["fieldsV1"])}
        # Elements of lists go before their fields: without its keys an element could not be found any more.
        for path in sorted(paths_of(before["fieldsV1"]) if before else (), key=lambda path: path[-1] != "."):
            if path not in self._paths and path not in kept:
                applied = _without(applied, path, self._kind.schema)
        entry = self._entry()
        if before is not None and before["fieldsV1"] == entry["fieldsV1"]:
            same = {**applied, "metadata": {**applied["metadata"], "managedFields": [*others, before]}}
            if all(same.get(part) == old.get(part) for part in same.keys() | old.keys() if part != "metadata"):
                entry = before
        changed = {path for path in self._paths if _value(old, path, self._kind.schema) != _value(applied, path, self._kind.schema)}
        others = [self._released(other, changed) for other in others] if self._force else others
        return {**applied, "metadata": {**applied["metadata"], "managedFields": [*others, entry]}}

    def _refuse_conflicts(self, old: Json, applied: Json, others: list[Json]) -> None:
        schema = self._kind.schema
        causes = [
            (_shown(path), f'conflict with "{other["manager"]}"')
            for other in others
            for path in sorted(paths_of(other["fieldsV1"]) & self._paths)
            if _value(old, path, schema) != _value(applied, path, schema)
        ]
        if causes and not self._force:
            head = "1 conflict: " if len(causes) == 1 else f"{len(causes)} conflicts: "
            message = f"Apply failed with {head}" + ", ".join(f"{text}: {field}" for field, text in causes)
            listed = [{"reason": "FieldManagerConflict", "message": text, "field": field} for field, text in causes]
            raise ApiError(409, "Conflict", message, details={"causes": listed})

    def _released(self, entry: Json, changed: set[Path]) -> Json:
        return {**entry, "fieldsV1": tree(paths_of(entry["fieldsV1"]) - changed)}

    def _is_mine(self, entry: Json) -> bool:
        return bool(entry["manager"] == self._manager and entry.get("subresource", "") == self._sub)

    def _entry(self) -> Json:
        return {
            "manager": self._manager,
            "operation": "Apply",
            "apiVersion": self._kind.api_version,
            "time": timestamp(self._now),
            "fieldsType": "FieldsV1",
            "fieldsV1": tree(self._paths),
            **({"subresource": self._sub} if self._sub else {}),
        }


def leaves(value: Any, schema: Schema | None, path: Path = ()) -> set[Path]:
    """The paths of everything that a value states; lists that do not merge are one leaf."""
    if isinstance(value, dict) and value:
        found = set()
        for name, item in value.items():
            found |= leaves(item, schema.child(name) if schema is not None else None, (*path, f"f:{name}"))
        return found
    if isinstance(value, list) and schema is not None and schema.list_type == "set":
        return {(*path, f"v:{json.dumps(item)}") for item in value}
    if isinstance(value, list) and schema is not None and schema.list_type == "map":
        found = set()
        for item in value:
            step = f"k:{schema.identity(item)}"
            if any(known[len(path)] == step for known in found):
                raise ApiError(500, "", f"failed to create typed patch object: duplicate entries for key {_shown((step,))}")
            found |= {(*path, step, ".")} | leaves(item, schema.items, (*path, step))
        return found
    return {path} if path else set()


def tree(paths: set[Path]) -> Json:
    """Paths as fieldsV1."""
    root: Json = {}
    for path in sorted(paths):
        node = root
        for step in path:
            node = node.setdefault(step, {})
    return root


def paths_of(fields: Json, path: Path = ()) -> set[Path]:
    """The paths in a fieldsV1 tree."""
    if not fields:
        return {path} if path else set()
    return {found for step, below in fields.items() for found in paths_of(below, (*path, step))}


def _steps(value: Any, schema: Schema | None, step: str) -> tuple[Any, Any, Schema | None]:
    """Where a step leads: the index or name in `value`, what is there (None for nothing), its schema."""
    if step.startswith("f:"):
        name = step[2:]
        child = schema.child(name) if schema is not None else None
        return name, value.get(name) if isinstance(value, dict) else None, child
    if schema is not None and isinstance(value, list):
        for index, item in enumerate(value):
            if step == f"k:{schema.identity(item)}" or (step.startswith("v:") and step == f"v:{json.dumps(item)}"):
                return index, item, schema.items
    return None, None, None


def _value(value: Any, path: Path, schema: Schema | None) -> Any:
    for step in path:
        if step == ".":
            return value is not None
        _, value, schema = _steps(value, schema, step)
    return value


def _without(value: Any, path: Path, schema: Schema | None) -> Any:
    """A copy of `value` without what lies under `path`; objects that become empty by it stay."""
    place, below, child = _steps(value, schema, path[0])
    if place is None or below is None:
        return value
    last = len(path) == 1 or path[1] == "."
    if isinstance(value, list):
        rest = [item for index, item in enumerate(value) if index != place]
        return rest if last else [_without(item, path[1:], child) if index == place else item for index, item in enumerate(value)]
    if last:
        return {name: item for name, item in value.items() if name != place}
    return {**value, place: _without(below, path[1:], child)}


def _shown(path: Path) -> str:
    """A path as people write it: `.spec.ports[name="a"].port`."""
    parts = []
    for step in path:
        if step.startswith("f:"):
            parts.append(f".{step[2:]}")
        elif step.startswith("k:"):
            keys = json.loads(step[2:])
            parts.append("[" + ",".join(f"{name}={json.dumps(value)}" for name, value in keys.items()) + "]")
        elif step.startswith("v:"):
            parts.append(f"[={step[2:]}]")
    return "".join(parts)
