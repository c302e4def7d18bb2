"""What was written and has not come back by the watch yet.

A watch may be slow, and a plan made from its copy alone would do things twice. So every answer of the API server to a write is laid over
the copy until the watch tells the same or something newer. Entries that wait for long are looked up directly (`overdue`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from . import names
from .actions import Object

OVERDUE_S = 10.0

Key = tuple[str, str, str]
"""Resource, namespace, name."""


class Cache(Protocol):
    """The copy that an informer keeps of one resource."""

    def get(self, namespace: str | None, name: str) -> Any: ...

    def by_index(self, name: str, value: str) -> Sequence[Any]: ...


class _Entry(msgspec.Struct):
    object: dict[str, Any] | None
    uid: str
    version: str
    since: float


class OwnWrites:
    """Written objects by key; `object` None stands for a deletion that the server has confirmed."""

    def __init__(self) -> None:
        self._entries: dict[Key, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def wrote(self, resource: str, item: dict[str, Any], now: float) -> None:
        """The server answered a create, a patch or the start of a deletion with this object."""
        meta = item["metadata"]
        entry = _Entry(item, meta.get("uid", ""), meta.get("resourceVersion", ""), now)
        self._entries[resource, meta.get("namespace", ""), meta["name"]] = entry

    def gone(self, resource: str, namespace: str, name: str, uid: str, now: float) -> None:
        """The server no longer has this object."""
        self._entries[resource, namespace, name] = _Entry(None, uid, "", now)

    def drop(self, resource: str, namespace: str, name: str) -> None:
        """The copy is at least as new."""
        self._entries.pop((resource, namespace, name), None)

    def told(self, resource: str, item: Object, *, deleted: bool) -> bool:
        """Take note of what a watch tells. True when it is the echo of an own write and nothing else."""
        meta = item["metadata"]
        key = (resource, meta.get("namespace", ""), meta["name"])
        entry = self._entries.get(key)
        if entry is None:
            return False
        same = meta.get("uid", "") == entry.uid
        if deleted:
            if same:
                del self._entries[key]
            return same and entry.object is None
        if not same:
            if entry.object is None:
                del self._entries[key]
            return False
        if entry.object is None or not _reached(meta.get("resourceVersion", ""), entry.version):
            return True
        del self._entries[key]
        return bool(meta.get("resourceVersion", "") == entry.version)

    def get(self, resource: str, namespace: str, name: str, known: Any) -> Any:
        """`known` by the watch's copy, or what was written since."""
        entry = self._entries.get((resource, namespace, name))
        if entry is None or (entry.object is None and known is not None and known["metadata"].get("uid", "") != entry.uid):
            return known
        return entry.object

    def over(self, resource: str, known: Iterable[Object], owner: str) -> list[Object]:
        """The objects of one owner: those of the copy, each as it was written last, and those which the copy doesn't have yet."""
        merged = {(resource, item["metadata"].get("namespace", ""), item["metadata"]["name"]): item for item in known}
        for key, entry in self._entries.items():
            if key[0] != resource:
                continue
            if entry.object is None:
                if key in merged and merged[key]["metadata"].get("uid", "") == entry.uid:
                    del merged[key]
            elif key in merged or names.controller_uid(entry.object) == owner:
                merged[key] = entry.object
        return list(merged.values())

    def overdue(self, now: float) -> list[Key]:
        """Writes that the watch should have told long ago."""
        return [key for key, entry in self._entries.items() if now - entry.since > OVERDUE_S]

    def settle(self, key: Key, item: dict[str, Any] | None, known: Any, now: float) -> None:
        """The answer of a direct look at an overdue entry (None: there is no such object)."""
        entry = self._entries.get(key)
        if entry is None:
            return
        if item is None:
            if known is None:
                del self._entries[key]
            else:
                self._entries[key] = _Entry(None, known["metadata"].get("uid", ""), "", now)
        elif known is not None and _reached(known["metadata"].get("resourceVersion", ""), item["metadata"].get("resourceVersion", "")):
            del self._entries[key]
        else:
            self.wrote(key[0], item, now)


def _reached(seen: str, written: str) -> bool:
    """Whether a version that was seen is the written one or a later one. Versions that are no numbers are only compared for equality."""
    if seen.isdigit() and written.isdigit():
        return int(seen) >= int(written)
    return seen == written


class View:
    """The copies of all resources with the own writes laid over."""

    def __init__(self, caches: Mapping[str, Cache]) -> None:
        self.caches = caches
        self.writes = OwnWrites()

    def get(self, resource: str, namespace: str, name: str) -> Any:
        return self.writes.get(resource, namespace, name, self.caches[resource].get(namespace, name))

    def seen_uid(self, resource: str, namespace: str, name: str) -> str:
        """UID of what the copy has under this name, to be read before a request; see `wrote`."""
        known = self.caches[resource].get(namespace, name)
        return "" if known is None else str(known["metadata"].get("uid", ""))

    def wrote(self, resource: str, item: dict[str, Any], now: float, *, seen_uid: str = "") -> None:
        """Lay an answer over the copy, unless the watch was quicker than the answer.

        `seen_uid` is what the copy had when the request began: had it this very object, and has it none now, then the watch has told its
        end meanwhile, and what the answer shows is past.
        """
        meta = item["metadata"]
        namespace, name, uid = meta.get("namespace", ""), meta["name"], meta.get("uid", "")
        if meta.get("deletionTimestamp") and not meta.get("finalizers") and resource != names.PODS:
            return self.gone(resource, namespace, name, uid, now)  # its last finalizer went with this write
        known = self.caches[resource].get(namespace, name)
        ended = known is None and seen_uid == uid != ""
        newer = known is not None and known["metadata"].get("uid", "") == uid
        if ended or (newer and _reached(known["metadata"].get("resourceVersion", ""), meta.get("resourceVersion", ""))):
            return self.writes.drop(resource, namespace, name)
        return self.writes.wrote(resource, item, now)

    def gone(self, resource: str, namespace: str, name: str, uid: str, now: float) -> None:
        """The server no longer has this object; nothing to note when the copy hasn't either."""
        if self.seen_uid(resource, namespace, name) == uid:
            self.writes.gone(resource, namespace, name, uid, now)
        else:
            self.writes.drop(resource, namespace, name)

    def owned(self, resource: str, uid: str) -> list[Object]:
        """What the owner with this UID controls; needs the index `owner`."""
        return self.writes.over(resource, self.caches[resource].by_index(OWNER_INDEX, uid), uid)


OWNER_INDEX = "owner"


def owner_index(item: Mapping[str, Any]) -> list[str]:
    """Index function: the UID of the owner that controls an object."""
    uid = names.controller_uid(item)
    return [uid] if uid else []
