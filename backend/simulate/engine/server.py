"""One simulated engine as a process' content: builds the parts, listens, and stops as vLLM does.

On SIGTERM without `shutdown_timeout_s` running answers end with finish_reason "abort" and the process leaves. With it they may
finish; meanwhile /health says 200 and new requests get 200 with no token and "abort". The parent's death always ends at once.
"""

from __future__ import annotations

import asyncio
import logging
import signal

from backend.core.errors import PortInUse
from backend.core.life import watch_parent
from backend.engines.cost import preset
from backend.simulate.engine.dialect import dialect_of
from backend.simulate.engine.driver import Driver
from backend.simulate.engine.hashing import BlockHasher
from backend.simulate.engine.http import Clients, Connection
from backend.simulate.engine.metrics import EngineMetrics
from backend.simulate.engine.model import Sampler
from backend.simulate.engine.publisher import Publisher
from backend.simulate.engine.routes import Routes
from backend.simulate.engine.scheduler import EngineCore
from backend.simulate.engine.settings import EngineSettings
from backend.simulate.engine.tokenizer import load

log = logging.getLogger(__name__)

_FLUSH_S = 0.5
"""Longest wait for clients to read their last bytes."""


class EngineServer:
    """Create it inside a running loop; `start` opens the port, so the port answers only when the engine is ready."""

    def __init__(self, settings: EngineSettings, *, sampler: Sampler | None = None) -> None:
        """`sampler` decides the answers; None: the tokenizer's own deterministic words."""
        settings.check()
        version = settings.version_numbers
        tokenizer = load(settings.tokenizer)
        hasher = BlockHasher(algorithm=settings.hash_algorithm, seed=settings.hash_seed, version=version)
        core = EngineCore(settings.core, hasher, sampler or tokenizer.sample, preset(settings.preset), speed=settings.speed)
        metrics = EngineMetrics(model=settings.model, version=version, settings=settings.core, algorithm=settings.hash_algorithm)
        self.settings = settings
        dialect = None
        self.publisher = None
        if settings.kv_events is not None:
            dialect = dialect_of(version, byte_hashes=settings.byte_hashes)
            self.publisher = Publisher(settings.kv_events, replay_has_topic=dialect.replay_has_topic)
        self.driver = Driver(core, metrics, self.publisher, dialect)
        self.routes = Routes(settings, self.driver, tokenizer, self.publisher)
        self._clients = Clients(settings.keep_alive_s)
        self._server: asyncio.Server | None = None
        self._stopped = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that it listens on; the system's choice when 0 was asked for."""
        if self._server is None:
            raise RuntimeError("the engine does not listen")
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Raises PortInUse."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Connection(self.routes.handle, self.routes.observe, self._clients),
                self.settings.host,
                self.settings.port,
                backlog=2048,
            )
        except OSError as error:
            self.close()
            raise PortInUse(self.settings.host, self.settings.port, what=f"engine {self.settings.model}") from error

    def stop(self) -> None:
        """SIGTERM. A second one does not wait any longer."""
        if self._draining is not None or self.settings.shutdown_timeout_s <= 0:
            self._stopped.set()
            return
        self.routes.draining = True
        self._draining = asyncio.create_task(self._drain(), name="drain")

    def kill(self) -> None:
        """End without waiting for running requests."""
        self._stopped.set()

    async def run(self) -> None:
        """Serve until told to stop, then end what runs and close everything."""
        await self._stopped.wait()
        if self._server is not None:
            self._server.close()
        self.routes.draining = True
        self.driver.abort_all()
        for connection in list(self._clients.open):
            connection.close_when_done()
        if self._clients.open:
            await _came(self._clients.none_left, _FLUSH_S)
        self.close()

    def close(self) -> None:
        if self._draining is not None:
            self._draining.cancel()
        for connection in list(self._clients.open):
            connection.abort()
        if self._server is not None:
            self._server.close()
        if self.publisher is not None:
            self.publisher.close()

    async def _drain(self) -> None:
        await _came(self.driver.idle, self.settings.shutdown_timeout_s)
        self._stopped.set()


async def serve(settings: EngineSettings, *, startup_delay_s: float = 0.0) -> None:
    """Run one engine until a signal or the parent's end. Raises WorkbenchError when it cannot start."""
    loop = asyncio.get_running_loop()
    early = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, early.set)
    watch_parent(early.set)
    if startup_delay_s > 0 and await _came(early, startup_delay_s):
        return
    server = EngineServer(settings)
    await server.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    watch_parent(server.kill)
    if early.is_set():
        server.kill()
    log.info("%s, vLLM %s: ready on %s:%d", settings.model, settings.version, settings.host, server.port)
    await server.run()


async def _came(event: asyncio.Event, seconds: float) -> bool:
    """Whether `event` came within `seconds`."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
