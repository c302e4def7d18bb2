"""Whether a specification has the types it must have, before anything is read from it.

An API server with our CRDs refuses most of this; one with older CRDs, and a file that has not been applied yet, does not.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .actions import Problem

Text = dict[str, str] | None


class _Metadata(msgspec.Struct):
    labels: Text = None
    annotations: Text = None


class _Container(msgspec.Struct):
    env: list[dict[str, Any]] | None = None
    name: str | None = None
    image: str | None = None


class _PodSpec(msgspec.Struct):
    containers: list[_Container] | None = None


class _PodTemplate(msgspec.Struct):
    metadata: _Metadata | None = None
    spec: _PodSpec | None = None


class _Strategy(msgspec.Struct):
    type: str | None = None


class _Role(msgspec.Struct):
    name: str | None = None
    podGroupSize: int | None = None  # noqa: N815 - the field's name in the object
    stateful: bool | None = None
    updateStrategy: _Strategy | None = None  # noqa: N815 - the field's name in the object
    template: _PodTemplate | None = None


class _RoleSet(msgspec.Struct):
    roles: list[dict[str, Any]] | None = None
    updateStrategy: str | None = None  # noqa: N815 - the field's name in the object


class _Term(msgspec.Struct):
    key: str
    operator: str
    values: list[str] | None = None


class _Selector(msgspec.Struct):
    matchLabels: Text = None  # noqa: N815 - the field's name in the object
    matchExpressions: list[_Term] | None = None  # noqa: N815 - the field's name in the object


class _GroupTemplate(msgspec.Struct):
    metadata: _Metadata | None = None
    spec: dict[str, Any] | None = None


class _Service(msgspec.Struct):
    selector: _Selector | None = None
    template: _GroupTemplate | None = None
    updateStrategy: _Strategy | None = None  # noqa: N815 - the field's name in the object
    paused: bool | None = None


def service_shape(spec: Any) -> list[Problem]:
    """Wrong types in a StormService's specification, the RoleSet's part left out."""
    return _misfit(spec, _Service, "spec")


def role_set_shape(spec: Any) -> list[Problem]:
    """Wrong types in a RoleSet's specification, at most one a role."""
    problems = _misfit(spec, _RoleSet, "spec")
    if problems or not spec:
        return problems
    for position, entry in enumerate(spec.get("roles") or ()):
        problems += _misfit(entry, _Role, f"spec.roles[{position}]")
    return problems


def _misfit(value: Any, shape: Any, path: str) -> list[Problem]:
    try:
        msgspec.convert(value, shape | None)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        return [Problem(path + place.rstrip("`"), f"{message}.")]
    return []
