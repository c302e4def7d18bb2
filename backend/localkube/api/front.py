"""The HTTP front: requests in, objects and Statuses out. It decides nothing about objects.

Plain aiohttp without a router: the path is the API's own grammar (`ask.place`). Loopback only, one bearer token, and no request
that a web page could make: a foreign Host, or any Origin, is refused.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import yaml
from aiohttp import web

from backend.core import ids
from backend.localkube.api import ask, bodies, discovery, status, subresources
from backend.localkube.api.ask import Place
from backend.localkube.api.patching import patcher
from backend.localkube.api.status import ApiError, Json
from backend.localkube.api.store import Stored
from backend.localkube.api.tables import partial, table
from backend.localkube.api.watch import LONGEST_S, Watch, error_line
from backend.localkube.api.writing import Write
from backend.localkube.objects import Objects

log = logging.getLogger(__name__)

Logs = Callable[[str, str, str, dict[str, str]], AsyncIterator[bytes] | bytes]
"""(namespace, pod, container, options) -> what the container wrote; options are those of the query, as text."""

_OPEN = frozenset({"/readyz", "/livez", "/healthz", "/version"})
_AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_IDLE = frozenset({"deployments.apps", "replicasets.apps"})
_HOSTS = ("127.0.0.1", "localhost", "[::1]")


class Front:
    """Answers requests about `objects`. `logs` None means that nobody runs pods here."""

    def __init__(self, objects: Objects, *, token: str, logs: Logs | None = None) -> None:
        self.objects, self._token, self._logs = objects, token, logs
        self._discovered: dict[str, bytes] = {}
        self._discovered_at = -1

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            self._authenticate(request)
            return await self._answer(request)
        except ApiError as error:
            return _json(error.status(), error.code)
        except (ConnectionResetError, ConnectionAbortedError):
            raise
        except Exception:
            log_id = ids.new_id("e")
            log.exception("%s %s failed (%s)", request.method, request.path, log_id)
            return _json(ApiError(500, "InternalError", f"internal error, see the log line {log_id}").status(), 500)

    def _authenticate(self, request: web.BaseRequest) -> None:
        host = request.headers.get("Host", "").rpartition(":")[0] or request.headers.get("Host", "")
        if host not in _HOSTS or "Origin" in request.headers:
            raise ApiError(403, "Forbidden", "This API is for clients on this machine, not for web pages.", details={})
        if request.path in _OPEN:
            return
        given = request.headers.get("Authorization", "")
        if not given:
            message = f'forbidden: User "system:anonymous" cannot get path "{request.path}"'
            raise ApiError(403, "Forbidden", message, details={})
        if not hmac.compare_digest(given.encode(errors="surrogateescape"), f"Bearer {self._token}".encode()):
            raise ApiError(401, "Unauthorized", "Unauthorized")

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        parts = path.rstrip("/").count("/")
        if (path.startswith("/api/") and parts >= 3) or (path.startswith("/apis/") and parts >= 4):
            at = ask.place(self.objects.kinds, path)
            if at is not None:
                return await self._resource(request, at)
        elif path in ("/readyz", "/livez", "/healthz"):
            return web.Response(text="ok")
        elif request.method == "GET" and (document := self._document(path.rstrip("/"), request.headers.get("Accept", ""))):
            body, content_type = document
            return web.Response(body=body, headers={"Content-Type": content_type})
        return web.Response(text="404 page not found\n", status=404)

    def _document(self, path: str, accept: str) -> tuple[bytes, str] | None:
        """Discovery and OpenAPI, made once for every set of kinds."""
        kinds = self.objects.kinds
        if self._discovered_at != kinds.revision:
            self._discovered, self._discovered_at = {}, kinds.revision
        whole = path in ("/api", "/apis") and "as=APIGroupDiscoveryList" in accept and "v=v2;" in accept.replace(" ", "") + ";"
        key = f"{path} whole" if whole else path
        if key not in self._discovered:
            value = discovery.aggregated(kinds, core_group=path == "/api") if whole else _describe(kinds, path)
            if value is None:
                return None
            self._discovered[key] = msgspec.json.encode(value)
        return self._discovered[key], _AGGREGATED if whole else "application/json"

    async def _resource(self, request: web.BaseRequest, at: Place) -> web.StreamResponse:
        method = request.method
        if at.sub and at.sub not in {name for name, _, _ in discovery.subresources(at.kind)}:
            raise status.no_such_resource()
        if method == "GET":
            if at.watch or request.query.get("watch") in ("1", "true"):
                return await self._watch(request, at)
            if at.sub == "log":
                return await self._log(request, at)
            return self._get(request, at) if at.name else self._list(request, at)
        data = await self._body(request)
        action = (method, bool(at.name))
        if action == ("POST", False) or (method == "POST" and at.sub in ("binding", "eviction")):
            return self._create(request, at, data)
        if action == ("PUT", True):
            return self._put(request, at, data)
        if action == ("PATCH", True):
            return self._patch(request, at, data)
        if method == "DELETE" and not at.sub:
            return self._delete(request, at, data)
        raise status.not_allowed()

    async def _body(self, request: web.BaseRequest) -> bytes:
        data = bytearray()
        async for chunk in request.content.iter_any():
            if len(data) <= bodies.LIMIT_BYTES:  # the rest is read and dropped, so that the client hears the answer
                data += chunk
        if len(data) > bodies.LIMIT_BYTES:
            raise bodies.too_large()
        return bytes(data)

    # ------------------------------------------------------------------ reading

    def _get(self, request: web.BaseRequest, at: Place) -> web.Response:
        found = self.objects.store.get(at.kind.key, (at.home, at.name))
        if found is None:
            raise status.not_found(at.kind, at.name)
        return self._object(request, at, found, 200)

    def _object(self, request: web.BaseRequest, at: Place, item: Stored, code: int, write: Write | None = None) -> web.Response:
        headers = {}
        if write is not None and write.warnings:
            texts = [warning.replace("\\", "\\\\").replace('"', '\\"') for warning in write.warnings]
            headers = {"Warning": ", ".join(f'299 - "{text}"' for text in texts)}
        form, as_yaml = ask.form(request.headers.get("Accept", ""))
        if at.sub == "scale":
            return _json(subresources.scale(at.kind, item.value), code, headers)
        if form == "Table":
            return _json(self._table(request, at, [item], {"resourceVersion": str(item.version)}), code, headers)
        if form == "Metadata":
            return _json(partial(item.value), code, headers)
        body = at.kind.head + item.tail
        if as_yaml:
            body = yaml.safe_dump(msgspec.json.decode(body), sort_keys=False).encode()
        kind = "application/yaml" if as_yaml else "application/json"
        return web.Response(body=body, status=code, headers={"Content-Type": kind, **headers})

    def _table(self, request: web.BaseRequest, at: Place, items: list[Stored], meta: Json) -> Json:
        values = [{**item.value, "apiVersion": at.kind.api_version} for item in items]
        include = request.query.get("includeObject", "Metadata")
        return table(at.kind, values, meta, include=include, now=self.objects.clock.now())

    def _list(self, request: web.BaseRequest, at: Place) -> web.Response:
        form, as_yaml = ask.form(request.headers.get("Accept", ""))
        asked, store = ask.listing(request.query, at), self.objects.store
        version = store.version
        if asked.version and asked.version > version:
            raise _too_new(asked.version, version)
        if asked.match == "Exact" and asked.version is not None:
            version = asked.version
            items = [item for item in store.at(at.kind.key, version) if at.namespace in (None, item.key[0])]
        else:
            items = store.all(at.kind.key, at.namespace)
        start, matches = asked.start, asked.matches
        if start is not None:
            items = [item for item in items if item.key > start]
        if matches is not None:
            items = [item for item in items if matches(item.value)]
        meta: Json = {"resourceVersion": str(version)}
        if asked.limit and len(items) > asked.limit:
            meta["continue"] = ask.token(version, items[asked.limit - 1].key)
            if matches is None:
                meta["remainingItemCount"] = len(items) - asked.limit
            items = items[: asked.limit]
        elif at.kind.custom:
            meta["continue"] = ""
        if form == "Table":
            return _json(self._table(request, at, items, meta))
        if form == "Metadata":
            listed = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta}
            return _json({**listed, "items": [partial(item.value) for item in items]})
        body = _list_body(at, items, meta)
        if as_yaml:
            text = yaml.safe_dump(msgspec.json.decode(body), sort_keys=False)
            return web.Response(text=text, content_type="application/yaml")
        return web.Response(body=body, content_type="application/json")

    async def _watch(self, request: web.BaseRequest, at: Place) -> web.StreamResponse:
        form, _ = ask.form(request.headers.get("Accept", ""))
        asked = ask.listing(request.query, at)
        bookmarks = request.query.get("allowWatchBookmarks") in ("1", "true")
        seconds = request.query.get("timeoutSeconds")
        timeout_s = min(float(ask.number(seconds, "timeoutSeconds")) if seconds else LONGEST_S, LONGEST_S)
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"})
        response.enable_chunked_encoding()
        try:
            watch = Watch(self.objects.store, at, asked, form=form, now=self.objects.clock.now, bookmarks=bookmarks)
        except ApiError as error:
            await response.prepare(request)
            await response.write(error_line(error))
            return response
        try:
            await response.prepare(request)
            async for lines in watch.lines(timeout_s):
                await response.write(lines)
            if last := watch.last_line():
                await response.write(last)
        finally:
            watch.stop()
        return response

    async def _log(self, request: web.BaseRequest, at: Place) -> web.StreamResponse:
        pod = self.objects.store.get(at.kind.key, (at.home, at.name))
        if pod is None:
            raise status.not_found(at.kind, at.name)
        options = ask.log_options(request.query)
        container = subresources.container_of(pod.value, request.query.get("container", ""))
        node = pod.value["spec"].get("nodeName")
        if not node:
            return web.Response(status=204)
        if self._logs is None:
            raise status.not_found(at.kind, node)
        found = self._logs(at.home, at.name, container, options)
        if isinstance(found, bytes):
            return web.Response(body=found, content_type="text/plain")
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for chunk in found:
            await response.write(chunk)
        return response

    # ------------------------------------------------------------------ writing

    def _create(self, request: web.BaseRequest, at: Place, data: bytes) -> web.Response:
        write = ask.write(request.query, "CreateOptions")
        body = self._sent(request, at, data, write)
        if at.sub == "binding":
            self.objects.bind(at.home, at.name, str((body.get("target") or {}).get("name", "")))
            return _json({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201)
        if at.sub == "eviction":
            subresources.evict(self.objects, at.kind, at.home, at.name, body, dry_run=write.dry_run)
            return _json({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201)
        if at.kind.namespaced and at.namespace is None:
            raise status.not_allowed()
        if at.kind.key in _IDLE and write.validation != "Ignore":
            write.warnings.append(f"this cluster stores {at.kind.plural}, but runs no controller that would act on them")
        return self._object(request, at, self.objects.add(at.kind, at.home, body, write), 201, write)

    def _sent(self, request: web.BaseRequest, at: Place, data: bytes, write: Write) -> Json:
        """The object of a POST or PUT, which must be one of the kind that the path names."""
        kind = at.kind
        body = bodies.read_object(data, request.headers.get("Content-Type", ""))
        if write.validation == "Strict" and (doubled := bodies.twice(data)):
            listed = ", ".join(f'duplicate field "{path}"' for path in doubled)
            raise status.bad_request(f"strict decoding error: {listed}")
        if at.sub in ("binding", "eviction", "scale"):
            return body
        version, name = body.get("apiVersion", kind.api_version), body.get("kind", kind.kind)
        if kind.custom and version != kind.api_version:
            message = f"the API version in the data ({version}) does not match the expected API version ({kind.api_version})"
            raise status.bad_request(message)
        if (version, name) != (kind.api_version, kind.kind):
            raise status.bad_request(
                f'{name} in version "{version}" cannot be handled as a {kind.kind}: converting ({version}.{name}) to '
                f"({kind.group or 'core'}.{kind.kind}): unknown conversion"
            )
        return body

    def _put(self, request: web.BaseRequest, at: Place, data: bytes) -> web.Response:
        write = ask.write(request.query, "UpdateOptions")
        body = self._sent(request, at, data, write)
        if at.sub == "scale":
            return self._change(request, at, lambda old: subresources.scaled(at.kind, old, body), write)
        meta = body.get("metadata") or {}
        if at.kind.custom and not meta.get("resourceVersion") and self.objects.store.get(at.kind.key, (at.home, at.name)):
            cause = status.Cause(status.INVALID, "metadata.resourceVersion", "Invalid value: 0: must be specified for an update")
            raise ApiError(
                422,
                "Invalid",
                f'{at.kind.key} "{at.name}" is invalid: metadata.resourceVersion: {cause.message}',
                details={**status.about(at.kind, at.name), "causes": [cause._asdict()]},
            )
        if at.kind.plural == "leases" and not self.objects.store.get(at.kind.key, (at.home, at.name)):
            named = {**body, "metadata": {**meta, "name": at.name}}
            return self._object(request, at, self.objects.add(at.kind, at.home, named, write), 201, write)
        return self._change(request, at, lambda _: body, write)

    def _patch(self, request: web.BaseRequest, at: Place, data: bytes) -> web.Response:
        write = ask.write(request.query, "PatchOptions", patch=True)
        patch = patcher(request.headers.get("Content-Type", ""), data, request.query, at.kind, now=self.objects.clock.now(), sub=at.sub)
        if patch.creates and not at.sub and self.objects.store.get(at.kind.key, (at.home, at.name)) is None:
            fresh = patch.new(at.name)
            return self._object(request, at, self.objects.add(at.kind, at.home, fresh, write), 201, write)
        if at.sub == "scale":
            return self._change(
                request, at, lambda old: subresources.scaled(at.kind, old, patch.apply(subresources.scale(at.kind, old))), write
            )
        return self._change(request, at, patch.apply, write)

    def _change(self, request: web.BaseRequest, at: Place, make: Callable[[Json], Json], write: Write) -> web.Response:
        sub = "" if at.sub == "scale" else at.sub
        changed = self.objects.change(at.kind, at.home, at.name, make, write, subresource=sub)
        return self._object(request, at, changed, 200, write)

    def _delete(self, request: web.BaseRequest, at: Place, data: bytes) -> web.Response:
        options = bodies.read_object(data, request.headers.get("Content-Type", "application/json")) if data else {}
        how = ask.deletion(request.query, options)
        if not at.name:
            asked = ask.listing(request.query, at)
            matches, store = asked.matches, self.objects.store
            chosen = [item for item in store.all(at.kind.key, at.namespace) if matches is None or matches(item.value)]
            gone = [self.objects.remove(at.kind, *item.key, how)[0] for item in chosen]
            body = _list_body(at, gone, {"resourceVersion": str(store.version)})
            return web.Response(body=body, content_type="application/json")
        last, is_gone = self.objects.remove(at.kind, at.home, at.name, how)
        if is_gone and at.kind.key != "pods":
            return _json(status.success(at.kind, at.name, last.value["metadata"]["uid"]))
        return self._object(request, at, last, 200)


def _describe(kinds: Any, path: str) -> Json | None:
    """The discovery document of a path; None when there is none."""
    parts = path.split("/")[1:]
    match parts:
        case ["version"]:
            return discovery.VERSION
        case [""]:
            return {"paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]}
        case ["api"]:
            return discovery.core()
        case ["apis"]:
            return discovery.group_list(kinds)
        case ["apis", name] if name in discovery.groups(kinds):
            return {"kind": "APIGroup", "apiVersion": "v1", **discovery.group(kinds, name)}
        case ["api", version]:
            return discovery.resource_list(kinds, "", version)
        case ["apis", name, version]:
            return discovery.resource_list(kinds, name, version)
        case ["openapi", "v3"]:
            return discovery.openapi_index(kinds)
        case ["openapi", "v3", *rest]:
            return discovery.openapi(kinds, "/" + "/".join(rest))
    return None


def _json(value: Any, code: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=code, headers={"Content-Type": "application/json", **(headers or {})})


def _list_body(at: Place, items: list[Stored], meta: Json) -> bytes:
    """A list, joined from the bytes of its items; only those of custom resources carry kind and apiVersion."""
    kind = at.kind
    head = msgspec.json.encode({"kind": kind.listed, "apiVersion": kind.api_version, "metadata": meta})
    first = kind.head if kind.custom else b"{"
    return head[:-1] + b',"items":[' + b",".join([first + item.tail for item in items]) + b"]}"


def _too_new(asked: int, current: int) -> ApiError:
    causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    return ApiError(504, "Timeout", message, details={"causes": causes, "retryAfterSeconds": 1})
