"""Reads a tree of frozen dataclasses from a TOML file and the environment; says file, line and field when something is wrong.

Order: defaults, then the file, then variables `WORKBENCH__GATEWAY__ROUTING__POLICY=random` (the path of the field, two underscores
between names). Durations may be written as `"500ms"`, `"30s"`, `"5m"`; inside they are float seconds. Sizes may be written as
`"64MiB"`; inside they are int bytes.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from backend.core.errors import ConfigError

T = TypeVar("T")
_SECRET = ("token", "password", "secret", "url")
PREFIX = "WORKBENCH__"
_DURATION = re.compile(r"^\s*([0-9.]+)\s*(ms|s|m|h|d)\s*$")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"^\s*([0-9.]+)\s*(B|KiB|MiB|GiB|TiB)\s*$")
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def load(kind: type[T], file: Path | None = None, *, env: Mapping[str, str] | None = None, section: str = "") -> T:
    """`kind` from its defaults, `file` and `env`. `section` is the variables' second word, such as `GATEWAY`.

    Raises ConfigError for an unreadable file, an unknown field or a value of the wrong type.
    """
    text = ""
    data: dict[str, Any] = {}
    if file is not None:
        text, data = _read(file)
    try:
        _overlay(data, env or {}, f"{PREFIX}{section.upper()}__" if section else PREFIX)
        return typing.cast(T, _build(kind, data, ()))
    except _FieldError as error:
        path = ".".join(error.path)
        raise ConfigError(
            error.problem, file=str(file or "environment"), line=_line_of(text, error.path), field=path, fix=error.fix
        ) from None


class _FieldError(Exception):
    def __init__(self, path: tuple[str, ...], problem: str, fix: str = "") -> None:
        super().__init__(problem)
        self.path, self.problem, self.fix = path, problem, fix


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = file.read_text()
        return text, tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError("no such file", file=str(file)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(file)) from error
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        raise ConfigError(f"is not TOML: {error}", file=str(file), line=int(found[1]) if found else 0) from error


def _overlay(data: dict[str, Any], env: Mapping[str, str], prefix: str) -> None:
    for key, value in env.items():
        if not key.startswith(prefix):
            continue
        *folders, leaf = key[len(prefix) :].lower().split("__")
        place = data
        for name in folders:
            place = place.setdefault(name, {})
        place[leaf] = value


def _build(kind: type, data: Any, path: tuple[str, ...]) -> object:
    if not isinstance(data, dict):
        raise _FieldError(path, f"must be a table, not {_shown(data, path)}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in data:
        if name not in fields:
            near = ", ".join(sorted(fields))
            raise _FieldError((*path, name), "no such field", f"Known here: {near}.")
    values = {name: _convert(hints[name], value, (*path, name)) for name, value in data.items()}
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise _FieldError((*path, missing[0]), "is required")
    try:
        return kind(**values)
    except ValueError as error:
        raise _FieldError(path, str(error)) from None


def _convert(kind: Any, value: Any, path: tuple[str, ...]) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value in (None, ""):
            return None
        return _convert(next(arg for arg in typing.get_args(kind) if arg is not type(None)), value, path)
    if origin is typing.Literal:
        if value not in typing.get_args(kind):
            raise _FieldError(path, f"is {_shown(value, path)}", f"Choose one of: {', '.join(map(str, typing.get_args(kind)))}.")
        return value
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list):
            raise _FieldError(path, f"must be a list, not {_shown(value, path)}")
        return tuple(_convert(typing.get_args(kind)[0], item, (*path, str(at))) for at, item in enumerate(items))
    if origin is dict:
        if not isinstance(value, dict):
            raise _FieldError(path, f"must be a table, not {_shown(value, path)}")
        return {str(key): _convert(typing.get_args(kind)[1], item, (*path, str(key))) for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, path)
    return _scalar(kind, value, path)


def _scalar(kind: Any, value: Any, path: tuple[str, ...]) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "1", "yes", "false", "0", "no"):
            return value.lower() in ("true", "1", "yes")
        raise _FieldError(path, f"must be true or false, not {_shown(value, path)}")
    if kind is float:
        if isinstance(value, str) and (found := _DURATION.match(value)):
            return float(found[1]) * _SECONDS[found[2]]
        return _number(float, value, path, 'a number or a duration such as "500ms"')
    if kind is int:
        if isinstance(value, str) and (found := _SIZE.match(value)):
            return int(float(found[1]) * _BYTES[found[2]])
        return _number(int, value, path, 'a whole number or a size such as "64MiB"')
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    if kind is str and isinstance(value, str):
        return value
    raise _FieldError(path, f"must be {getattr(kind, '__name__', kind)}, not {_shown(value, path)}")


def _number(kind: type, value: Any, path: tuple[str, ...], wanted: str) -> Any:
    try:
        if isinstance(value, bool) or (kind is int and isinstance(value, float) and not value.is_integer()):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError):
        raise _FieldError(path, f"must be {wanted}, not {_shown(value, path)}") from None


def _shown(value: Any, path: tuple[str, ...]) -> str:
    """`value` for an error message: these end in logs and on screens, which is no place for a secret."""
    name, text = ".".join(path).lower(), repr(value)
    return "the value given" if any(word in name for word in _SECRET) or "://" in text else text


def _line_of(text: str, path: tuple[str, ...]) -> int:
    """First line that assigns the last name of `path` behind its table's heading; 0 when the file does not name it."""
    names = [name for name in path if not name.isdigit()]
    if not text or not names:
        return 0
    lines = text.splitlines()
    start = 0
    for index, line in enumerate(lines):
        if len(names) > 1 and re.match(rf"\s*\[\[?\s*{re.escape('.'.join(names[:-1]))}\s*\]\]?", line):
            start = index
            break
    for index in range(start, len(lines)):
        if re.match(rf"\s*{re.escape(names[-1])}\s*=", lines[index]) or re.match(rf"\s*\[\[?\s*{re.escape(names[-1])}\s*\]", lines[index]):
            return index + 1
    return start + 1 if start else 0
