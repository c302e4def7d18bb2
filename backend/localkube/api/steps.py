"""Steps of a write that need nothing but the states before and after. Pure, but for `keep`, which completes the state it is given."""

from __future__ import annotations

from backend.localkube.api import status
from backend.localkube.api.kinds import Kind
from backend.localkube.api.status import ApiError, Cause, Json
from backend.localkube.api.writing import Write


def fits(kind: Kind, namespace: str, name: str, meta: Json, before: Json, write: Write) -> None:
    """Whether a wanted state is one of this object, in the version that the client knows."""
    if kind.namespaced and meta.setdefault("namespace", namespace) != namespace:
        raise status.bad_request("the namespace of the provided object does not match the namespace sent on the request")
    if meta.setdefault("name", name) != name:
        raise status.bad_request(f"the name of the object ({meta['name']}) does not match the name on the URL ({name})")
    if (uid := meta.get("uid")) and uid != before["uid"]:
        if write.patch:
            cause = Cause(status.INVALID, "metadata.uid", f'Invalid value: "{uid}": field is immutable')
            raise status.invalid_object(kind, name, [cause])
        why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {before['uid']}"
        raise status.conflict(kind, name, why)
    if (version := meta.get("resourceVersion")) and version != before["resourceVersion"]:
        raise status.conflict(kind, name)


def keep(kind: Kind, value: Json, before: Json, subresource: str) -> None:
    """Put back what this write may not touch."""
    meta, kept = value["metadata"], before["metadata"]
    if subresource == "status":
        if kind.custom:
            meta = value["metadata"] = {**kept, "managedFields": meta.get("managedFields", kept.get("managedFields"))}
        for part in before.keys() | value.keys():
            if part not in ("metadata", "status"):
                _restore(value, before, part)
    elif kind.status and subresource != "binding":
        _restore(value, before, "status")
    if kind.key == "namespaces" and subresource != "finalize":
        _restore(value, before, "spec")
    for name in ("uid", "creationTimestamp", "generation", "resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds"):
        _restore(meta, kept, name)
    meta.pop("selfLink", None)
    if meta.get("managedFields") == [{}]:
        del meta["managedFields"]
    elif "managedFields" in kept:
        meta.setdefault("managedFields", kept["managedFields"])
    for name in ("labels", "annotations", "finalizers", "ownerReferences", "managedFields"):
        if not meta.get(name):
            meta.pop(name, None)


def _restore(target: Json, source: Json, name: str) -> None:
    if name in source:
        target[name] = source[name]
    else:
        target.pop(name, None)


def substance_changed(new: Json, old: Json) -> bool:
    """Whether anything but metadata and status changed."""
    return any(
        new.get(part) is not old.get(part) and new.get(part) != old.get(part)
        for part in new.keys() | old.keys()
        if part not in ("metadata", "status")
    )


def same(new: Json, old: Json) -> bool:
    return all(new.get(part) is old.get(part) for part in new.keys() | old.keys()) or new == old


def is_finished(value: Json) -> bool:
    """Whether nothing holds an object that is to go: no time left, no finalizer."""
    meta = value["metadata"]
    holding = meta.get("finalizers") or (value.get("kind") == "Namespace" and value.get("spec", {}).get("finalizers"))
    return "deletionTimestamp" in meta and not meta.get("deletionGracePeriodSeconds") and not holding


def grace(pod: Json, asked: int | None) -> int:
    """Seconds that a pod gets to end: none when nobody runs it (yet, or any more)."""
    if not pod["spec"].get("nodeName") or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    grace = pod["spec"].get("terminationGracePeriodSeconds", 30) if asked is None else asked
    return grace if grace >= 0 else 1


def undecodable(kind: Kind, value: Json, message: str, write: Write) -> ApiError:
    if not write.patch:
        return status.bad_request(f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {message}')
    cause = Cause(status.INVALID, "patch", f"Invalid value: {message}")
    return status.invalid_object(kind, str(value.get("metadata", {}).get("name", "")), [cause])


def go_message(kind: Kind, cause: Cause) -> str:
    """How a Go server words a value of a wrong type."""
    if "of type " not in cause.message:
        return cause.message
    found, wanted = cause.message.partition('"')[2].partition('"')[0], cause.message.partition("of type ")[2].partition(":")[0]
    place = cause.field.rpartition(".")[0] if cause.field.startswith(("data.", "stringData.")) else cause.field
    return f"json: cannot unmarshal {found} into Go struct field {kind.kind}.{place} of type {wanted}"
