"""JSON patch (RFC 6902), merge patch (RFC 7396), strategic merge patch. Pure: the target stays as it is and is shared where possible."""

from __future__ import annotations

import copy
from typing import Any

from backend.localkube.api import status
from backend.localkube.api.schema import Schema, json_type
from backend.localkube.api.status import ApiError, Json

_ORDER, _DELETED, _RETAIN = "$setElementOrder/", "$deleteFromPrimitiveList/", "$retainKeys"


class PatchDoesNotFit(Exception):
    """The operation is well formed, but not for this object."""


def merge(target: Any, patch: Any) -> Any:
    """RFC 7396: null deletes, objects merge, everything else is replaced."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, item in patch.items():
        if item is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), item)
    return merged


# ---------------------------------------------------------------------- JSON patch


def json_patch(target: Any, operations: Any) -> Any:
    """Apply the operations in order. Raises ApiError: 400 for what is no JSON patch, 422 for what does not fit the object."""
    if not isinstance(operations, list) or not all(isinstance(item, dict) and isinstance(item.get("path"), str) for item in operations):
        raise status.bad_request("error decoding patch: a JSON patch is a list of operations, each with `op` and `path`")
    result = copy.deepcopy(target)
    for operation in operations:
        try:
            result = _apply(result, operation)
        except (PatchDoesNotFit, KeyError, IndexError, ValueError, TypeError) as error:
            message = "the server rejected our request due to an error in our request"
            raise ApiError(422, "Invalid", message, details={"causes": []}) from error
    return result


def _apply(target: Any, operation: Json) -> Any:
    name, path = operation.get("op"), _pointer(operation["path"])
    if name == "test":
        if _find(target, path) != operation.get("value"):
            raise PatchDoesNotFit(operation["path"])
        return target
    if name in ("add", "replace"):
        return _put(target, path, operation["value"], insert=name == "add")
    if name == "remove":
        return _remove(target, path)
    if name in ("copy", "move"):
        source = _pointer(operation["from"])
        value = copy.deepcopy(_find(target, source))
        return _put(_remove(target, source) if name == "move" else target, path, value, insert=True)
    raise PatchDoesNotFit(f"unknown operation {name!r}")


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise PatchDoesNotFit(text)
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _find(target: Any, path: list[str]) -> Any:
    for part in path:
        target = target[_index(part, target) if isinstance(target, list) else part]
    return target


def _index(part: str, target: list[Any]) -> int:
    if not part.isdigit() or int(part) > len(target):
        raise PatchDoesNotFit(part)
    return int(part)


def _put(target: Any, path: list[str], value: Any, *, insert: bool) -> Any:
    if not path:
        return value
    parent, last = _find(target, path[:-1]), path[-1]
    if isinstance(parent, dict):
        parent[last] = value
    elif not isinstance(parent, list):
        raise PatchDoesNotFit(last)
    elif insert:
        parent.insert(len(parent) if last == "-" else _index(last, parent), value)
    else:
        parent[_index(last, parent)] = value
    return target


def _remove(target: Any, path: list[str]) -> Any:
    parent = _find(target, path[:-1])
    del parent[_index(path[-1], parent) if isinstance(parent, list) else path[-1]]
    return target


# ---------------------------------------------------------------------- strategic merge patch


def strategic(target: Any, patch: Any, schema: Schema | None, *, at_end: bool = False) -> Any:
    """Merge where the schema says by which keys lists merge. Raises ApiError (500, as the real server) for a list that does not fit.

    `at_end` puts new elements behind the ones that are there, as server-side apply does; otherwise they come first.
    """
    if not isinstance(patch, dict):
        return patch
    if patch.get("$patch") == "replace":
        return {name: item for name, item in patch.items() if name != "$patch"}
    merged = dict(target) if isinstance(target, dict) else {}
    if _RETAIN in patch:
        merged = {name: item for name, item in merged.items() if name in patch[_RETAIN]}
    for name, item in patch.items():
        if name.startswith(_DELETED):
            field = name.removeprefix(_DELETED)
            merged[field] = [entry for entry in merged.get(field, ()) if entry not in item]
        elif name.startswith("$"):
            continue
        elif item is None:
            merged.pop(name, None)
        else:
            child = schema.child(name) if schema is not None else None
            merged[name] = _member(merged.get(name), item, child, at_end=at_end)
    for name, order in patch.items():
        if name.startswith(_ORDER):
            field = name.removeprefix(_ORDER)
            child = schema.child(field) if schema is not None else None
            merged[field] = _ordered(merged.get(field, []), order, patch.get(field) or [], child)
    return merged


def _member(old: Any, item: Any, schema: Schema | None, *, at_end: bool) -> Any:
    if isinstance(item, dict):
        return strategic(old, item, schema, at_end=at_end)
    if not isinstance(item, list) or schema is None or schema.list_type == "atomic":
        return item
    before = old if isinstance(old, list) else []
    if schema.list_type == "set":
        return [*before, *(entry for entry in item if entry not in before)]
    return _merge_list(before, item, schema, at_end=at_end)


def _merge_list(old: list[Any], patch: list[Any], schema: Schema, *, at_end: bool) -> list[Any]:
    """Elements with the same key merge, `$patch: delete` takes one out, `$patch: replace` the whole list."""
    key = schema.keys[0]
    if {"$patch": "replace"} in patch:
        return [entry for entry in patch if entry != {"$patch": "replace"}]
    result, fresh = list(old), []
    for entry in patch:
        if not isinstance(entry, dict) or key not in entry:
            raise ApiError(500, "", f"map: {json_type(entry)} does not contain declared merge key: {key}")
        place = next((index for index, item in enumerate(result) if item.get(key) == entry[key]), None)
        if entry.get("$patch") == "delete":
            result = [item for item in result if item.get(key) != entry[key]]
        elif place is None:
            fresh.append(strategic({}, entry, schema.items, at_end=at_end))
        else:
            result[place] = strategic(result[place], entry, schema.items, at_end=at_end)
    return [*result, *fresh] if at_end else [*fresh, *result]


def _ordered(merged: list[Any], order: list[Any], patch: list[Any], schema: Schema | None) -> list[Any]:
    """Sort by `$setElementOrder`; what it does not name keeps its place behind."""
    key = schema.keys[0] if schema is not None and schema.keys else None

    def identity(item: Any) -> Any:
        return item.get(key) if key is not None and isinstance(item, dict) else item

    rank = {identity(item): index for index, item in enumerate(order)}
    if any(identity(item) not in rank for item in patch if not (isinstance(item, dict) and "$patch" in item)):
        raise ApiError(500, "", f"The order in patch list: {patch} doesn't match $setElementOrder list: {order}")
    return sorted(merged, key=lambda item: rank.get(identity(item), len(rank)))
