"""Objects in memory and in sqlite, under one resource version that grows with every write of any kind.

Memory is what is read. Each write is one statement in sqlite's write-ahead log before anybody hears of it, so a killed process
loses nothing that it acknowledged (a machine that loses power may lose the last moments). The last changes of each resource are
kept in memory: watches and pages go on from them. They end with the process: every start begins at a version far beyond
any that was issued, so what clients remember of the last process is expired, as after a compaction of etcd.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from backend.core.errors import StateFolderError
from backend.core.files import explain
from backend.localkube.api.status import ApiError, Json, expired

log = logging.getLogger(__name__)

ADDED, MODIFIED, DELETED = "ADDED", "MODIFIED", "DELETED"
Change = Literal["ADDED", "MODIFIED", "DELETED"]
Key = tuple[str, str]
"""Namespace ("" for what is cluster-wide) and name."""

HISTORY = 10_000
"""Changes of a resource that are kept in memory."""
_STEP = 1_000_000
"""Versions that are reserved at once; a start begins behind the reserved ones."""


class Stored(NamedTuple):
    """One state of an object. `value` is shared and never changed; `tail` is its JSON behind kind and apiVersion."""

    value: Json
    tail: bytes
    version: int

    @property
    def key(self) -> Key:
        metadata = self.value["metadata"]
        return metadata.get("namespace", ""), metadata["name"]


class Event(NamedTuple):
    """A write: what the object was and what it is. For a deletion `new` is the last state under the version of the deletion."""

    change: Change
    new: Stored
    old: Stored | None


def stored(value: Json, version: int) -> Stored:
    body = {name: item for name, item in value.items() if name not in ("kind", "apiVersion")}
    return Stored(value, msgspec.json.encode(body)[1:], version)


def versioned(value: Json, version: int) -> Json:
    """`value` under another resource version; shares all but its metadata."""
    return {**value, "metadata": {**value["metadata"], "resourceVersion": str(version)}}


class _Resource:
    """The objects of one resource, their last changes, and who is told of new ones."""

    def __init__(self, floor: int) -> None:
        self.objects: dict[Key, Stored] = {}
        self.history: deque[Event] = deque()
        self.floor = floor
        self.listeners: dict[Callable[[Event], None], None] = {}
        self.order: list[Key] | None = None

    def ordered(self) -> list[Key]:
        if self.order is None:
            self.order = sorted(self.objects)
        return self.order


class Store:
    """All resources. Not thread-safe: one event loop owns it. `file` None keeps nothing on disk."""

    def __init__(self, file: Path | None = None) -> None:
        self._database = _open(file) if file is not None else None
        self._reserved = self._load_reserved()
        self.version = self._floor = self._reserved
        self._reserve()
        self._resources: dict[str, _Resource] = {}
        self._pending: deque[tuple[_Resource, Event]] = deque()
        self._telling = False

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def _load_reserved(self) -> int:
        if self._database is None:
            return _STEP
        row = self._database.execute("SELECT reserved FROM version").fetchone()
        return int(row[0]) if row else _STEP

    def _reserve(self) -> None:
        self._reserved = self.version + _STEP
        if self._database is not None:
            self._database.execute("INSERT OR REPLACE INTO version (id, reserved) VALUES (0, ?)", (self._reserved,))

    def load(self, resource: str, head: Json) -> None:
        """Bring the objects of `resource` from disk into memory; `head` is their kind and apiVersion."""
        if self._database is None:
            return
        objects = self._resource(resource).objects
        for namespace, name, version, tail in self._database.execute(
            "SELECT namespace, name, version, tail FROM objects WHERE resource = ?", (resource,)
        ):
            objects[namespace, name] = Stored({**head, **msgspec.json.decode(b"{" + tail)}, bytes(tail), version)
        self._resource(resource).order = None

    def _resource(self, resource: str) -> _Resource:
        found = self._resources.get(resource)
        if found is None:
            found = self._resources[resource] = _Resource(self._floor)
        return found

    def get(self, resource: str, key: Key) -> Stored | None:
        return self._resource(resource).objects.get(key)

    def all(self, resource: str, namespace: str | None = None) -> list[Stored]:
        """The objects, ordered by namespace and name; all namespaces for None."""
        found = self._resource(resource)
        return [found.objects[key] for key in found.ordered() if namespace is None or key[0] == namespace]

    def at(self, resource: str, version: int) -> list[Stored]:
        """The objects as they were at `version`. Raises 410 when that is no longer known."""
        found = self._resource(resource)
        if version < found.floor:
            raise expired(version, found.floor)
        then: dict[Key, Stored | None] = dict(found.objects)
        for event in reversed(found.history):
            if event.new.version <= version:
                break
            then[event.new.key] = event.old
        return [state for _, state in sorted(then.items()) if state is not None]

    def since(self, resource: str, version: int) -> list[Event]:
        """The changes after `version`. Raises 410 when they are no longer all known."""
        found = self._resource(resource)
        if version < found.floor:
            raise expired(version, found.floor)
        events = []
        for event in reversed(found.history):
            if event.new.version <= version:
                break
            events.append(event)
        return events[::-1]

    def put(self, resource: str, value: Json) -> Stored:
        """Write `value` under the next version."""
        found = self._resource(resource)
        version = self._next()
        new = stored(versioned(value, version), version)
        old = found.objects.get(new.key)
        if self._database is not None:
            row = (resource, *new.key, version, new.tail)
            self._execute("INSERT OR REPLACE INTO objects (resource, namespace, name, version, tail) VALUES (?, ?, ?, ?, ?)", row)
        found.objects[new.key] = new
        if old is None:
            found.order = None
        self._tell(found, Event("ADDED" if old is None else "MODIFIED", new, old))
        return new

    def remove(self, resource: str, key: Key) -> Stored:
        """Take the object away; what is handed back is its last state under the version of its deletion."""
        found = self._resource(resource)
        version = self._next()
        old = found.objects[key]
        last = stored(versioned(old.value, version), version)
        if self._database is not None:
            self._execute("DELETE FROM objects WHERE resource = ? AND namespace = ? AND name = ?", (resource, *key))
        del found.objects[key]
        found.order = None
        self._tell(found, Event("DELETED", last, old))
        return last

    def reshape(self, resource: str, change: Callable[[Json], Json]) -> None:
        """Show all objects of a resource in another form under the versions that they have (new defaults of a schema)."""
        found = self._resource(resource)
        found.objects = {key: stored(change(item.value), item.version) for key, item in found.objects.items()}

    def _next(self) -> int:
        self.version += 1
        if self.version >= self._reserved:
            self._reserve()
        return self.version

    def _execute(self, statement: str, row: tuple[Any, ...]) -> None:
        """A write that the disk refuses is refused to the client, and memory stays as it was."""
        assert self._database is not None
        try:
            self._database.execute(statement, row)
        except sqlite3.Error as error:
            raise ApiError(500, "InternalError", f"the state file cannot be written: {error}") from error

    def listen(self, resource: str, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call `listener` after every write of `resource`, in their order. The answer ends that."""
        listeners = self._resource(resource).listeners
        listeners[listener] = None
        return lambda: listeners.pop(listener, None)

    def _tell(self, resource: _Resource, event: Event) -> None:
        """Writes made by a listener are told after the one it was told of, so that everybody sees one order."""
        resource.history.append(event)
        if len(resource.history) > HISTORY:
            resource.floor = resource.history.popleft().new.version
        self._pending.append((resource, event))
        if self._telling:
            return
        self._telling = True
        try:
            for target, told in self._drain():
                for listener in list(target.listeners):
                    _call(listener, told)
        finally:
            self._telling = False

    def _drain(self) -> Iterator[tuple[_Resource, Event]]:
        while self._pending:
            yield self._pending.popleft()


def _call(listener: Callable[[Event], None], event: Event) -> None:
    """The write has happened: a listener that fails must not make it look refused, nor keep others from hearing of it."""
    try:
        listener(event)
    except Exception:
        log.exception("a listener failed on %s %s", event.change, event.new.key)


def _open(file: Path) -> sqlite3.Connection:
    try:
        file.touch(mode=0o600)  # before sqlite does, so that its write-ahead log is for the owner alone as well
        database = sqlite3.connect(file, isolation_level=None, timeout=0.2)
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA wal_autocheckpoint = 4000")
        database.execute("CREATE TABLE IF NOT EXISTS version (id INTEGER PRIMARY KEY, reserved INTEGER NOT NULL)")
        database.execute(
            "CREATE TABLE IF NOT EXISTS objects (resource TEXT, namespace TEXT, name TEXT, version INTEGER NOT NULL, "
            "tail BLOB NOT NULL, PRIMARY KEY (resource, namespace, name)) WITHOUT ROWID"
        )
    except OSError as error:
        raise explain(error, file) from error
    except sqlite3.OperationalError as error:
        raise StateFolderError(
            f"The cluster's state file {file} cannot be used: {error}.",
            fix="Is another cluster running with this state folder? Stop it, or choose another folder with --state.",
        ) from error
    except sqlite3.DatabaseError as error:
        raise StateFolderError(
            f"The cluster's state file {file} is damaged: {error}.", fix="Move it away; the next start begins with an empty cluster."
        ) from error
    return database
