"""Structural schemas: what the fields of an object may be, for built-in kinds and for custom resources alike.

A schema is compiled once from its OpenAPI v3 form. `shape` makes the stored form (unknown fields pruned, defaults filled,
nulls dropped), `check` names everything that is wrong. Both are pure: the value that is handed in stays as it is.
"""

from __future__ import annotations

import copy
import json
import re
from datetime import datetime
from typing import Any

from backend.localkube.api.status import DUPLICATE, INVALID, REQUIRED, TOO_LONG, UNSUPPORTED, WRONG_TYPE, Cause, Json

MISSING: Any = object()
LENIENT = "x-lenient"
"""Marks a list of a built-in kind that merges by keys, but may hold a key twice."""
QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?")
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "int-or-string": (int, str),
    "quantity": (str, int, float),
    "time": (str,),
}
_EMBEDDED: Json = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}


class Schema:
    """One node of a compiled schema."""

    __slots__ = (
        "default", "defaults", "extra", "items", "keys", "list_type", "nullable", "preserve", "props", "raw", "required", "rules", "type",
        "types", "unique",
    )  # fmt: skip

    def __init__(self, raw: Json) -> None:
        self.raw = raw
        self.type = "int-or-string" if raw.get("x-kubernetes-int-or-string") else str(raw.get("type", ""))
        self.types = _TYPES.get(self.type, ())
        props = dict(raw.get("properties") or {})
        self.preserve = bool(raw.get("x-kubernetes-preserve-unknown-fields"))
        if raw.get("x-kubernetes-embedded-resource"):
            props = {**_EMBEDDED, "metadata": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}, **props}
        self.props = {name: Schema(child) for name, child in props.items()}
        extra = raw.get("additionalProperties")
        self.extra = Schema(extra) if isinstance(extra, dict) else None
        self.preserve |= extra is True
        self.items = Schema(raw["items"]) if isinstance(raw.get("items"), dict) else None
        self.required: list[str] = list(raw.get("required") or ())
        self.nullable = bool(raw.get("nullable"))
        self.list_type = str(raw.get("x-kubernetes-list-type") or "atomic")
        self.unique = self.list_type in ("map", "set") and not raw.get(LENIENT)
        self.keys: list[str] = list(raw.get("x-kubernetes-list-map-keys") or ())
        self.default = raw.get("default", MISSING)
        self.defaults = [(name, child.default) for name, child in self.props.items() if child.default is not MISSING]
        if self.default is not MISSING:
            self.default = self.shape(self.default, "", [])
        self.rules = any(name in raw for name in _RULES)

    def child(self, name: str) -> Schema | None:
        """The schema of a field; None when it is free or unknown."""
        return self.props.get(name) or self.extra

    def shape(self, value: Any, path: str, unknown: list[str]) -> Any:
        """The stored form of `value`; paths of what was pruned are added to `unknown`."""
        if isinstance(value, dict) and (self.type == "object" or self.preserve):
            return self._shape_object(value, path, unknown)
        if isinstance(value, list) and self.items is not None:
            items = self.items
            return [items.shape(item, f"{path}[{index}]", unknown) for index, item in enumerate(value)]
        if isinstance(value, float) and self.type == "integer" and value.is_integer():
            return int(value)
        return value

    def _shape_object(self, value: Json, path: str, unknown: list[str]) -> Json:
        shaped: Json = {}
        props, extra = self.props, self.extra
        for name, item in value.items():
            child = props.get(name) or extra
            if child is None:
                if self.preserve:
                    shaped[name] = item
                else:
                    unknown.append(f"{path}.{name}" if path else name)
            elif item is None:
                if child.nullable:
                    shaped[name] = None
            else:
                shaped[name] = child.shape(item, f"{path}.{name}" if path else name, unknown)
        for name, default in self.defaults:
            if name not in shaped:
                shaped[name] = copy.deepcopy(default)
        return shaped

    def check(self, value: Any, path: str, causes: list[Cause], old: Any = MISSING) -> None:
        """Add what is wrong with `value` to `causes`. What did not change since `old` may stay, even if it became invalid."""
        if old is not MISSING and (old is value or old == value):
            return
        if value is None and self.nullable:
            return
        if self.types and (not isinstance(value, self.types) or (isinstance(value, bool) and self.type != "boolean")):
            causes.append(_wrong_type(self, value, path))
            return
        if self.rules:
            for name, rule in _RULES.items():
                if name in self.raw and (cause := rule(self.raw[name], value, path)) is not None:
                    causes.append(cause)
        if isinstance(value, dict):
            self._check_object(value, path, causes, old)
        elif isinstance(value, list):
            self._check_list(value, path, causes, old)
        elif self.type == "quantity" and not QUANTITY.fullmatch(str(value)):
            message = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
            causes.append(Cause(WRONG_TYPE, path, message))
        elif self.type == "time" and not _is_time(value):
            causes.append(Cause(WRONG_TYPE, path, f'{path}: parsing time "{value}": it is not in RFC 3339'))

    def _check_object(self, value: Json, path: str, causes: list[Cause], old: Any) -> None:
        before = old if isinstance(old, dict) else {}
        absent = (name for name in self.required if name not in value)
        causes.extend(Cause(REQUIRED, f"{path}.{name}" if path else name, "Required value") for name in absent)
        props, extra = self.props, self.extra
        for name, item in value.items():
            child = props.get(name) or extra
            if child is not None:
                child.check(item, f"{path}.{name}" if path else name, causes, before.get(name, MISSING))

    def _check_list(self, value: list[Any], path: str, causes: list[Cause], old: Any) -> None:
        before = {self.identity(item): item for item in old} if self.keys and isinstance(old, list) else {}
        seen = set()
        for index, item in enumerate(value):
            if self.items is not None:
                self.items.check(item, f"{path}[{index}]", causes, before.get(self.identity(item), MISSING) if before else MISSING)
            if self.unique:
                identity = self.identity(item)
                if identity in seen:
                    causes.append(Cause(DUPLICATE, f"{path}[{index}]", f"Duplicate value: {identity}"))
                seen.add(identity)

    def identity(self, item: Any) -> str:
        """What makes an element of a map or set list the same element: its keys as JSON, or the value itself."""
        if not self.keys:
            return json.dumps(item, separators=(",", ":"), sort_keys=True)
        if not isinstance(item, dict):
            return ""
        node = self.items
        keys: Json = {}
        for key in self.keys:
            default = node.props[key].default if node is not None and key in node.props else MISSING
            if (found := item.get(key, default)) is not MISSING:
                keys[key] = found
        return json.dumps(keys, separators=(",", ":"), sort_keys=True)


def _is_time(text: str) -> bool:
    try:
        return "T" in text and datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _wrong_type(schema: Schema, value: Any, path: str) -> Cause:
    name = "integer or string" if schema.type == "int-or-string" else schema.type
    return Cause(WRONG_TYPE, path, f'Invalid value: "{json_type(value)}": {path} in body must be of type {name}: "{json_type(value)}"')


def json_type(value: Any) -> str:
    """How JSON calls the type of a value."""
    names = ((bool, "boolean"), (str, "string"), (int, "integer"), (float, "number"), (dict, "object"), (list, "array"))
    return next((name for kind, name in names if isinstance(value, kind)), "null")


def _enum(allowed: list[Any], value: Any, path: str) -> Cause | None:
    if value in allowed:
        return None
    listed = ", ".join(json.dumps(item) for item in allowed)
    return Cause(UNSUPPORTED, path, f"Unsupported value: {json.dumps(value)}: supported values: {listed}")


def _bound(holds: Any, text: str) -> Any:
    def rule(limit: Any, value: Any, path: str) -> Cause | None:
        if not isinstance(value, int | float) or isinstance(value, bool) or holds(value, limit):
            return None
        return Cause(INVALID, path, f"Invalid value: {value}: {path} in body should be {text} {limit}")

    return rule


def _size(kind: type[str | list[Any] | dict[str, Any]], holds: Any, text: str, reason: str) -> Any:
    def rule(limit: int, value: Any, path: str) -> Cause | None:
        if not isinstance(value, kind) or holds(len(value), limit):
            return None
        if reason == TOO_LONG:
            return Cause(TOO_LONG, path, f"Too long: may not be more than {limit} bytes")
        return Cause(reason, path, f"Invalid value: {json.dumps(value)[:80]}: {path} in body should {text} {limit}")

    return rule


def _pattern(pattern: str, value: Any, path: str) -> Cause | None:
    if not isinstance(value, str) or re.search(pattern, value):
        return None
    return Cause(INVALID, path, f"Invalid value: {json.dumps(value)}: {path} in body should match '{pattern}'")


def _most(value: Any, limit: Any) -> bool:
    return bool(value <= limit)


def _least(value: Any, limit: Any) -> bool:
    return bool(value >= limit)


_RULES: dict[str, Any] = {
    "enum": _enum,
    "minimum": _bound(_least, "greater than or equal to"),
    "maximum": _bound(_most, "less than or equal to"),
    "pattern": _pattern,
    "maxLength": _size(str, _most, "", TOO_LONG),
    "minLength": _size(str, _least, "be at least", INVALID),
    "maxItems": _size(list, _most, "have at most", "FieldValueTooMany"),
    "minItems": _size(list, _least, "have at least", INVALID),
    "maxProperties": _size(dict, _most, "have at most", "FieldValueTooMany"),
    "minProperties": _size(dict, _least, "have at least", INVALID),
}


def problems(raw: Any, path: str = "spec.validation.openAPIV3Schema", *, top: bool = True) -> list[Cause]:
    """Why a schema is not structural; empty when it is. `path` is where it stands in its CustomResourceDefinition."""
    if not isinstance(raw, dict):
        return [Cause(REQUIRED, path, "Required value: schemas are required")]
    found: list[Cause] = []
    free = raw.get("x-kubernetes-int-or-string") or raw.get("x-kubernetes-preserve-unknown-fields")
    kind = raw.get("type", "")
    if not kind and (top or not free):
        found.append(Cause(REQUIRED, f"{path}.type", "Required value: must not be empty for specified object fields"))
    if top and kind not in ("", "object"):
        found.append(Cause(INVALID, f"{path}.type", f'Invalid value: "{kind}": must be object at the root'))
    if raw.get("x-kubernetes-preserve-unknown-fields") is False:
        message = "Invalid value: false: must be true or undefined"
        found.append(Cause(INVALID, f"{path}.x-kubernetes-preserve-unknown-fields", message))
    if kind == "array" and not isinstance(raw.get("items"), dict):
        found.append(Cause(REQUIRED, f"{path}.items", "Required value: must be specified"))
    for name, child in (raw.get("properties") or {}).items():
        found += problems(child, f"{path}.properties[{name}]", top=False)
    for name in ("items", "additionalProperties"):
        if isinstance(raw.get(name), dict):
            found += problems(raw[name], f"{path}.{name}", top=False)
    if not found and raw.get("default") is not None:
        causes: list[Cause] = []
        Schema(raw).check(raw["default"], f"{path}.default", causes)
        found += causes
    return found
