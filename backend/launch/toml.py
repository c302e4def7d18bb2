"""Settings as a TOML file that `backend.core.config` reads back: only what differs from the defaults, so that people see the point."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any


def dump(settings: Any, *, heading: str = "") -> str:
    """The text of a configuration file for a tree of settings dataclasses."""
    lines = [f"# {line}" for line in heading.splitlines()]
    lines += _table(_changed(settings), ())
    return "\n".join(lines).strip() + "\n"


def _changed(settings: Any) -> dict[str, Any]:
    """Values that differ from the field's default; nested dataclasses as dictionaries."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if value is None or value == default:
            continue
        found[field.name] = _changed(value) if dataclasses.is_dataclass(value) else value
    return found


def _table(values: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {name: value for name, value in values.items() if not isinstance(value, dict)}
    lines = [f"\n[{'.'.join(map(_key, path))}]"] if path and plain else []
    lines += [f"{_key(name)} = {_value(value)}" for name, value in plain.items()]
    for name, value in values.items():
        if isinstance(value, dict):
            lines += _table(value, (*path, name))
    return lines


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case Path() | str():
            return json.dumps(str(value), ensure_ascii=False)
        case tuple() | list():
            return f"[{', '.join(map(_value, value))}]"
    raise TypeError(f"no TOML for {value!r}")
