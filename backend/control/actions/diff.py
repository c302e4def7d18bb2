"""Differences of two JSON values as field paths, and as a JSON merge patch (RFC 7386). Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from backend.api.actions import FieldChange

ABSENT: Any = object()


def changes(before: Any, after: Any, path: str = "") -> list[FieldChange]:
    """Fields that differ, in order of their paths. Lists of named objects are compared by name: `roles[decode].replicas`."""
    return [
        FieldChange(path=where, before=None if old is ABSENT else old, after=None if new is ABSENT else new)
        for where, old, new in _walk(before, after, path)
    ]


def _walk(before: Any, after: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            yield from _walk(before.get(name, ABSENT), after.get(name, ABSENT), f"{path}.{name}" if path else name)
    elif isinstance(before, list) and isinstance(after, list):
        yield from _lists(before, after, path)
    elif before is ABSENT or after is ABSENT or type(before) is not type(after) or before != after:
        yield path, before, after


def _lists(before: list[Any], after: list[Any], path: str) -> Iterator[tuple[str, Any, Any]]:
    old, new = _named(before), _named(after)
    if old is None or new is None:
        old, new = dict(enumerate(before)), dict(enumerate(after))
    for key in dict.fromkeys([*old, *new]):
        yield from _walk(old.get(key, ABSENT), new.get(key, ABSENT), f"{path}[{key}]")


def _named(items: list[Any]) -> dict[Any, Any] | None:
    """Items by their `name`; None where not every item has one of its own."""
    by_name = {item["name"]: item for item in items if isinstance(item, dict) and isinstance(item.get("name"), str)}
    return by_name if len(by_name) == len(items) else None


def merge_patch(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What turns `before` into `after`. Lists are replaced whole, a null removes; a null that is *wanted* cannot be said."""
    patch: dict[str, Any] = dict.fromkeys(before.keys() - after.keys())
    for name, new in after.items():
        old = before.get(name, ABSENT)
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := merge_patch(old, new):
                patch[name] = inner
        elif old is ABSENT or type(old) is not type(new) or old != new:
            patch[name] = new
    return patch


def merged(target: Any, patch: Any) -> Any:
    """`target` with a merge patch applied; the other direction of `merge_patch`."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result
