"""An index service in the test's own loop, following pods that the test names and changes; and an engine that is only events."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import msgspec

from backend.api.cache import SourceState
from backend.api.fleet import Pod
from backend.core.files import write_atomic
from backend.core.settings import FleetSettings, KvIndexSettings, ListenSettings
from backend.core.supervise import Supervisor
from backend.kvindex import PrefixIndex
from backend.kvindex.service import IndexService
from tests.fakes.events import Publisher

PATIENCE_S = 10.0


class World:
    """The service, a client to it, and the fleet file that it follows."""

    def __init__(self, service: IndexService, client: httpx.AsyncClient, fleet: Path) -> None:
        self.service, self.client, self._fleet = service, client, fleet
        self._pods: dict[str, Pod] = {}

    @property
    def index(self) -> PrefixIndex:
        return self.service.index

    def set_pod(self, name: str, address: str, **more: object) -> None:
        """Add or change a pod of the fleet."""
        host, _, port = address.rpartition(":")
        self._pods[name] = Pod(**{"name": name, "ip": host, "port": int(port), "model": "tiny", "ready": True, **more})  # type: ignore[arg-type]
        self._write()

    def drop_pod(self, name: str) -> None:
        del self._pods[name]
        self._write()

    def source(self, name: str) -> SourceState:
        return next((state for state in self.service.source_states() if state.pod == name), SourceState(pod=name))

    async def live(self, *names: str) -> None:
        await until(lambda: all(self.source(name).status == "live" for name in names), lambda: self.service.source_states())

    def _write(self) -> None:
        write_atomic(self._fleet, msgspec.json.encode(list(self._pods.values())))


async def until(condition: Callable[[], object], shown: Callable[[], object] = lambda: "") -> None:
    """Wait for something that other threads and sockets bring about."""
    for _ in range(int(PATIENCE_S / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE_S} s: {shown()}")


@asynccontextmanager
async def index_world(folder: Path, **pods: str) -> AsyncIterator[World]:
    """A service that follows `pods` (name=address); its shared files are in `folder`."""
    fleet = folder / "pods.json"
    write_atomic(fleet, b"[]")
    settings = KvIndexSettings(
        listen=ListenSettings(port=0), fleet=FleetSettings(file=fleet, poll_s=0.02), shared=folder / "shared", capacity_blocks=256
    )
    async with Supervisor("test") as tasks:
        service = IndexService(settings, tasks)
        running = asyncio.create_task(service.run())
        await until(lambda: service.port or running.done(), lambda: running)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", timeout=10) as client:
            world = World(service, client, fleet)
            for name, address in pods.items():
                world.set_pod(name, address)
            try:
                yield world
            finally:
                tasks.stop()
                await running


@contextmanager
def event_engine(
    *, status: int = 200, sources: bytes | None = None, told: Callable[[Publisher, str], bytes | None] | None = None, **options: object
) -> Iterator[tuple[Publisher, str]]:
    """(publisher, address) of an engine that answers GET /kv_event_sources and publishes what the test wants. `told` makes the answer
    to a path, None for one that it does not know."""
    publisher = Publisher(**options)  # type: ignore[arg-type]

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = publisher.sources if sources is None else sources
            found = told(publisher, self.path) if told is not None else body
            body = found or b"{}"
            self.send_response(404 if found is None else status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield publisher, f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
        publisher.close()
