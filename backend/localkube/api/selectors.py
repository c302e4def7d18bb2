"""Label and field selectors, and the simple JSON paths of custom resources. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from backend.localkube.api import status
from backend.localkube.api.kinds import Kind
from backend.localkube.api.metadata import is_label_key, is_label_value
from backend.localkube.api.status import Json

Matcher = Callable[[Json], bool]
_SET = re.compile(r"([^\s!=,()]+)\s+(in|notin)\s*\(([^()]*)\)")
_EQUAL = re.compile(r"([^\s!=,()]+)\s*(==|=|!=)\s*([^\s=,()]*)")
_EXISTS = re.compile(r"(!?)\s*([^\s!=,()]+)")
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+|\*)\]|\[\?\(@\.([\w.]+)\s*==\s*[\"']([^\"']*)[\"']\)\]|\['([^']+)'\]")


def parse_labels(text: str) -> Matcher | None:
    """What decides whether an object's labels match; None when every object does. Raises ApiError (400)."""
    tests = [_requirement(part) for part in _parts(text)] if text.strip() else []
    if not tests:
        return None

    def matches(value: Json) -> bool:
        labels = value["metadata"].get("labels") or {}
        return all(test(labels) for test in tests)

    return matches


def _parts(text: str) -> list[str]:
    """Split at commas that are not within parentheses."""
    return [part.strip() for part in re.split(r",(?![^(]*\))", text)]


def _requirement(part: str) -> Callable[[dict[str, str]], bool]:
    if match := _SET.fullmatch(part):
        key, operator, listed = match.groups()
        values = {item.strip() for item in listed.split(",")}
        _check_label(part, key, *values)
        if operator == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := _EQUAL.fullmatch(part):
        key, operator, wanted = match.groups()
        _check_label(part, key, wanted)
        if operator == "!=":
            return lambda labels: labels.get(key) != wanted
        return lambda labels: labels.get(key) == wanted
    if match := _EXISTS.fullmatch(part):
        absent, key = match.groups()
        _check_label(part, key)
        return (lambda labels: key not in labels) if absent else (lambda labels: key in labels)
    raise status.bad_request(f"unable to parse requirement: {part!r}")


def _check_label(part: str, key: str, *values: str) -> None:
    if not is_label_key(key) or not all(is_label_value(value) for value in values):
        raise status.bad_request(f"unable to parse requirement: {part!r} holds no valid label")


def parse_fields(text: str, kind: Kind) -> Matcher | None:
    """What decides whether an object matches a field selector; None when every object does. Raises ApiError (400)."""
    tests: list[tuple[list[str], bool, str]] = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([^=!]+)(==|!=|=)(.*)", part)
        if match is None:
            raise status.bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        name, operator, wanted = match.groups()
        if name not in ("metadata.name", "metadata.namespace", *kind.fields):
            raise status.bad_request(_unsupported(name, kind))
        tests.append((name.split("."), operator != "!=", wanted))
    if not tests:
        return None
    return lambda value: all((_text(at(value, path)) == wanted) is equal for path, equal, wanted in tests)


def _unsupported(name: str, kind: Kind) -> str:
    if kind.fields or kind.custom:
        return f"field label not supported: {name}"
    return f'"{name}" is not a known field selector: only "metadata.name", "metadata.namespace"'


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def at(value: Any, path: list[str]) -> Any:
    """The value under these keys, or None."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def json_path(value: Any, path: str) -> list[Any]:
    """What a JSON path such as `.status.conditions[?(@.type=='Ready')].status` finds; empty when nothing is there."""
    found = [value]
    for match in _STEP.finditer(path):
        name, index, key, wanted, quoted = match.groups()
        if name or quoted:
            found = [item[name or quoted] for item in found if isinstance(item, dict) and (name or quoted) in item]
            continue
        lists = [item for item in found if isinstance(item, list)]
        if key:
            found = [entry for item in lists for entry in item if _text(at(entry, key.split("."))) == wanted]
        elif index == "*":
            found = [entry for item in lists for entry in item]
        else:
            found = [item[int(index)] for item in lists if int(index) < len(item)]
    return found


def put_at(value: Json, path: str, new: Any) -> Json:
    """A copy of `value` with `new` under a path of plain keys; shares what lies beside it."""
    first, _, rest = path.lstrip(".").partition(".")
    return {**value, first: put_at(value.get(first) or {}, rest, new) if rest else new}
