"""Makes sure that what a program needs in a cluster is there: namespaces and CRDs first, then the rest.

Server-side apply creates what is missing and changes only the fields named. A server without it gets a create, and a merge
patch of what exists.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from backend.core.errors import ConfigError, NotFound, PermanentError, Unavailable
from backend.kube.client import KubeClient
from backend.kube.errors import ApiError
from backend.kube.resources import CUSTOM_RESOURCE_DEFINITIONS, NAMESPACES, Object, Resource, uid_of, version_of

log = logging.getLogger(__name__)

FIELD_MANAGER = "fleet-workbench"
ESTABLISH_S = 30.0
_LOOK_S = 0.1
_FIRST = (NAMESPACES.kind, CUSTOM_RESOURCE_DEFINITIONS.kind)

Outcome = Literal["created", "changed", "unchanged"]


@dataclass(frozen=True, slots=True)
class Ensured:
    """What became of one document."""

    kind: str
    namespace: str
    name: str
    outcome: Outcome


def read_documents(file: Path) -> list[Object]:
    """The documents of a YAML file, lists unfolded. Raises ConfigError naming file and line."""
    documents: list[Object] = []
    try:
        for document in yaml.safe_load_all(file.read_text()):
            items = document.get("items") or [] if isinstance(document, dict) and document.get("kind") == "List" else [document]
            documents.extend(item for item in items if item is not None)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(file)) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"is not YAML: {error}", file=str(file), line=mark.line + 1 if mark else 0) from error
    for at, document in enumerate(documents, 1):
        if not isinstance(document, dict):
            raise ConfigError(f"document {at} is not a mapping", file=str(file))
    return documents


async def ensure(client: KubeClient, documents: Iterable[Mapping[str, Any]], *, namespace: str | None = None) -> list[Ensured]:
    """Apply all documents, those of a CRD's kinds after it is established. `namespace` is for those that name none.

    Raises ConfigError for a document without kind or name, ApiError naming the field for one that the server refuses, NotFound for a
    kind that the server does not know.
    """
    ordered = sorted(documents, key=lambda document: _FIRST.index(document["kind"]) if document.get("kind") in _FIRST else len(_FIRST))
    done: list[Ensured] = []
    waiting: list[str] = []
    for document in ordered:
        if waiting and document.get("kind") not in _FIRST:
            for crd in waiting:
                await wait_established(client, crd)
            waiting = []
        done.append(await _ensure_one(client, document, namespace))
        if document["kind"] == CUSTOM_RESOURCE_DEFINITIONS.kind:
            waiting.append(done[-1].name)
    for crd in waiting:
        await wait_established(client, crd)
    return done


async def wait_established(client: KubeClient, crd: str, *, timeout_s: float = ESTABLISH_S) -> None:
    """Wait until the server serves the kind of a CRD. Raises PermanentError when its names are taken, Unavailable after `timeout_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        definition = await client.get(CUSTOM_RESOURCE_DEFINITIONS, None, crd)
        conditions = {item.get("type"): item for item in (definition.get("status") or {}).get("conditions") or ()}
        names = conditions.get("NamesAccepted") or {}
        if names.get("status") == "False":
            raise PermanentError(
                f"The cluster does not accept the names of {crd}: {names.get('message') or names.get('reason')}.",
                fix="Remove the other CRD that has one of them.",
            )
        if (conditions.get("Established") or {}).get("status") == "True" and await _served(client, definition):
            return
        if loop.time() >= deadline:
            raise Unavailable(
                f"The CRD {crd} is still not established after {timeout_s:g} s.", fix=f"Look at `kubectl describe crd {crd}`."
            )
        await asyncio.sleep(_LOOK_S)


async def resource_of(client: KubeClient, api_version: str, kind: str) -> Resource:
    """Under which path the server keeps objects of a kind, by its discovery. Raises NotFound for a kind that it does not know."""
    group, _, version = api_version.rpartition("/")
    root = f"/apis/{api_version}" if group else f"/api/{api_version}"
    try:
        listed = (await client.raw("GET", root)).json()
    except ApiError as error:
        if not error.not_found:
            raise
        listed = {}
    for entry in listed.get("resources") or ():
        if entry.get("kind") == kind and "/" not in entry["name"]:
            return Resource(group, version, entry["name"], kind, bool(entry.get("namespaced")))
    raise NotFound(f"The cluster knows no {kind} in {api_version}.", fix="Install its CRD first, or correct apiVersion and kind.")


async def _ensure_one(client: KubeClient, document: Mapping[str, Any], namespace: str | None) -> Ensured:
    kind, api_version = document.get("kind"), document.get("apiVersion")
    name = (document.get("metadata") or {}).get("name")
    for field, value in (("kind", kind), ("apiVersion", api_version), ("metadata.name", name)):
        if not isinstance(value, str) or not value:
            raise ConfigError("is required in a document that is to be applied", field=field)
    resource = await _resource(client, str(api_version), str(kind))
    place = document["metadata"].get("namespace") or namespace or client.access.namespace if resource.namespaced else None
    try:
        before = await client.get(resource, place, str(name))
    except ApiError as error:
        if not error.not_found:
            raise
        before = {}
    after = await _write(client, resource, place, str(name), document)
    outcome: Outcome = "created" if uid_of(before) != uid_of(after) else "changed"
    if before and version_of(before) == version_of(after):
        outcome = "unchanged"
    log.info("%s %s: %s", kind, f"{place}/{name}" if place else name, outcome)
    return Ensured(str(kind), place or "", str(name), outcome)


async def _resource(client: KubeClient, api_version: str, kind: str) -> Resource:
    """The kinds that everything begins with need no discovery."""
    for known in (NAMESPACES, CUSTOM_RESOURCE_DEFINITIONS):
        if (api_version, kind) == (known.api_version, known.kind):
            return known
    return await resource_of(client, api_version, kind)


async def _write(client: KubeClient, resource: Resource, place: str | None, name: str, document: Mapping[str, Any]) -> Object:
    try:
        return await client.patch(resource, place, name, document, kind="apply", field_manager=FIELD_MANAGER, force=True)
    except ApiError as error:
        if error.status != 415:
            raise
    try:
        return await client.create(resource, place, document, field_manager=FIELD_MANAGER)
    except ApiError as error:
        if not error.already_exists:
            raise
    return await client.patch(resource, place, name, document, kind="merge", field_manager=FIELD_MANAGER)


async def _served(client: KubeClient, definition: Object) -> bool:
    """Discovery lags a little behind the condition."""
    spec = definition["spec"]
    version = next((item["name"] for item in spec["versions"] if item.get("served")), "")
    try:
        await resource_of(client, f"{spec['group']}/{version}", spec["names"]["kind"])
    except NotFound:
        return False
    return True
