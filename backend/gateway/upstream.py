"""Connections to pods: one request at a time each, strict reading of the answer, bytes handed on as they come.

Owns the socket to an engine and the keep-alive pool of one pod. Never decides what becomes of a request: its sink does.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import Literal, Protocol, cast

from backend.core.errors import WireError
from backend.gateway.framing import CHUNKED, HEAD_LIMIT, UNTIL_CLOSE, ChunkWalker, ResponseHead, parse_head

log = logging.getLogger(__name__)

FailureKind = Literal["connect", "reset", "garbage", "timeout", "internal"]

IDLE_S = 4.0
"""Seconds an idle connection is kept: uvicorn, the server of most engines, closes its own after 5."""
_JOIN_BYTES = 65_536
_HEADS_KEPT = 512


class Sink(Protocol):
    """Who receives an answer. `ended` with the last bytes; after it, or after `on_failure`, nothing more comes."""

    def on_head(self, head: ResponseHead, data: bytes, ended: bool) -> None: ...

    def on_data(self, data: bytes, ended: bool) -> None: ...

    def on_failure(self, kind: FailureKind, detail: str) -> None: ...


# Answers to one kind of request differ in few bytes (a length, the second): parsing each head anew would be the larger part of
# the work on this side. Bounded; cleared when full.
_heads: dict[bytes, ResponseHead] = {}


class UpstreamConnection(asyncio.Protocol):
    """`reused`: it has answered before, so a reset without an answer says nothing about the pod's health."""

    __slots__ = ("_buffer", "_head", "_left", "_paused", "_pool", "_sink", "_walker", "active", "idle_since", "reused", "transport")

    def __init__(self, pool: PodPool) -> None:
        self._pool = pool
        self._sink: Sink | None = None
        self._buffer = b""
        self._head: ResponseHead | None = None
        self._left = 0
        self._walker: ChunkWalker | None = None
        self._paused = False
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.active = False
        """Bytes came since somebody last looked (and set it back)."""
        self.reused = False
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, head: tuple[bytes, ...], body: bytes, sink: Sink) -> None:
        """`head` in parts."""
        self._sink = sink
        self._head = None
        self._buffer = b""
        self.active = False
        if len(body) < _JOIN_BYTES:
            self.transport.write(b"".join((*head, body)))
        else:
            self.transport.writelines((*head, body))

    def cancel(self) -> None:
        """Nobody wants the answer any more: close at once, so that the engine stops generating."""
        self._sink = None
        self.transport.abort()

    def pause(self) -> None:
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self.transport.resume_reading()

    # --- asyncio ---

    def data_received(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            # An engine that speaks unasked cannot be paired with the next request.
            self.transport.abort()
            return
        self.active = True
        try:
            if self._head is None:
                self._read_head(sink, data)
            else:
                self._read_body(sink, data)
        except WireError as error:
            self._fail("garbage", error.message)
        except Exception:
            log.exception("handling an answer of %s failed", self._pool.address)
            self._fail("internal", "internal error")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        if self._sink is None:
            return
        if self._head is not None and self._left == UNTIL_CLOSE and exc is None:
            try:
                self._sink.on_data(b"", True)
            except Exception:
                log.exception("handling the end of an answer of %s failed", self._pool.address)
                self._fail("internal", "internal error")
            self._sink = None
        else:
            self._fail("reset", "the pod closed the connection" if exc is None else f"{type(exc).__name__} from the pod")

    # --- the answer ---

    def _read_head(self, sink: Sink, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            # Said at once, not after a time-out: what does not begin like an answer never becomes one.
            if not data.startswith(b"HTTP/1."[: len(data)]) or len(data) > HEAD_LIMIT:
                raise WireError("bad_status_line", "the pod's answer does not begin with an HTTP/1.1 head")
            self._buffer = data
            return None
        raw = data[:end]
        head = _heads.get(raw)
        if head is None:
            head = parse_head(raw)
            if len(_heads) >= _HEADS_KEPT:
                _heads.clear()
            if len(raw) < 1024:
                _heads[raw] = head
        rest = data[end + 4 :]
        if head.length == len(rest) and head.plain:  # the usual answer, whole in one packet
            self._head = head
            sink.on_head(head, rest, True)
            return self._finish(0)
        if head.status < 200:
            self._buffer = b""
            if head.status == 101:
                raise WireError("bad_status_line", "the pod switched protocols without being asked")
            return self._read_head(sink, rest) if rest else None
        self._head = head
        self._buffer = b""
        self._left = head.length
        if head.length == CHUNKED:
            self._walker = ChunkWalker()
        body, ended = self._take(rest)
        sink.on_head(head, body, ended)
        return self._finish(len(rest) - len(body)) if ended else None

    def _read_body(self, sink: Sink, data: bytes) -> None:
        body, ended = self._take(data)
        sink.on_data(body, ended)
        if ended:
            self._finish(len(data) - len(body))

    def _take(self, data: bytes) -> tuple[bytes, bool]:
        """What of `data` belongs to this answer, and whether it ends there."""
        left = self._left
        if left >= 0:
            if len(data) < left:
                self._left = left - len(data)
                return data, False
            return (data if len(data) == left else data[:left]), True
        if left == CHUNKED:
            if not data:
                return data, False
            end = cast(ChunkWalker, self._walker).feed(data)
            if end < 0:
                return data, False
            return (data if end == len(data) else data[:end]), True
        return data, False

    def _finish(self, surplus: int) -> None:
        """The sink has taken all of its answer: only now may another request have the connection."""
        head = cast(ResponseHead, self._head)
        self._sink = None
        if surplus:
            log.warning("%s sent %d bytes behind its answer; connection dropped", self._pool.address, surplus)
        if surplus or not head.keep_alive or self.transport.get_write_buffer_size():
            self.transport.abort()
            return
        if self._paused:
            self.resume()
        self.reused = True
        self._pool.give_back(self)

    def _fail(self, kind: FailureKind, detail: str) -> None:
        sink, self._sink = self._sink, None
        self.transport.abort()
        if sink is not None:
            sink.on_failure(kind, detail)


class PodPool:
    """Idle connections to one pod; the newest is used first, so that the others can age away."""

    __slots__ = ("_host", "_idle", "_port", "address", "avoid_until", "open")

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: list[UpstreamConnection] = []
        self.open: set[UpstreamConnection] = set()
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.avoid_until = 0.0
        """Monotonic time until which others are preferred, after a refused connection."""

    def take(self) -> UpstreamConnection | None:
        """An idle connection that is still open, as far as is known here."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def connect(self, timeout_s: float) -> UpstreamConnection:
        """Raises OSError or TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout_s):
            _, connection = await loop.create_connection(lambda: UpstreamConnection(self), self._host, self._port)
        self.open.add(connection)
        return connection

    def give_back(self, connection: UpstreamConnection) -> None:
        connection.idle_since = monotonic()
        self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        self.open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def drop_aged(self, now: float) -> None:
        while self._idle and now - self._idle[0].idle_since > IDLE_S:
            self._idle.pop(0).transport.close()

    def close(self) -> None:
        """Idle connections go now, the others when their answers end."""
        while self._idle:
            self._idle.pop().transport.close()
