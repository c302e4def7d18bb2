"""HTTP/1.1 on asyncio.Protocol and httptools, as small as an engine needs it: one request at a time a connection, bodies whole,
answers whole or as a chunked stream. Knows nothing of models; routes live in `routes`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import parse_qs, unquote, urlsplit

import httptools

JSON = b"application/json"
_LARGEST_BODY = 256 * 2**20
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


class Exchange:
    """One request and the way to answer it. `on_gone` is called when the client leaves before the answer is complete."""

    def __init__(self, connection: Connection, method: str, target: str) -> None:
        parts = urlsplit(target)
        self.method = method
        self.path = unquote(parts.path)
        self.query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.started = time.monotonic()
        self.on_gone: Callable[[], None] | None = None
        self.answered = False
        self.status = 0
        self.sent_bytes = 0
        self.handler = "none"
        """The route's path, "none" for an unknown one; a label of metrics."""
        self._connection = connection

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1")

    def reply(self, status: int, body: bytes = b"", content_type: bytes = JSON) -> None:
        """The whole answer. An empty body goes without a content type, as real engines do."""
        kind = b"content-type: " + content_type + b"\r\n" if body else b""
        length = b"content-length: %d\r\n" % len(body)
        self.sent_bytes = len(body)
        self._connection.write(self._head(status, length + kind) + body)
        self._finish()

    def begin_stream(self, content_type: bytes) -> None:
        self._connection.write(self._head(200, b"content-type: " + content_type + b"\r\ntransfer-encoding: chunked\r\n"))

    def send(self, data: bytes) -> None:
        """One chunk of a stream."""
        self.sent_bytes += len(data)
        self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end_stream(self) -> None:
        self._connection.write(b"0\r\n\r\n")
        self._finish()

    def _head(self, status: int, headers: bytes) -> bytes:
        self.status = status
        close = b"" if self._connection.keep_alive else b"connection: close\r\n"
        head = b"HTTP/1.1 %d %b\r\ndate: %b\r\nserver: uvicorn\r\nvary: Origin\r\n" % (status, _REASONS.get(status, b""), _date())
        return head + headers + close + b"\r\n"

    def _finish(self) -> None:
        self.answered = True
        self.on_gone = None
        self._connection.finished(self)


Handler = Callable[[Exchange], None]
Observer = Callable[[Exchange], None]


class Clients:
    """The open connections of a server. An idle one is closed `keep_alive_s` after its last answer."""

    def __init__(self, keep_alive_s: float) -> None:
        self.keep_alive_s = keep_alive_s
        self.open: set[Connection] = set()
        self.none_left = asyncio.Event()

    def add(self, connection: Connection) -> None:
        self.open.add(connection)
        self.none_left.clear()

    def discard(self, connection: Connection) -> None:
        self.open.discard(connection)
        if not self.open:
            self.none_left.set()


class Connection(asyncio.Protocol):
    """One client connection. Requests that come while one is being answered wait in order."""

    def __init__(self, handle: Handler, observe: Observer, clients: Clients) -> None:
        self._handle = handle
        self._observe = observe
        self._clients = clients
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_size = 0
        self._current: Exchange | None = None
        self._queue: deque[tuple[Exchange, bool]] = deque()
        self._idle: asyncio.TimerHandle | None = None
        self.keep_alive = True
        self.closing = False

    @property
    def busy(self) -> bool:
        return self._current is not None

    def close_when_done(self) -> None:
        """Close now, or after the running answer."""
        self.closing = True
        self.keep_alive = False
        if self._transport is not None and not self.busy:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def write(self, data: bytes) -> None:
        if self._transport is not None and data:
            self._transport.write(data)

    def finished(self, exchange: Exchange) -> None:
        self._observe(exchange)
        self._current = None
        if not self.keep_alive or self.closing:
            if self._transport is not None:
                self._transport.close()
        elif self._queue:
            # Not from here: the caller is still inside its handler.
            asyncio.get_running_loop().call_soon(self._next)
        else:
            self._idle = asyncio.get_running_loop().call_later(self._clients.keep_alive_s, self.close_when_done)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream server gives a Transport
        self._clients.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._clients.discard(self)
        self._queue.clear()
        self._no_longer_idle()
        gone, self._current = self._current, None
        if gone is not None and gone.on_gone is not None:
            gone.on_gone()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.abort()
        except httptools.HttpParserError:
            self.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            if self._transport is not None:
                self._transport.close()

    # httptools

    def on_message_begin(self) -> None:
        self._no_longer_idle()
        self._target = b""
        self._headers = {}
        self._body = []
        self._body_size = 0

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_size += len(body)
        if self._body_size > _LARGEST_BODY:
            self.abort()
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        exchange = Exchange(self, self._parser.get_method().decode(), self._target.decode("latin-1"))
        exchange.headers = self._headers
        exchange.body = b"".join(self._body)
        self._body = []
        self._queue.append((exchange, self._parser.should_keep_alive()))
        self._next()

    def _no_longer_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _next(self) -> None:
        if self._current is None and self._queue and self._transport is not None:
            self._current, keep_alive = self._queue.popleft()
            self.keep_alive = keep_alive and not self.closing
            self._handle(self._current)


_date_cache: tuple[int, bytes] = (0, b"")


def _date() -> bytes:
    global _date_cache
    now = int(time.time())
    if _date_cache[0] != now:
        _date_cache = (now, formatdate(now, usegmt=True).encode())
    return _date_cache[1]
