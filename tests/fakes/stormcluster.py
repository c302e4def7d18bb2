"""An API server with a node behind it, on a real socket: names are generated, finalizers hold, pods get ready and end by themselves."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from backend.kube.client import KubeClient, WatchEvent
from backend.storm import names
from backend.storm.status import stamp
from tests.fakes.kubeapi import FakeKubeApi, Object, Place, merged

STORM = "orchestration.aibrix.ai/v1alpha1/"
COLLECTIONS = {
    names.STORM_SERVICES: STORM + names.STORM_SERVICES,
    names.ROLE_SETS: STORM + names.ROLE_SETS,
    names.PODS: "v1/pods",
    names.SERVICES: "v1/services",
    names.CONTROLLER_REVISIONS: "apps/v1/controllerrevisions",
    "events": "v1/events",
}


class StormCluster(FakeKubeApi):
    """`start_s` after creation a pod is ready, `end_s` after deletion it is gone."""

    def __init__(self, *, start_s: float = 0.05, end_s: float = 0.03) -> None:
        super().__init__()
        self.start_s, self.end_s = start_s, end_s
        self.lose_answers = 0
        """So many creates of pods happen, and their answer is a 504."""
        self.broken_images: set[str] = set()
        self.most: dict[str, int] = {}
        """The most pods of a role that stood at once."""
        self._numbers = itertools.count(1)
        self._nodes: set[asyncio.Task[None]] = set()

    def items(self, resource: str) -> list[Object]:
        return [item for place, item in self.objects.items() if place[0] == COLLECTIONS[resource]]

    def the(self, resource: str, name: str) -> Object:
        return next(item for item in self.items(resource) if item["metadata"]["name"] == name)

    async def apply(self, resource: str, item: Object) -> None:
        """Create or change an object as a user would; its generation grows with its specification."""
        meta = item["metadata"]
        place = (COLLECTIONS[resource], meta.get("namespace", "default"), meta["name"])
        before = self.objects.get(place)
        if before is None:
            fresh = {"namespace": "default", "uid": str(uuid.uuid4()), "generation": 1}
            await self._store(place, {**item, "metadata": {**meta, **fresh}})
        else:
            generation = before["metadata"]["generation"] + (before.get("spec") != item.get("spec"))
            await self._store(place, {**before, "spec": item["spec"], "metadata": {**before["metadata"], "generation": generation}})

    async def end(self, resource: str, name: str) -> None:
        """Delete as a user would."""
        item = self.the(resource, name)
        await self._end((COLLECTIONS[resource], item["metadata"]["namespace"], name))

    async def stop(self) -> None:
        for task in self._nodes:
            task.cancel()
        await asyncio.gather(*self._nodes, return_exceptions=True)
        await super().stop()

    async def _record(self, kind: str, place: Place, obj: Object) -> None:
        self._count()
        await super()._record(kind, place, obj)

    def _count(self) -> None:
        standing: dict[str, int] = {}
        for pod in self.items(names.PODS):
            role = pod["metadata"]["labels"][names.ROLE_LABEL]
            standing[role] = standing.get(role, 0) + 1
        self.most = {role: max(self.most.get(role, 0), count) for role, count in {**self.most, **standing}.items()}

    def _later(self, seconds: float, work: Any) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            await work

        task = asyncio.create_task(wait())
        self._nodes.add(task)
        task.add_done_callback(self._nodes.discard)

    async def _create(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        meta = body["metadata"]
        meta.setdefault("name", f"{meta.get('generateName', '')}{next(self._numbers):05d}")
        meta |= {"creationTimestamp": stamp(0), "generation": 1}
        request._read_bytes = json.dumps(body).encode()
        answer = await super()._create(request)
        if request.match_info["plural"] == names.PODS and answer.status == 201:
            place = ("v1/pods", request.match_info["namespace"], meta["name"])
            self._later(self.start_s, self._get_ready(place))
            if self.lose_answers > 0:
                self.lose_answers -= 1
                return web.json_response({"kind": "Status", "code": 504, "reason": "Timeout", "message": "no answer in time"}, status=504)
        return answer

    async def _get_ready(self, place: Place) -> None:
        pod = self.objects.get(place)
        if pod is None or pod["metadata"].get("deletionTimestamp") or pod["spec"]["containers"][0]["image"] in self.broken_images:
            return
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        await self._store(place, {**pod, "status": status})

    async def _one(self, request: web.Request) -> web.Response:
        place = (COLLECTIONS[request.match_info["plural"]], request.match_info["namespace"], request.match_info["name"])
        before = self.objects.get(place)
        if before is None or request.method not in ("PATCH", "DELETE"):
            return await super()._one(request)
        body = json.loads(await request.read() or b"{}")
        if request.method == "DELETE":
            if (body.get("preconditions") or {}).get("uid", before["metadata"]["uid"]) != before["metadata"]["uid"]:
                return await super()._one(request)
            return web.json_response(await self._end(place))
        if "spec" in body and merged(before, body)["spec"] != before.get("spec"):
            body["metadata"] = {**body.get("metadata", {}), "generation": before["metadata"]["generation"] + 1}
            request._read_bytes = json.dumps(body).encode()
        answer = await super()._one(request)
        after = self.objects[place]["metadata"]
        if after.get("deletionTimestamp") and not after.get("finalizers"):
            await self._drop(place)
        return answer

    async def _end(self, place: Place) -> Object:
        """Begin a deletion: what has finalizers or is a pod stays for a while."""
        before = self.objects[place]
        if before["metadata"].get("deletionTimestamp"):
            return before
        if place[0] != "v1/pods" and not before["metadata"].get("finalizers"):
            await self._drop(place)
            return {"kind": "Status", "status": "Success"}
        leaving = await self._store(place, {**before, "metadata": {**before["metadata"], "deletionTimestamp": stamp(1)}})
        if place[0] == "v1/pods":
            self._later(self.end_s, self._drop(place))
        return leaving

    async def _drop(self, place: Place) -> None:
        if place not in self.objects:
            return
        uid = self.objects[place]["metadata"]["uid"]
        await self.remove(*place)
        for child, item in list(self.objects.items()):
            if child[0] in ("v1/services", "apps/v1/controllerrevisions") and names.controller_uid(item) == uid:
                await self.remove(*child)


@pytest.fixture
async def storm_cluster() -> AsyncIterator[StormCluster]:
    """A running cluster; import the fixture into a test module to use it."""
    cluster = StormCluster()
    await cluster.start()
    yield cluster
    await cluster.stop()


class SlowWatches(KubeClient):
    """A client whose watches tell everything `lag_s` later; what it writes and reads directly is not late."""

    lag_s = 0.15

    async def watch(self, *args: Any, **options: Any) -> AsyncGenerator[WatchEvent, None]:
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[tuple[float, WatchEvent | None]] = asyncio.Queue()
        source = super().watch(*args, **options)

        async def read() -> None:
            try:
                async for event in source:
                    told.put_nowait((loop.time() + self.lag_s, event))
            finally:
                told.put_nowait((loop.time(), None))

        reader = asyncio.create_task(read())
        try:
            while (entry := await told.get())[1] is not None:
                await asyncio.sleep(entry[0] - loop.time())
                yield entry[1]
            await reader
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await source.aclose()
