"""A small Kubernetes API server on a real socket: lists in pages, watches with bookmarks, versions, conflicts, and every way to fail.

Any group and plural is served; nothing is validated. What a client may meet is switched on from the test: refused tokens, statuses
instead of answers, watches that break, expire or say nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

CERTIFICATE, KEY = (Path(__file__).parent.parent / "data" / "kube" / name for name in ("fake.crt", "fake.key"))
"""A self-signed pair for 127.0.0.1 and fleet.test, which is authority, server and client in one; good for tests only."""

Object = dict[str, Any]
Place = tuple[str, str, str]
"""Collection (group/version/plural), namespace, name."""


@dataclass
class Fault:
    """Answer `times` requests whose method and path fit with a status instead."""

    status: int
    times: int = 1
    method: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    after_s: float = 0.0
    """How long the server thinks first."""


class FakeKubeApi:
    """State survives `stop` and `start`, as a server's does that keeps its store."""

    def __init__(self) -> None:
        self.objects: dict[Place, Object] = {}
        self.history: list[tuple[int, str, Place, Object]] = []
        self.version = 100
        self.oldest = 0
        """Watches and tokens from before this version are answered with 410."""
        self.token = ""
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.seen_headers: list[dict[str, str]] = []
        self.server_side_apply = True
        self.bookmark_s = 0.0
        self.event_410 = True
        self.port = 0
        self.tls: ssl.SSLContext | None = None
        self.plurals: dict[str, list[Object]] = {}
        self._runner: web.AppRunner | None = None
        self._changed = asyncio.Condition()
        self._breaks = 0

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application(middlewares=[self._gate])
        app.router.add_get("/version", self._say({"gitVersion": "v1.37.2", "major": "1", "minor": "37"}))
        app.router.add_get("/readyz", self._say("ok"))
        for root in ("/api/{version}", "/apis/{group}/{version}"):
            app.router.add_get(root, self._discovery)
            for place in ("/namespaces/{namespace}/{plural}", "/{plural}"):
                app.router.add_get(root + place, self._collection)
                app.router.add_post(root + place, self._create)
                for tail in ("/{name}", "/{name}/{sub}"):
                    app.router.add_route("*", root + place + tail, self._one)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True, ssl_context=self.tls).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self.break_watches()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def put(self, collection: str, namespace: str, name: str, **content: Any) -> Object:
        """Create or change an object behind the clients' backs."""
        place = (collection, namespace, name)
        before = self.objects.get(place)
        metadata = {"name": name, "namespace": namespace, "uid": before["metadata"]["uid"] if before else str(uuid.uuid4())}
        return await self._store(place, {"metadata": metadata | content.pop("metadata", {}), **content})

    async def remove(self, collection: str, namespace: str, name: str) -> None:
        place = (collection, namespace, name)
        gone = self.objects.pop(place)
        self.version += 1
        last = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self.version)}}
        await self._record("DELETED", place, last)

    async def break_watches(self) -> None:
        """Cut every watch off in the middle of its stream."""
        self._breaks += 1
        async with self._changed:
            self._changed.notify_all()

    def forget_history(self) -> None:
        """Compaction: what is older than now cannot be watched from any more."""
        self.version += 1
        self.oldest = self.version

    async def _store(self, place: Place, obj: Object) -> Object:
        self.version += 1
        obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
        kind = "MODIFIED" if place in self.objects else "ADDED"
        self.objects[place] = obj
        await self._record(kind, place, obj)
        return obj

    async def _record(self, kind: str, place: Place, obj: Object) -> None:
        self.history.append((self.version, kind, place, obj))
        async with self._changed:
            self._changed.notify_all()

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs))
        self.seen_headers.append(dict(request.headers))
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized")
        for fault in self.faults:
            if fault.times > 0 and request.method.startswith(fault.method) and fault.path in request.path_qs:
                fault.times -= 1
                await asyncio.sleep(fault.after_s)
                return _status(fault.status, fault.reason, headers=fault.headers)
        answer: web.StreamResponse = await handler(request)
        return answer

    @staticmethod
    def _say(body: Any) -> Any:
        async def handler(_: web.Request) -> web.Response:
            return web.json_response(body)

        return handler

    async def _discovery(self, request: web.Request) -> web.Response:
        entries = self.plurals.get(_collection(request).removesuffix("/"))
        return web.json_response({"kind": "APIResourceList", "resources": entries}) if entries is not None else _status(404, "NotFound")

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") == "true":
            return await self._watch(request)
        after: tuple[str, str] = ("", "")
        version = self.version
        if token := request.query.get("continue"):
            made, *after_list = json.loads(token)
            if made < self.oldest:
                return _status(410, "Expired")
            after, version = tuple(after_list), made  # type: ignore[assignment]
        fitting = sorted((place[1:], obj) for place, obj in self.objects.items() if _fits(request, place, obj) and place[1:] > after)
        limit = int(request.query.get("limit", "0")) or len(fitting)
        metadata = {"resourceVersion": str(version)}
        if len(fitting) > limit:
            metadata["continue"] = json.dumps([version, *fitting[limit - 1][0]])
        return web.json_response({"kind": "List", "metadata": metadata, "items": [obj for _, obj in fitting[:limit]]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        position = int(request.query.get("resourceVersion") or self.version)
        if position < self.oldest and not self.event_410:
            return _status(410, "Expired")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        if position < self.oldest:
            await _tell(response, "ERROR", _status_body(410, "Expired"))
            return response
        with contextlib.suppress(ConnectionError):
            await self._follow(request, response, position)
        return response

    async def _follow(self, request: web.Request, response: web.StreamResponse, position: int) -> None:
        loop = asyncio.get_running_loop()
        breaks = self._breaks
        end = loop.time() + float(request.query.get("timeoutSeconds", "3600"))
        while True:
            for version, kind, place, obj in [entry for entry in self.history if entry[0] > position]:
                position = version
                if _fits(request, place, obj):
                    await _tell(response, kind, obj)
            if self._breaks != breaks:
                if request.transport is not None:
                    request.transport.abort()
                return
            left = end - loop.time()
            if left <= 0:
                return
            try:
                async with asyncio.timeout(min(left, self.bookmark_s or left)), self._changed:
                    while self._breaks == breaks and (not self.history or self.history[-1][0] <= position):
                        await self._changed.wait()
            except TimeoutError:
                if request.query.get("allowWatchBookmarks") == "true":
                    await _tell(response, "BOOKMARK", {"metadata": {"resourceVersion": str(max(position, self.version))}})

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        namespace = request.match_info.get("namespace", "")
        place = (_collection(request), namespace, body["metadata"]["name"])
        if place in self.objects:
            return _status(409, "AlreadyExists")
        metadata = {**body["metadata"], "uid": str(uuid.uuid4())} | ({"namespace": namespace} if namespace else {})
        return web.json_response(await self._store(place, {**body, "metadata": metadata}), status=201)

    async def _one(self, request: web.Request) -> web.Response:
        place = (_collection(request), request.match_info.get("namespace", ""), request.match_info["name"])
        before = self.objects.get(place)
        if request.method == "PATCH" and "apply-patch" in request.content_type and not self.server_side_apply:
            return _status(415, "UnsupportedMediaType")
        if before is None:
            if request.method == "PATCH" and "apply-patch" in request.content_type:
                body = json.loads(await request.read())
                body["metadata"]["uid"] = str(uuid.uuid4())
                return web.json_response(await self._store(place, body), status=201)
            return _status(404, "NotFound")
        if request.method == "GET":
            return web.json_response(before)
        body = json.loads(await request.read() or b"{}")
        if request.method == "DELETE":
            wanted = body.get("preconditions") or {}
            if any(before["metadata"].get(name) != value for name, value in wanted.items()):
                return _status(409, "Conflict")
            await self.remove(*place)
            return web.json_response(_status_body(200, ""))
        named = (body.get("metadata") or {}).get("resourceVersion")
        if named and named != before["metadata"]["resourceVersion"]:
            return _status(409, "Conflict")
        after = merged(before, body) if request.method == "PATCH" else {**body, "metadata": {**before["metadata"], **body["metadata"]}}
        return web.json_response(before if after == before else await self._store(place, after))


def merged(before: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    after = dict(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        if value is None:
            after.pop(name, None)
        else:
            after[name] = merged(after.get(name), value)
    return after


def _collection(request: web.Request) -> str:
    group = request.match_info.get("group", "")
    return f"{group}/{request.match_info['version']}/{request.match_info.get('plural', '')}".lstrip("/")


def _fits(request: web.Request, place: Place, obj: Object) -> bool:
    namespace = request.match_info.get("namespace")
    labels = obj["metadata"].get("labels") or {}
    wanted = [part.partition("=") for part in request.query.get("labelSelector", "").split(",") if part]
    fitting = all(labels.get(key) == value if equals else key in labels for key, equals, value in wanted)
    return place[0] == _collection(request) and namespace in (None, place[1]) and fitting


def _status_body(code: int, reason: str) -> Object:
    return {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": f"the fake says {code} {reason}".strip()}


def _status(code: int, reason: str, *, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(_status_body(code, reason), status=code, headers=headers)


async def _tell(response: web.StreamResponse, kind: str, obj: Object) -> None:
    await response.write(json.dumps({"type": kind, "object": obj}).encode() + b"\n")


def write_kubeconfig(file: Path, server: str, *, cluster: Object | None = None, **user: Any) -> Path:
    """A kubeconfig with one context, `fake`; JSON is YAML."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "fake",
        "clusters": [{"name": "fake", "cluster": {"server": server} | (cluster or {})}],
        "users": [{"name": "someone", "user": user}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "someone", "namespace": "fleet"}}],
    }
    file.write_text(json.dumps(document))
    return file


@pytest.fixture
async def kube_api() -> AsyncIterator[FakeKubeApi]:
    """A running server; import the fixture into a test module to use it."""
    api = FakeKubeApi()
    await api.start()
    yield api
    await api.stop()
