"""A Kubernetes API server on a real socket whose StormServices live: the real planner replaces their pods in the loop's time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from backend.core.errors import NotFound, StaleState
from backend.storm import names
from tests.fakes.kubeapi import FakeKubeApi, _collection, _status
from tests.fakes.storm_cluster import FakeCluster, storm_service

STORM = "orchestration.aibrix.ai/v1alpha1/"
COLLECTIONS = {
    names.STORM_SERVICES: f"{STORM}stormservices",
    names.ROLE_SETS: f"{STORM}rolesets",
    names.PODS: "v1/pods",
    names.CONTROLLER_REVISIONS: "apps/v1/controllerrevisions",
}
TICK_S = 0.05


class StormKubeApi(FakeKubeApi):
    """Writes of StormServices go to `cluster`; what becomes of them is told to watches every TICK_S."""

    def __init__(self, cluster: FakeCluster) -> None:
        super().__init__()
        self.cluster = cluster
        self._mirror: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._copy()
        await super().start()
        self._mirror = asyncio.create_task(self._keep_copying())

    async def stop(self) -> None:
        if self._mirror is not None:
            self._mirror.cancel()
            await asyncio.gather(self._mirror, return_exceptions=True)
        await super().stop()
        await self.cluster.close()

    async def _keep_copying(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self._copy()

    async def _copy(self) -> None:
        self.cluster.tick()
        for resource, collection in COLLECTIONS.items():
            found = {item["metadata"]["name"]: item for item in self.cluster.world.list(resource)}
            for place in [one for one in self.objects if one[0] == collection and one[2] not in found]:
                await self.remove(*place)
            for name, item in found.items():
                place = (collection, "default", name)
                if _bare(self.objects.get(place)) != _bare(item):
                    await self._store(place, json.loads(json.dumps(item)))

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        await self._copy()
        return await super()._collection(request)

    async def _create(self, request: web.Request) -> web.Response:
        if _collection(request) != COLLECTIONS[names.STORM_SERVICES]:
            return await super()._create(request)
        return await self._write(self.cluster.create(await request.json(), dry_run="dryRun" in request.query), 201)

    async def _one(self, request: web.Request) -> web.Response:
        await self._copy()
        mine = _collection(request) == COLLECTIONS[names.STORM_SERVICES]
        namespace, name = request.match_info.get("namespace", ""), request.match_info["name"]
        if not mine or request.method == "GET":
            if (_collection(request), namespace, name) not in self.objects:
                return _missing(name)
            return await super()._one(request)
        if request.method == "DELETE":
            return await self._write(self._gone(namespace, name))
        patch = await request.json()
        version = (patch.get("metadata") or {}).get("resourceVersion")
        current = self.objects.get((_collection(request), namespace, name))
        if version and current is not None:
            # The mirror has versions of its own, as watches need them: the precondition is on these.
            if version != current["metadata"]["resourceVersion"]:
                return _status(409, "Conflict")
            patch = {key: value for key, value in patch.items() if key != "metadata"}
        return await self._write(self.cluster.patch(namespace, name, patch, dry_run="dryRun" in request.query))

    async def _gone(self, namespace: str, name: str) -> dict[str, Any]:
        await self.cluster.delete(namespace, name)
        return {"kind": "Status", "status": "Success"}

    async def _write(self, call: Any, status: int = 200) -> web.Response:
        try:
            answer = await call
        except StaleState:
            return _status(409, "Conflict")
        except NotFound:
            return _missing("it")
        await self._copy()
        return web.json_response(answer, status=status)


def _missing(name: str) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "code": 404, "reason": "NotFound", "message": f'stormservices "{name}" not found'}
    return web.json_response(body, status=404)


def _bare(item: dict[str, Any] | None) -> dict[str, Any] | None:
    if item is None:
        return None
    return {**item, "metadata": {key: value for key, value in item["metadata"].items() if key != "resourceVersion"}}


@pytest.fixture
async def storm_api() -> AsyncIterator[StormKubeApi]:
    """A running server with the service `qwen`, all of whose pods are ready; pods take 0.3 s to start and 0.1 s to end."""
    cluster = FakeCluster(start=0.3, end=0.1)
    cluster.seed(storm_service())
    api = StormKubeApi(cluster)
    await api.start()
    yield api
    await api.stop()
