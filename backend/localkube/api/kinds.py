"""Which kinds are served: one row a kind and version, and the table of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from backend.localkube.api.schema import Schema
from backend.localkube.api.status import Json


@dataclass(frozen=True)
class Scale:
    """Where the replicas of a kind are: JSON paths such as `.spec.replicas`. An empty `selector` means the label selector in the spec."""

    spec: str
    status: str
    selector: str


@dataclass(frozen=True)
class Column:
    """A column of `kubectl get`: a JSON path, or `@name` for a computed cell."""

    name: str
    type: str
    path: str
    format: str = ""
    description: str = ""
    priority: int = 0
    age: bool = False


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind in one version. `counts` = a change of the spec counts as a generation; `fields` can be selected by."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    source: Json
    """The schema as OpenAPI v3; compiled when it is first needed, since a definition may have thousands of fields."""
    singular: str = ""
    list_kind: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    status: bool = False
    scale: Scale | None = None
    columns: tuple[Column, ...] = ()
    fields: tuple[str, ...] = ()
    counts: bool = False
    custom: bool = False
    storage: bool = True
    subresources: tuple[str, ...] = field(default=())

    @cached_property
    def schema(self) -> Schema:
        return Schema(self.source)

    @cached_property
    def key(self) -> str:
        """`pods`, `stormservices.orchestration.aibrix.ai`: the name of the resource, whatever its version."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @cached_property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @cached_property
    def head(self) -> bytes:
        """How the JSON of an object of this kind begins."""
        return f'{{"kind":"{self.kind}","apiVersion":"{self.api_version}",'.encode()

    @cached_property
    def listed(self) -> str:
        return self.list_kind or f"{self.kind}List"

    @cached_property
    def prefix(self) -> str:
        """The path under which this version is served."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"


class Kinds:
    """The kinds that are served. Several versions of a resource share its objects; one of them is the storage version."""

    def __init__(self, builtin: Iterable[Kind]) -> None:
        self.builtin = list(builtin)
        self._by_path: dict[tuple[str, str, str], Kind] = {}
        self._stored: dict[str, Kind] = {}
        self.revision = 0
        """Grows with every change: what was made from this table is made anew then."""
        for kind in self.builtin:
            self._add(kind)

    def _add(self, kind: Kind) -> None:
        self._by_path[kind.group, kind.version, kind.plural] = kind
        if kind.storage:
            self._stored[kind.key] = kind

    def replace(self, key: str, versions: Iterable[Kind]) -> None:
        """Serve `versions` as the resource `key`, in place of what was served as it before."""
        self._by_path = {path: kind for path, kind in self._by_path.items() if kind.key != key}
        self._stored.pop(key, None)
        for kind in versions:
            self._add(kind)
        self.revision += 1

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        return self._by_path.get((group, version, plural))

    def stored(self, key: str) -> Kind | None:
        """The storage version of a resource."""
        return self._stored.get(key)

    def resources(self) -> list[str]:
        return list(self._stored)

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._by_path.values())

    def of_group(self, group: str) -> list[Kind]:
        return [kind for kind in self if kind.group == group]
