"""One simulated engine as a process' content: builds the parts, listens, and stops as its family does.

On SIGTERM without `shutdown_timeout_s` running answers end with finish_reason "abort" and the process leaves. With it they may
finish, and what is held for other engines may be fetched. Meanwhile a vLLM's /health says 200 and new requests get 200 with no token
and "abort"; an SGLang's /health says 503 and new requests are served. The parent's death always ends at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal

from backend.core.errors import PortInUse
from backend.core.life import watch_parent
from backend.simulate.engine.build import build
from backend.simulate.engine.http import Clients, Connection
from backend.simulate.engine.model import Sampler
from backend.simulate.engine.settings import EngineSettings

log = logging.getLogger(__name__)

_FLUSH_S = 0.5
"""Longest wait for clients to read their last bytes."""


class EngineServer:
    """Create it inside a running loop; `start` opens the port, so the port answers only when the engine is ready."""

    def __init__(self, settings: EngineSettings, *, sampler: Sampler | None = None) -> None:
        """`sampler` decides the answers; None: the tokenizer's own deterministic words."""
        settings.check()
        self.settings = settings
        parts = build(settings, sampler)
        self.publisher = parts.publisher
        self.driver = parts.driver
        self.routes = parts.routes
        self.connector = parts.connector
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
        if self.connector is not None:
            try:
                await self.connector.start()
            except PortInUse:
                self.close()
                raise
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
        self.driver.close()
        if self.connector is not None:
            self.connector.close()
        if self.publisher is not None:
            self.publisher.close()

    async def _drain(self) -> None:
        patience = self.settings.shutdown_timeout_s
        await _came(self.driver.idle, None if patience == math.inf else patience)
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
    log.info("%s, %s %s: ready on %s:%d", settings.model, settings.engine, settings.version, settings.host, server.port)
    await server.run()


async def _came(event: asyncio.Event, seconds: float | None) -> bool:
    """Whether `event` came within `seconds`; None: without a limit."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
