"""Which kind of patch a body is, and what it makes of an object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from backend.localkube.api import applying, bodies, patches, status
from backend.localkube.api.kinds import Kind
from backend.localkube.api.status import REQUIRED, Cause, Json

JSON_PATCH, MERGE = "application/json-patch+json", "application/merge-patch+json"
STRATEGIC, APPLY = "application/strategic-merge-patch+json", "application/apply-patch+yaml"


@dataclass(frozen=True)
class Patch:
    """What is done to an object; only server-side apply `creates` a missing one."""

    apply: Callable[[Json], Json]
    creates: bool = False
    new: Callable[[str], Json] = lambda _: {}


def patcher(content_type: str, data: bytes, query: Mapping[str, str], kind: Kind, *, now: float, sub: str = "") -> Patch:
    """The patch in a body. Raises ApiError: 400 for a broken one, 415 for a media type that the kind does not know."""
    media = content_type.partition(";")[0].strip()
    known = [JSON_PATCH, MERGE, *([] if kind.custom else [STRATEGIC]), APPLY]
    if media not in known:
        raise status.unknown_format(known)
    body = bodies.read(data, media)
    if media == JSON_PATCH:
        return Patch(lambda old: patches.json_patch(old, body))
    if not isinstance(body, dict):
        raise status.bad_request("error decoding patch: the body is no object")
    if media == MERGE:
        return Patch(lambda old: patches.merge(old, body))
    if media == STRATEGIC:
        return Patch(lambda old: patches.strategic(old, body, kind.schema))
    manager = query.get("fieldManager")
    if not manager:
        cause = Cause(REQUIRED, "fieldManager", "Required value: is required for apply patch")
        raise status.invalid_options("PatchOptions", [cause])
    asked = applying.Apply(body, manager, kind, force=query.get("force") == "true", now=now, sub="" if sub == "scale" else sub)
    return Patch(asked.onto, creates=True, new=asked.new)
