"""CustomResourceDefinitions: what is wrong with one, its status, and the kinds that it brings."""

from __future__ import annotations

import re
from typing import Any

from backend.localkube.api import builtins, schema
from backend.localkube.api.kinds import Column, Kind, Scale
from backend.localkube.api.status import INVALID, REQUIRED, Cause, Json

CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
"""The finalizer that holds a definition until its objects are gone."""
_VERSION = re.compile(r"v(\d+)(?:(alpha|beta)(\d+))?")
_RANK = {None: 2, "beta": 1, "alpha": 0}
_AGE = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}


def problems(definition: Json) -> list[Cause]:
    """What is wrong with a definition whose fields have the right types."""
    spec = definition["spec"]
    name = f"{spec['names']['plural']}.{spec['group']}"
    causes = []
    if definition["metadata"].get("name") != name:
        message = f'Invalid value: "{definition["metadata"].get("name")}": must be spec.names.plural+"."+spec.group'
        causes.append(Cause(INVALID, "metadata.name", message))
    versions = spec["versions"]
    if not versions:
        causes.append(Cause(REQUIRED, "spec.versions", "Required value: must have at least one version"))
    if sum(bool(version.get("storage")) for version in versions) != 1:
        message = f"Invalid value: {len(versions)} versions: must have exactly one version marked as storage version"
        causes.append(Cause(INVALID, "spec.versions", message))
    for index, version in enumerate(versions):
        path = f"spec.versions[{index}].schema.openAPIV3Schema"
        causes += schema.problems((version.get("schema") or {}).get("openAPIV3Schema"), path)
    return causes


def complete(definition: Json) -> None:
    """Fill the names that follow from the kind."""
    names = definition["spec"]["names"]
    names.setdefault("singular", names["kind"].lower())
    names.setdefault("listKind", f"{names['kind']}List")


def accepted(definition: Json, now: str) -> Json:
    """The status of a definition that is served."""
    spec, status = definition["spec"], definition.get("status", {})
    storage = next((version["name"] for version in spec["versions"] if version.get("storage")), "")
    conditions = status.get("conditions") or [
        _condition("NamesAccepted", "NoConflicts", "no conflicts found", now),
        _condition("Established", "InitialNamesAccepted", "the initial names have been accepted", now),
    ]
    known = status.get("storedVersions") or []
    return {
        "conditions": conditions,
        "acceptedNames": spec["names"],
        "storedVersions": known if storage in known else [*known, storage],
    }


def _condition(kind: str, reason: str, message: str, now: str) -> Json:
    return {"type": kind, "status": "True", "lastTransitionTime": now, "reason": reason, "message": message}


def kinds(definition: Json) -> list[Kind]:
    """The kinds of a definition, one a served version; the storage version always."""
    versions = [version for version in definition["spec"]["versions"] if version.get("served") or version.get("storage")]
    return [_kind(definition["spec"], version) for version in versions]


def _kind(spec: Json, version: Json) -> Kind:
    names = spec["names"]
    subresources = version.get("subresources") or {}
    scale = subresources.get("scale")
    entries = version.get("additionalPrinterColumns") or [_AGE]
    return Kind(
        group=spec["group"],
        version=version["name"],
        plural=names["plural"],
        kind=names["kind"],
        namespaced=spec["scope"] == "Namespaced",
        source=builtins.root(version["schema"]["openAPIV3Schema"]),
        singular=names.get("singular", ""),
        list_kind=names.get("listKind", ""),
        short_names=tuple(names.get("shortNames") or ()),
        categories=tuple(names.get("categories") or ()),
        status="status" in subresources,
        scale=Scale(scale["specReplicasPath"], scale["statusReplicasPath"], scale.get("labelSelectorPath") or "") if scale else None,
        columns=(builtins.columns(())[0], *(_column(entry) for entry in entries)),
        fields=tuple(entry["jsonPath"].removeprefix(".") for entry in version.get("selectableFields") or ()),
        counts=True,
        custom=True,
        storage=bool(version.get("storage")),
    )


def _column(entry: Json) -> Column:
    return Column(
        entry["name"],
        entry["type"],
        entry["jsonPath"],
        format=entry.get("format", ""),
        description=entry.get("description", ""),
        priority=entry.get("priority", 0),
        age=entry["type"] == "date",
    )


def priority(version: str) -> tuple[Any, ...]:
    """Order of versions, greatest first: v2 before v1 before v1beta1, others behind."""
    match = _VERSION.fullmatch(version)
    if match is None:
        return (-1, 0, 0)
    return (_RANK[match.group(2)], int(match.group(1)), int(match.group(3) or 0))
