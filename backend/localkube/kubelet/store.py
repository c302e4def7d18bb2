"""What the node needs of the cluster's objects. The API server's own store is one; tests have a small one in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

Json = dict[str, Any]
"""An object as it stands in the cluster. Shared: never changed, only replaced."""
Change = Literal["added", "modified", "deleted"]


class ObjectStore(Protocol):
    """Objects of the cluster, in this process. All calls return at once; listeners are called after the write they hear of."""

    def get(self, resource: str, namespace: str, name: str) -> Json | None: ...

    def list(self, resource: str, namespace: str | None = None) -> list[Json]: ...

    def create(self, resource: str, obj: Json) -> Json: ...

    def update(self, resource: str, obj: Json) -> Json: ...

    def update_status(self, resource: str, obj: Json) -> Json: ...

    def delete(self, resource: str, namespace: str, name: str, *, grace_s: int | None = None) -> None: ...

    def subscribe(self, resource: str, callback: Callable[[Change, Json], None]) -> Callable[[], None]: ...
