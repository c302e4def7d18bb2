"""The part of an engine's HTTP interface that all families share: a table of paths, errors at its edge, and counting."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from backend.simulate.engine.driver import Driver
from backend.simulate.engine.http import Exchange
from backend.simulate.engine.requests import RequestRefused

log = logging.getLogger(__name__)

Route = Callable[[Exchange], None]
Table = dict[str, tuple[tuple[str, ...], Route]]
GET, POST, ANY = ("GET",), ("POST",), ("GET", "POST")


class Router:
    """Answers every request. Never waits: what takes time is given to the driver."""

    def __init__(self, driver: Driver) -> None:
        self.draining = False
        self.driver = driver
        self.table: Table = {"/debug/blocks": (GET, self._blocks), "/metrics": (GET, self._metrics)}

    def handle(self, exchange: Exchange) -> None:
        """The request handler's edge: whatever goes wrong becomes an answer."""
        known = self.table.get(exchange.path)
        if known is None:
            return reply(exchange, {"detail": "Not Found"}, status=404)
        methods, route = known
        exchange.handler = exchange.path
        if exchange.method not in methods:
            return reply(exchange, {"detail": "Method Not Allowed"}, status=405)
        try:
            route(exchange)
        except RequestRefused as refused:
            exchange.reply(refused.status, refused.body)
        except Exception:
            log.exception("%s %s failed", exchange.method, exchange.path)
            exchange.reply(500, self.internal_error())
        return None

    def observe(self, exchange: Exchange) -> None:
        """Count an answered request."""
        seconds = time.monotonic() - exchange.started
        received = len(exchange.body)
        self.driver.figures.http(exchange.handler, exchange.method, exchange.status, seconds, received, exchange.sent_bytes)

    def internal_error(self) -> bytes:
        """The family's body for an error that is the engine's."""
        raise NotImplementedError

    def _blocks(self, exchange: Exchange) -> None:
        """What the prefix cache really holds: no engine has this, tests compare the index with it."""
        held = [digest.hex() for digest in self.driver.core.blocks.cached_hashes]
        reply(exchange, {"blocks": len(held), "block_hashes": held})

    def _metrics(self, exchange: Exchange) -> None:
        exchange.reply(200, self.driver.figures.render(self.driver.core), self.driver.figures.content_type)


def reply(exchange: Exchange, value: Mapping[str, Any] | list[Any], *, status: int = 200) -> None:
    exchange.reply(status, msgspec.json.encode(value))
