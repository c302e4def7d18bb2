"""What can be asked of a Kubernetes API server, as one class: the same for the laptop's cluster and any other.

Objects are plain dictionaries as the server tells them: typed models of every kind cost a millisecond an object.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from backend.core.errors import UsageError, WireError
from backend.kube import access
from backend.kube.access import Access, Credentials
from backend.kube.backoff import Backoff
from backend.kube.errors import ApiError, ClusterUnreachable, status_error
from backend.kube.figures import KubeFigures
from backend.kube.resources import Object, Resource
from backend.kube.transport import CALL_S, Answer, Query, Transport

PatchKind = Literal["merge", "json", "strategic", "apply"]
EventKind = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
Propagation = Literal["Foreground", "Background", "Orphan"]

PAGE = 500
"""Objects a page of a list, as kubectl asks for."""
WATCH_S = 240.0
"""A watch is asked to end after this to twice this many seconds, so that watches spread over the servers of a cluster again."""
_IDLE_MARGIN_S = 15.0
_LONGEST_LINE = 16 * 2**20
"""Bytes of one event; etcd holds 1.5 MB of an object, and an embedded server not much more."""
_LISTS_AGAIN = 3
_RECONNECT = Backoff(first_s=0.8, longest_s=30.0)
_RECONNECT_LOCAL = Backoff(first_s=0.2, longest_s=2.0)
_PATCH_TYPES: Mapping[PatchKind, str] = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",  # JSON is YAML, and every server since 1.16 knows this name
}


@dataclass(frozen=True, slots=True)
class ObjectList:
    """All pages of one list, and the version at which a watch goes on from it."""

    items: list[Object]
    version: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """A change. A BOOKMARK's object holds nothing but a version; DELETED tells the last state."""

    kind: EventKind
    object: Object


class _Line(msgspec.Struct):
    type: str
    object: dict[str, Any]


_LINE = msgspec.json.Decoder(_Line)


class KubeClient:
    """One cluster. Safe to share between tasks of one event loop; `close` it at the end."""

    def __init__(self, credentials: Credentials, *, figures: KubeFigures | None = None, agent: str = "fleet-workbench") -> None:
        self.figures = figures or KubeFigures()
        self._transport = Transport(credentials, figures=self.figures, agent=agent)

    @classmethod
    def from_kubeconfig(
        cls,
        path: Path | str | None = None,
        context: str | None = None,
        *,
        figures: KubeFigures | None = None,
        agent: str = "fleet-workbench",
    ) -> KubeClient:
        """The cluster of a kubeconfig: of `path`, else of KUBECONFIG or ~/.kube/config, else the one that this pod runs in.

        Reads files and runs a credential plugin if there is one, so it may block for a moment. Nothing is asked of the
        cluster yet. Raises ConfigError naming file and field.
        """
        figures = figures or KubeFigures()
        return cls(Credentials(access.loader(path, context), figures=figures), figures=figures, agent=agent)

    @property
    def access(self) -> Access:
        """Server, default namespace and where they were read."""
        return self._transport.access

    @property
    def reconnect(self) -> Backoff:
        """How long to wait between two attempts to watch: a server on this machine is back within seconds and serves few."""
        return _RECONNECT_LOCAL if self.access.loopback else _RECONNECT

    async def get(self, resource: Resource, namespace: str | None, name: str, *, subresource: str = "") -> Object:
        """The object. Raises ApiError (`not_found`)."""
        answer = await self._transport.request("GET", resource.path(namespace, name, subresource))
        return _object(answer)

    async def list(
        self, resource: Resource, namespace: str | None = None, *, labels: str = "", fields: str = "", version: str = "", limit: int = PAGE
    ) -> ObjectList:
        """All objects that both selectors fit, page by page. `version` "0" takes what the server has at hand.

        A continue token that expired between two pages starts the list again; the last time without pages.
        """
        query = _known(labelSelector=labels, fieldSelector=fields, resourceVersion=version)
        for attempt in range(1, _LISTS_AGAIN + 1):
            try:
                return await self._pages(resource, namespace, query, limit if attempt < _LISTS_AGAIN else 0)
            except ApiError as error:
                if not error.gone or attempt == _LISTS_AGAIN:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def create(
        self,
        resource: Resource,
        namespace: str | None,
        body: Mapping[str, Any],
        *,
        subresource: str = "",
        name: str | None = None,
        field_manager: str = "",
        dry_run: bool = False,
    ) -> Object:
        """The object as stored. `name` and `subresource` go together (`binding`, `eviction`). Raises ApiError (`already_exists`)."""
        path = resource.path(namespace, name if subresource else None, subresource)
        return await self._write("POST", path, _typed(resource, body) if not subresource else body, _options(field_manager, dry_run))

    async def update(
        self,
        resource: Resource,
        namespace: str | None,
        body: Mapping[str, Any],
        *,
        subresource: str = "",
        field_manager: str = "",
        dry_run: bool = False,
    ) -> Object:
        """Replace the object that `body` names. With a resourceVersion in it, only that version. Raises ApiError (`conflict`)."""
        name = (body.get("metadata") or {}).get("name", "")
        if not name:
            raise UsageError(f"An update of a {resource.kind} needs metadata.name.")
        path = resource.path(namespace, name, subresource)
        return await self._write("PUT", path, body if subresource else _typed(resource, body), _options(field_manager, dry_run))

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        kind: PatchKind = "merge",
        subresource: str = "",
        field_manager: str = "",
        force: bool = False,
        dry_run: bool = False,
    ) -> Object:
        """Change the object, or with "apply" create it if needed. `force` takes fields over from other managers (apply only)."""
        query = _options(field_manager or ("fleet-workbench" if kind == "apply" else ""), dry_run)
        if kind == "apply":
            query["force"] = "true" if force else "false"
        elif force:
            raise UsageError("force belongs to patches of kind apply.")
        path = resource.path(namespace, name, subresource)
        return await self._write("PATCH", path, patch, query, content_type=_PATCH_TYPES[kind])

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        grace_s: int | None = None,
        uid: str | None = None,
        version: str | None = None,
        propagation: Propagation | None = None,
    ) -> Object:
        """Ask for the deletion; the answer is the object while it ends, or a Status when it is gone at once.

        With `uid` or `version`, only that very object in that very state (`conflict` otherwise). Raises ApiError (`not_found`).
        """
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        if uid or version:
            options["preconditions"] = _known(uid=uid or "", resourceVersion=version or "")
        if propagation is not None:
            options["propagationPolicy"] = propagation
        return await self._write("DELETE", resource.path(namespace, name), options, {})

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        version: str = "",
        timeout_s: float | None = None,
        bookmarks: bool = True,
        on_open: Callable[[], None] | None = None,
    ) -> AsyncGenerator[WatchEvent, None]:
        """Changes after `version` (""; first what is there, as ADDED), until the server ends the watch, which is no error.

        Close the iterator (`contextlib.aclosing`) to end earlier; `on_open` is called once the server has agreed. Raises
        ApiError (`gone`: list again), ClusterUnreachable when the connection breaks, WireError for what is no event.
        """
        seconds = timeout_s if timeout_s is not None else WATCH_S * (1 + random.random())
        query = _known(labelSelector=labels, fieldSelector=fields, resourceVersion=version)
        query |= {"watch": "true", "timeoutSeconds": str(max(1, round(seconds)))}
        if bookmarks:
            query["allowWatchBookmarks"] = "true"
        path = resource.path(namespace)
        async with self._transport.stream(path, query, idle_s=seconds + _IDLE_MARGIN_S) as chunks:
            if on_open is not None:
                on_open()
            lines = _Lines()
            async for chunk in chunks:
                for line in lines.feed(chunk):
                    yield _event(line, path)
            if not lines.complete:
                raise ClusterUnreachable(self.access.server, "a watch ended in the middle of an event")

    async def server_version(self) -> dict[str, Any]:
        """What the server says of itself: `gitVersion`, `major`, `minor`, `platform`, ..."""
        return _object(await self._transport.request("GET", "/version"))

    async def raw(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout_s: float = CALL_S,
    ) -> Answer:
        """Any other question: logs, discovery, health. Raises ApiError for a status of 400 and above."""
        return await self._transport.request(
            method, path, query=query, body=body, content_type=content_type, accept=accept, timeout_s=timeout_s
        )

    async def close(self) -> None:
        await self._transport.close()

    async def _pages(self, resource: Resource, namespace: str | None, query: dict[str, str], limit: int) -> ObjectList:
        items: list[Object] = []
        path = resource.path(namespace)
        query = dict(query) | ({"limit": str(limit)} if limit else {})
        while True:
            page = _object(await self._transport.request("GET", path, query=query))
            # Lists of built-in kinds leave out what watches tell; an object is to look the same from both.
            items.extend({"kind": resource.kind, "apiVersion": resource.api_version} | item for item in page.get("items") or ())
            metadata = page.get("metadata") or {}
            token = metadata.get("continue")
            if not token:
                return ObjectList(items, metadata.get("resourceVersion", ""))
            query["continue"] = token
            query.pop("resourceVersion", None)

    async def _write(
        self, method: str, path: str, body: object, query: dict[str, str], *, content_type: str = "application/json"
    ) -> Object:
        answer = await self._transport.request(method, path, query=query, body=msgspec.json.encode(body), content_type=content_type)
        return _object(answer)


def _known(**values: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def _options(field_manager: str, dry_run: bool) -> dict[str, str]:
    return _known(fieldManager=field_manager, dryRun="All" if dry_run else "")


def _typed(resource: Resource, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": resource.api_version, "kind": resource.kind} | dict(body)


def _object(answer: Answer) -> Object:
    document = answer.json()
    if not isinstance(document, dict):
        raise WireError("not_an_object", "The API server's answer is not a JSON object.")
    return document


class _Lines:
    """Lines of a stream, whatever chunks they come in."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> Sequence[bytes]:
        self._rest += chunk
        if b"\n" not in chunk:
            if len(self._rest) > _LONGEST_LINE:
                raise WireError("long_event", f"An event of a watch is longer than {_LONGEST_LINE >> 20} MiB.")
            return ()
        *lines, self._rest = self._rest.split(b"\n")
        return [bytes(line) for line in lines if line.strip()]

    @property
    def complete(self) -> bool:
        return not self._rest.strip()


def _event(line: bytes, path: str) -> WatchEvent:
    try:
        told = _LINE.decode(line)
    except msgspec.DecodeError as error:
        raise WireError("watch_event", f"The watch of {path} tells what is no event: {error}") from error
    match told.type:
        case "ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK":
            return WatchEvent(told.type, told.object)
        case "ERROR":
            raise status_error(told.object, what=f"WATCH {path}")
    raise WireError("watch_event", f"The watch of {path} tells an event of the unknown kind {told.type[:40]!r}.")
