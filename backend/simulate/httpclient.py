"""A lean HTTP/1.1 client for load generation: asyncio.Protocol and llhttp, kept-alive connections, bodies handed on as they come.

httpx costs 1.3 ms of CPU a request, more than a whole simulated pod; this one costs a tenth. It speaks plain HTTP to one host, follows
no redirect and retries nothing: a load generator has to see what really happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal, cast
from urllib.parse import urlsplit

import httptools

from backend.core.errors import UsageError

Failure = Literal["connect", "reset", "timeout", "bad_response"]


class HttpFailure(Exception):
    """The exchange ended without a whole answer; `failure` is from a closed set.

    `exchange` has status and headers when the answer got that far.
    """

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure
        self.exchange: Exchange | None = None


class Exchange:
    """One request's answer as it comes in. `on_body` gets every piece of the body."""

    def __init__(self, on_body: Callable[[bytes], None]) -> None:
        self.on_body = on_body
        self.status = 0
        self.headers: dict[str, str] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time. Callbacks named `on_*` are llhttp's."""

    def __init__(self) -> None:
        self.exchange: Exchange | None = None
        self.closed = False
        self.reusable = False
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.exchange is None:
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(HttpFailure("bad_response", f"the answer is not HTTP: {error}"))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._fail(HttpFailure("reset", str(error) if error else "the connection ended in mid-answer"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.exchange is not None:
            self.exchange.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self.exchange is not None:
            self.exchange.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self.exchange is not None:
            self.exchange.on_body(body)

    def on_message_complete(self) -> None:
        exchange, self.exchange = self.exchange, None
        self.reusable = self._parser.should_keep_alive()
        # A parser that has seen a whole message may carry state of it; a new one costs a microsecond.
        self._parser = httptools.HttpResponseParser(self)
        if exchange is not None and not exchange.done.done():
            exchange.done.set_result(None)

    def send(self, head: bytes, body: bytes, exchange: Exchange) -> None:
        self.exchange = exchange
        self.reusable = False
        assert self._transport is not None
        self._transport.writelines([head, body])

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, failure: HttpFailure) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None and not exchange.done.done():
            exchange.done.set_exception(failure)
        if not self.closed:
            self.close()


class HttpClient:
    """Connections to one base URL; as many as there are requests at a time."""

    def __init__(self, url: str, *, token: str = "", connect_timeout_s: float = 5.0, kept: int = 256) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise UsageError(f"{url!r} is not a plain http:// address.", fix="Give the gateway's address, such as http://127.0.0.1:18802.")
        self._host, self._port = parts.hostname, parts.port or 80
        self._prefix = parts.path.rstrip("/")
        self._fixed = f"Host: {parts.netloc}\r\nContent-Type: application/json\r\n" + (
            f"Authorization: Bearer {token}\r\n" if token else ""
        )
        self._connect_timeout_s = connect_timeout_s
        self._kept = kept
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()

    async def request(
        self, method: str, path: str, body: bytes, on_body: Callable[[bytes], None], *, headers: str = "", timeout_s: float
    ) -> Exchange:
        """Send and wait for the whole answer. `headers` are whole lines ending in CRLF. Raises HttpFailure."""
        exchange = Exchange(on_body)
        connection = await self._connection()
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._fixed}Content-Length: {len(body)}\r\n{headers}\r\n"
        connection.send(head.encode("latin-1"), body, exchange)
        try:
            async with asyncio.timeout(timeout_s):
                await exchange.done
        except TimeoutError:
            failure = HttpFailure("timeout", f"no whole answer within {timeout_s:g} s")
            failure.exchange = exchange
            raise failure from None
        except HttpFailure as failure:
            failure.exchange = exchange
            raise
        finally:
            if connection.reusable and not connection.closed and len(self._idle) < self._kept:
                self._idle.append(connection)
            else:
                self._open.discard(connection)
                connection.close()
        return exchange

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
            self._open.discard(connection)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(_Connection, self._host, self._port)
        except (OSError, TimeoutError) as error:
            raise HttpFailure("connect", f"{self._host}:{self._port}: {error or 'no answer'}") from error
        self._open.add(connection)
        return connection

    def close(self) -> None:
        """End every connection, those in use too."""
        for connection in self._open:
            connection.close()
        self._open.clear()
        self._idle.clear()
