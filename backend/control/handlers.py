"""HTTP in, messages out: one method an operation of the table. Reads from `Control`, decides nothing."""

from __future__ import annotations

import msgspec
from aiohttp import web

from backend.api import routes
from backend.api.cache import ProbeRequest
from backend.api.decisions import DecisionPage, PodDetail
from backend.api.findings import FindingPage
from backend.control import probe, query, streaming
from backend.control.actions.handlers import ActionHandlers
from backend.control.operations import LARGEST_BINS, LARGEST_PAGE, OPERATIONS, openapi
from backend.control.peers import Answer
from backend.control.reportroutes import REPORT_OPERATIONS, ReportHandlers
from backend.control.service import Control
from backend.core.errors import NotFound
from backend.core.web import json_response
from backend.history.model import NEWEST, Filter, parse_cursor

POD_DECISIONS = 20
"""Decisions shown with a pod."""


class Handlers(ActionHandlers):
    """Bound to one Control."""

    def __init__(self, control: Control) -> None:
        super().__init__(lambda: control.actions)
        self.control = control

    def register(self, app: web.Application, version: str) -> None:
        """Add every operation and the document that describes them."""
        tables = ((OPERATIONS, self), (REPORT_OPERATIONS, ReportHandlers(self.control.reports)))
        for operations, handlers in tables:
            for operation in operations:
                app.router.add_route(operation.method, operation.path, getattr(handlers, operation.name))
        document = msgspec.json.encode(openapi(version, [*OPERATIONS, *REPORT_OPERATIONS]))

        async def describe(_: web.Request) -> web.Response:
            return web.Response(body=document, content_type="application/json")

        app.router.add_get(routes.OPENAPI, describe)

    async def fleet(self, _: web.Request) -> web.Response:
        return json_response(self.control.fleet())

    async def pod(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        for view in self.control.fleet().pods:
            if view.pod.name == name:
                chosen, _ = await self.control.history.page(Filter(pod=name), POD_DECISIONS)
                return json_response(PodDetail(pod=view.pod, load=view.load, decisions=chosen))
        known = ", ".join(pod.name for pod in self.control.pods[:20])
        raise NotFound(f"No pod is named {name!r}.", fix=f"Pods: {known or 'none'}.")

    async def cache_map(self, request: web.Request) -> web.Response:
        bins = query.whole(request, "bins", 128, LARGEST_BINS)
        return _handed_on(await self.control.index.request("GET", routes.INDEX_MAP, params={"bins": str(bins)}))

    async def cache_probe(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=ProbeRequest)
        question = await probe.resolve(asked, self.control.pods, self.control.pods_http)
        return _handed_on(await self.control.index.request("POST", routes.INDEX_PROBE, body=msgspec.json.encode(question)))

    async def cache_sources(self, _: web.Request) -> web.Response:
        return _handed_on(await self.control.index.request("GET", routes.INDEX_SOURCES))

    async def decisions(self, request: web.Request) -> web.Response:
        given = request.query
        wanted = Filter(**{name: given.get(name, "") for name in ("model", "pod", "policy", "outcome")})
        before = parse_cursor(given["before"]) if given.get("before") else NEWEST
        items, following = await self.control.history.page(wanted, query.whole(request, "limit", 100, LARGEST_PAGE), before)
        return json_response(DecisionPage(items=items, next=following))

    async def decision(self, request: web.Request) -> web.Response:
        return json_response(await self.control.history.get(request.match_info["id"]))

    async def findings(self, _: web.Request) -> web.Response:
        return json_response(FindingPage(items=self.control.findings))

    async def stream(self, request: web.Request) -> web.StreamResponse:
        return await streaming.stream(request, self.control.hub)


def _handed_on(answer: Answer) -> web.Response:
    """A peer's answer as it is; its errors have our form already."""
    return web.Response(body=answer.body, status=answer.status, content_type="application/json")
