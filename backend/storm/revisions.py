"""ControllerRevisions: every template a StormService has had, so that any of them can come back.

Only `spec.template` is kept. An older template that is applied again gets the newest number instead of a copy; a name that belongs to
something else is avoided by counting collisions into the hash.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any

import msgspec

from . import names
from .actions import Action, Create, Delete, Object, Patch
from .hashing import canonical, revision_hash
from .model import read_role_set


class Revision(msgspec.Struct, frozen=True):
    """One template of a StormService; `number` grows with every change."""

    name: str
    number: int
    template: dict[str, Any]
    uid: str = ""


class Revisions(msgspec.Struct, frozen=True):
    """The revision that is wanted, the one that was complete last, and what must be written first."""

    update: Revision
    current: Revision
    collisions: int
    owned: tuple[Revision, ...]
    actions: tuple[Action, ...] = ()


def sync(service: Object, template: dict[str, Any], found: Iterable[Object], taken: Collection[str]) -> Revisions:
    """Find or make the revision of `template`."""
    meta, status = service["metadata"], service.get("status") or {}
    found = [item for item in found if item["metadata"].get("namespace", "") == meta.get("namespace", "")]
    mine = [item for item in found if names.controller_uid(item) == meta.get("uid", "")]
    owned = sorted((_read(item) for item in mine), key=lambda revision: (revision.number, revision.name))
    collisions = int(status.get("collisionCount") or 0)
    data = _canonical(template)
    equal = [revision for revision in owned if _canonical(revision.template) == data]
    newest = owned[-1].number if owned else 0
    actions: tuple[Action, ...] = ()
    if equal and equal[-1].number == newest:
        update = equal[-1]
    elif equal:
        update = msgspec.structs.replace(equal[-1], number=newest + 1)
        reason = f"an older template is wanted again; it was revision {equal[-1].number}"
        patch = {"revision": update.number}
        actions = (Patch(names.CONTROLLER_REVISIONS, meta.get("namespace", ""), update.name, patch, reason),)
    else:
        occupied = {item["metadata"]["name"] for item in found} | set(taken)
        name = names.revision_name(meta["name"], revision_hash(data, collisions))
        while name in occupied:
            collisions += 1
            name = names.revision_name(meta["name"], revision_hash(data, collisions))
        update = Revision(name, newest + 1, template)
        actions = (Create(names.CONTROLLER_REVISIONS, _render(service, update), "a template not seen before"),)
    current = next((revision for revision in owned if revision.name == status.get("currentRevision")), update)
    if current.name == update.name:
        current = update
    return Revisions(update, current, collisions, tuple(owned), actions)


def truncate(revisions: Revisions, live: Collection[str], limit: int, namespace: str) -> list[Action]:
    """Delete the oldest revisions that nothing uses, beyond `limit`."""
    used = {revisions.update.name, revisions.current.name, *live}
    idle = [revision for revision in revisions.owned if revision.name not in used]
    return [
        Delete(names.CONTROLLER_REVISIONS, namespace, revision.name, revision.uid, f"history limit of {limit}")
        for revision in idle[: max(0, len(idle) - limit)]
    ]


def role_revisions(revisions: Revisions) -> dict[str, Revision]:
    """For each wanted role the revision that its pods are told: the current one while the role's template is unchanged."""
    before = _hashes(revisions.current)
    wanted = _hashes(revisions.update)
    return {name: revisions.current if before.get(name) == value else revisions.update for name, value in wanted.items()}


def _hashes(revision: Revision) -> dict[str, str]:
    return {role.name: role.template_hash for role in read_role_set(revision.template.get("spec")).roles}


def _read(item: Object) -> Revision:
    template = dict(((item.get("data") or {}).get("spec") or {}).get("template") or {})
    template.pop("$patch", None)
    meta = item["metadata"]
    return Revision(meta["name"], int(item.get("revision") or 0), template, meta.get("uid", ""))


def _render(service: Object, revision: Revision) -> dict[str, Any]:
    meta = service["metadata"]
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": revision.name,
            "namespace": meta.get("namespace", ""),
            "labels": {names.REVISION_OWNER_LABEL: meta["name"], names.REVISION_HASH_LABEL: revision.name.rsplit("-", 1)[1]},
            "ownerReferences": [names.owner_reference(names.STORM_SERVICE_KIND, service)],
        },
        "data": {"spec": {"template": {**revision.template, "$patch": "replace"}}},
        "revision": revision.number,
    }


def _canonical(template: Any) -> bytes:
    return _canonical_of(msgspec.json.encode(template))


@lru_cache(maxsize=512)
def _canonical_of(encoded: bytes) -> bytes:
    return canonical(msgspec.json.decode(encoded))
