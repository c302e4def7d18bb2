"""The runtime as a service: follows the fleet file, serves what runs, keeps logs small. No decisions.

GET  /pods                     {"items": [Pod], "fleet_file": ..., "problem": ...}
GET  /pods/{name}/log?tail=N   text
POST /pods/{name}/restart
GET  /metrics, /healthz        without a token
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from aiohttp import web

from backend.core.errors import ConfigError, InvalidRequest, NotFound
from backend.core.metrics import Registry
from backend.core.web import application, json_response
from backend.localkube import fleet_file
from backend.localkube.runtime import podlogs
from backend.localkube.runtime.model import PodSpec
from backend.localkube.runtime.pods import PodRuntime

log = logging.getLogger(__name__)

FLEET_POLL_S = 0.5
LOG_LOOK_S = 5.0
_DEFAULT_TAIL = 200


class FleetFile:
    """The fleet file over time: the last good content stands until there is a better one."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.problem = ""
        self._seen = (0, 0, 0)

    def read(self) -> list[PodSpec]:
        """The file as it is. Raises ConfigError."""
        self._seen = self._stamp()
        return fleet_file.read(self.file)

    def changed(self) -> list[PodSpec] | None:
        """The pods of a changed file; None when it did not change or cannot be read (`problem` says why)."""
        if self._stamp() == self._seen:
            return None
        try:
            specs = self.read()
        except ConfigError as error:
            self.problem = str(error)
            log.error("the fleet file cannot be used, the running fleet stays as it is: %s", error)
            return None
        self.problem = ""
        return specs

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = self.file.stat()
        except OSError:
            return (0, 0, 0)
        return (found.st_mtime_ns, found.st_size, found.st_ino)


async def follow(fleet: FleetFile, runtime: PodRuntime) -> None:
    """Bring every change of the fleet file to the runtime, for ever."""
    while True:
        await asyncio.sleep(FLEET_POLL_S)
        specs = fleet.changed()
        if specs is not None:
            log.info("the fleet file changed: %d pods wanted", len(specs))
            runtime.want(specs)


async def keep_logs_small(runtime: PodRuntime, largest_bytes: int) -> None:
    """Cut pods' logs at `largest_bytes`, for ever."""
    while True:
        await asyncio.sleep(LOG_LOOK_S)
        for pod in runtime.pods():
            await asyncio.to_thread(podlogs.cut, podlogs.path(runtime.options.state, pod.name), largest_bytes)


def routes(runtime: PodRuntime, fleet: FleetFile, registry: Registry, *, token: str) -> web.Application:
    """The HTTP interface."""
    _metrics(runtime, fleet, registry)

    async def pods(_: web.Request) -> web.Response:
        return json_response({"items": runtime.pods(), "fleet_file": str(fleet.file), "problem": fleet.problem})

    async def pod_log(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in {pod.name for pod in runtime.pods()}:
            raise NotFound(f"There is no pod {name!r}.")
        asked = request.query.get("tail", str(_DEFAULT_TAIL))
        if not asked.isdigit():
            raise InvalidRequest(f"`tail` must be a whole number, not {asked!r}.", param="tail")
        return web.Response(text=await asyncio.to_thread(podlogs.tail, podlogs.path(runtime.options.state, name), int(asked)))

    async def restart(request: web.Request) -> web.Response:
        runtime.restart(request.match_info["name"])
        return json_response({"status": "restarting"}, status=202)

    app = application(registry, token=token)
    app.router.add_get("/pods", pods)
    app.router.add_get("/pods/{name}/log", pod_log)
    app.router.add_post("/pods/{name}/restart", restart)
    return app


def _metrics(runtime: PodRuntime, fleet: FleetFile, registry: Registry) -> None:
    ready = registry.gauge("runtime_pods_ready", "Pods that answer their readiness probe.")
    ready.set_function(lambda: sum(pod.ready for pod in runtime.pods()))
    total = registry.gauge("runtime_pods", "Pods that are wanted or on their way out.")
    total.set_function(lambda: len(runtime.pods()))
    restarts = registry.gauge("runtime_pod_restarts", "Processes that were started in place of one that ended, since this runtime began.")
    restarts.set_function(lambda: runtime.restarts)
    failures = registry.gauge("runtime_fleet_write_failures", "Times that pods.json could not be written.")
    failures.set_function(lambda: runtime.write_failures)
    broken = registry.gauge("runtime_fleet_file_broken", "1 while the fleet file's newest state cannot be used.")
    broken.set_function(lambda: float(bool(fleet.problem)))
