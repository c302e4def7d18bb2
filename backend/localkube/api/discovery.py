"""Discovery and OpenAPI: which groups, versions and resources there are, in the forms that clients ask for."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from backend.localkube.api.crds import priority
from backend.localkube.api.kinds import Kind, Kinds
from backend.localkube.api.schema import LENIENT
from backend.localkube.api.status import Json

VERSION = {
    "major": "1", "minor": "34", "gitVersion": "v1.34.0+localkube", "gitCommit": "", "gitTreeState": "clean", "buildDate": "",
    "goVersion": "", "compiler": "", "platform": "",
}  # fmt: skip
VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_SUB_VERBS = ["get", "patch", "update"]
_SCALE = {"group": "autoscaling", "version": "v1", "kind": "Scale"}
_EXTRA: dict[str, list[tuple[str, Json, list[str]]]] = {
    "pods": [
        ("binding", {"group": "", "version": "v1", "kind": "Binding"}, ["create"]),
        ("eviction", {"group": "policy", "version": "v1", "kind": "Eviction"}, ["create"]),
        ("log", {"group": "", "version": "v1", "kind": "Pod"}, ["get"]),
    ],
    "namespaces": [("finalize", {"group": "", "version": "v1", "kind": "Namespace"}, ["update"])],
}
_PATCH_TYPES = ("application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json")
_PARAMETERS = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in ("dryRun", "fieldManager", "fieldValidation")]
_FORCE = {"name": "force", "in": "query", "schema": {"type": "boolean"}}


def versions_of(kinds: Kinds, group: str) -> list[str]:
    """The versions of a group, the preferred one first."""
    return sorted({kind.version for kind in kinds.of_group(group)}, key=priority, reverse=True)


def groups(kinds: Kinds) -> list[str]:
    return sorted({kind.group for kind in kinds if kind.group})


def core() -> Json:
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def group(kinds: Kinds, name: str) -> Json:
    versions = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions_of(kinds, name)]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def group_list(kinds: Kinds) -> Json:
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group(kinds, name) for name in groups(kinds)]}


def subresources(kind: Kind) -> list[tuple[str, Json, list[str]]]:
    """Name, kind of the answer and verbs of everything below an object."""
    own = {"group": kind.group, "version": kind.version, "kind": kind.kind}
    found = [("scale", _SCALE, _SUB_VERBS)] if kind.scale else []
    found += [("status", own, _SUB_VERBS)] if kind.status else []
    return sorted(found + _EXTRA.get(kind.key, []), key=lambda item: item[0])


def resource_list(kinds: Kinds, name: str, version: str) -> Json | None:
    served = [kind for kind in kinds.of_group(name) if kind.version == version]
    if not served:
        return None
    resources = []
    for kind in sorted(served, key=lambda item: item.plural):
        entry = {"name": kind.plural, "singularName": _singular(kind), "namespaced": kind.namespaced, "kind": kind.kind, "verbs": VERBS}
        resources.append(entry | _names(kind))
        for sub, answer, verbs in subresources(kind):
            other = answer if answer["group"] != kind.group else {"kind": answer["kind"]}
            resources.append({"name": f"{kind.plural}/{sub}", "singularName": "", "namespaced": kind.namespaced, **other, "verbs": verbs})
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{name}/{version}" if name else version, "resources": resources}


def _singular(kind: Kind) -> str:
    return kind.singular or kind.kind.lower()


def _names(kind: Kind) -> Json:
    names: Json = {"shortNames": list(kind.short_names)} if kind.short_names else {}
    return names | ({"categories": list(kind.categories)} if kind.categories else {})


def aggregated(kinds: Kinds, *, core_group: bool) -> Json:
    """All resources in one document (apidiscovery.k8s.io/v2): of the core group, or of all others."""
    items = []
    for name in [""] if core_group else groups(kinds):
        versions = [
            {"version": version, "resources": _resources(kinds, name, version), "freshness": "Current"}
            for version in versions_of(kinds, name)
        ]
        items.append({"metadata": {"name": name} if name else {}, "versions": versions})
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


def _resources(kinds: Kinds, name: str, version: str) -> list[Json]:
    served = [kind for kind in kinds.of_group(name) if kind.version == version]
    return [
        {
            "resource": kind.plural,
            "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "singularResource": _singular(kind),
            "verbs": VERBS,
            **_names(kind),
            "subresources": [{"subresource": sub, "responseKind": answer, "verbs": verbs} for sub, answer, verbs in subresources(kind)],
        }
        for kind in sorted(served, key=lambda item: item.plural)
    ]


def openapi_index(kinds: Kinds) -> Json:
    """Where the document of each group version is; the hash lets clients keep what they have."""
    paths = {}
    for prefix in sorted({kind.prefix for kind in kinds}):
        digest = hashlib.sha256(json.dumps(openapi(kinds, prefix), sort_keys=True).encode()).hexdigest()[:32].upper()
        paths[prefix.lstrip("/")] = {"serverRelativeURL": f"/openapi/v3{prefix}?hash={digest}"}
    return {"paths": paths}


def openapi(kinds: Kinds, prefix: str) -> Json | None:
    """OpenAPI v3 of one group version: how objects are patched, and their schemas."""
    served = [kind for kind in kinds if kind.prefix == prefix]
    if not served:
        return None
    paths, schemas = {}, {}
    for kind in served:
        own = {"group": kind.group, "version": kind.version, "kind": kind.kind}
        types = (*_PATCH_TYPES, *(() if kind.custom else ("application/strategic-merge-patch+json",)))
        patch = {
            "parameters": [*_PARAMETERS, _FORCE],
            "requestBody": {"content": {name: {"schema": {"type": "object"}} for name in types}},
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": own,
        }
        middle = "/namespaces/{namespace}" if kind.namespaced else ""
        paths[f"{prefix}{middle}/{kind.plural}/{{name}}"] = {"patch": patch}
        schemas[_schema_name(kind)] = {**_plain(kind.source), "x-kubernetes-group-version-kind": [own]}
    info = {"title": "Kubernetes", "version": VERSION["gitVersion"]}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _schema_name(kind: Kind) -> str:
    if kind.custom:
        return ".".join([*reversed(kind.group.split(".")), kind.version, kind.kind])
    return f"io.k8s.api.{kind.group.split('.')[0] or 'core'}.{kind.version}.{kind.kind}"


def _plain(raw: Any) -> Any:
    """A schema without our own marks and types."""
    if isinstance(raw, dict):
        ours = {"type": "string"} if raw.get("type") in ("quantity", "time") else {}
        return {name: _plain(item) for name, item in raw.items() if name != LENIENT} | ours
    return [_plain(item) for item in raw] if isinstance(raw, list) else raw
