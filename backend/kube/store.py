"""What an informer knows: objects by key and by index, and which change a new state of one is. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from backend.kube.resources import Key, Object, key_of, uid_of, version_of

ChangeKind = Literal["added", "modified", "deleted"]
IndexFunction = Callable[[Object], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Change:
    """`old` is None for what was added, `new` for what was deleted."""

    kind: ChangeKind
    old: Object | None
    new: Object | None


class Store:
    """Objects are kept as they came and never changed."""

    def __init__(self, indexes: Mapping[str, IndexFunction] | None = None) -> None:
        self._objects: dict[Key, Object] = {}
        self._functions = dict(indexes or {})
        self._indexes: dict[str, dict[str, dict[Key, None]]] = {name: {} for name in self._functions}

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: Key) -> Object | None:
        return self._objects.get(key)

    def all(self, namespace: str | None = None) -> list[Object]:
        if namespace is None:
            return list(self._objects.values())
        return [obj for key, obj in self._objects.items() if key[0] == namespace]

    def by_index(self, name: str, value: str) -> list[Object]:
        """Raises KeyError for an index that was not named at the start."""
        return [self._objects[key] for key in self._indexes[name].get(value, ())]

    def put(self, new: Object) -> list[Change]:
        """Take a state over. Nothing for one that is known; two changes when the name passed on to another object."""
        key = key_of(new)
        old = self._objects.get(key)
        if old is None:
            self._set(key, None, new)
            return [Change("added", None, new)]
        if uid_of(old) != uid_of(new):
            self._set(key, old, new)
            return [Change("deleted", old, None), Change("added", None, new)]
        if version_of(old) == version_of(new):
            return []
        self._set(key, old, new)
        return [Change("modified", old, new)]

    def remove(self, last: Object) -> list[Change]:
        """Take a deletion over; the change tells the state that the server told last."""
        key = key_of(last)
        old = self._objects.get(key)
        if old is None:
            return []
        self._unset(key, old)
        return [Change("deleted", last if uid_of(last) == uid_of(old) else old, None)]

    def replace(self, objects: Iterable[Object]) -> list[Change]:
        """Become a list: the changes between what was known and what is there now, those deleted unseen included."""
        wanted = {key_of(obj): obj for obj in objects}
        changes: list[Change] = []
        for key in [key for key in self._objects if key not in wanted]:
            changes += self.remove(self._objects[key])
        for obj in wanted.values():
            changes += self.put(obj)
        return changes

    def _set(self, key: Key, old: Object | None, new: Object) -> None:
        if old is not None:
            self._unset(key, old)
        self._objects[key] = new
        for name, function in self._functions.items():
            for value in function(new):
                self._indexes[name].setdefault(value, {})[key] = None

    def _unset(self, key: Key, old: Object) -> None:
        del self._objects[key]
        for name, function in self._functions.items():
            for value in function(old):
                keys = self._indexes[name].get(value)
                if keys is not None:
                    keys.pop(key, None)
                    if not keys:
                        del self._indexes[name][value]
