"""The pipeline's operations of the HTTP table: messages in, messages out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec
from aiohttp import web

from backend.api.actions import ApplyRequest, PlanRequest, Verb, VerbRequest
from backend.control import query
from backend.control.actions.service import Actions
from backend.core.web import json_response

LARGEST_PAGE = 1_000
T = TypeVar("T")


class ActionHandlers:
    """`actions` gives the pipeline, or raises why there is none."""

    def __init__(self, actions: Callable[[], Actions]) -> None:
        self._actions = actions

    async def services(self, _: web.Request) -> web.Response:
        return json_response(await self._actions().services())

    async def service(self, request: web.Request) -> web.Response:
        return json_response(await self._actions().service(request.match_info["namespace"], request.match_info["name"]))

    async def make_plan(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=PlanRequest)
        return json_response(await self._actions().plan(asked))

    async def plan(self, request: web.Request) -> web.Response:
        return json_response(await self._actions().get_plan(request.match_info["id"]))

    async def apply(self, request: web.Request) -> web.Response:
        asked = await _body(request, ApplyRequest)
        return json_response(await self._actions().apply(request.match_info["id"], asked))

    async def operations(self, request: web.Request) -> web.Response:
        limit = query.whole(request, "limit", 100, LARGEST_PAGE)
        return json_response(await self._actions().operations(limit=limit, service=request.query.get("service", "")))

    async def operation(self, request: web.Request) -> web.Response:
        return json_response(await self._actions().operation(request.match_info["id"]))

    async def abort(self, request: web.Request) -> web.Response:
        return await self._tell(request, "abort")

    async def pause(self, request: web.Request) -> web.Response:
        return await self._tell(request, "pause")

    async def resume(self, request: web.Request) -> web.Response:
        return await self._tell(request, "resume")

    async def undo(self, request: web.Request) -> web.Response:
        asked = await _body(request, VerbRequest)
        return json_response(await self._actions().undo(request.match_info["id"], asked))

    async def audit(self, request: web.Request) -> web.Response:
        limit = query.whole(request, "limit", 100, LARGEST_PAGE)
        return json_response(await self._actions().audit(limit=limit, before=request.query.get("before", "")))

    async def _tell(self, request: web.Request, verb: Verb) -> web.Response:
        asked = await _body(request, VerbRequest)
        return json_response(await self._actions().tell(request.match_info["id"], verb, asked))


async def _body(request: web.Request, kind: type[T]) -> T:
    """The message; nothing at all means its defaults."""
    return msgspec.json.decode(await request.read() or b"{}", type=kind)
