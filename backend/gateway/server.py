"""The client's side of the data plane: HTTP/1.1 connections with pipelining, limits and back-pressure.

llhttp parses (strictly: nothing lenient is switched on). Requests of one connection are answered in their order, one at a time; when
something on a connection cannot be trusted, what came before it is still answered, then an error, then it is closed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, cast

import httptools

from backend.gateway import answers
from backend.gateway.answers import Problem
from backend.gateway.exchange import Exchange
from backend.gateway.pair_exchange import PairExchange
from backend.gateway.request import Header, Request, RequestHead, read_head

if TYPE_CHECKING:
    from backend.gateway.service import Gateway
    from backend.gateway.targets import Pairing

QUEUED_REQUESTS = 8
"""Pipelined requests read ahead of their turn; beyond it the client has to wait."""
LINGER_S = 1.0
"""Seconds in which a refused client's remaining bytes are read and dropped: closing at once could destroy the answer on its way."""


KNOWN_HEADS, KNOWN_HEAD_BYTES = 1024, 2048


class ClientConnection(asyncio.Protocol):
    """One connection. The parser calls the `on_*` methods."""

    __slots__ = (
        "_asked_for_body", "_between", "_body", "_body_bytes", "_closing", "_current", "_gateway", "_head", "_head_bytes", "_headers",
        "_in_head", "_known", "_limits", "_lingering", "_message_began", "_parser", "_queue", "_reading_paused", "_stepping", "_target",
        "_transport", "idle_since", "stalled_since", "write", "write_paused",
    )  # fmt: skip

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._limits = gateway.settings.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._queue: deque[Request | Problem] = deque()
        self._current: Exchange | None = None
        self._known = gateway.known_heads
        self._between = True
        """The parser stands between two messages."""
        self._stepping = False
        self._closing = False
        self._lingering = False
        self._reading_paused = False
        self._message_began = 0.0
        self.idle_since = perf_counter()
        self.stalled_since = 0.0
        self.write_paused = False
        self.write: Callable[[bytes], None]
        self._clear()

    def _clear(self) -> None:
        self._target = b""
        self._headers: list[Header] = []
        self._head: RequestHead | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._head_bytes = 0
        self._in_head = True
        self._asked_for_body = False

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.write = self._transport.write
        self._gateway.clients.add(self)

    def data_received(self, data: bytes) -> None:
        """A request that came whole in one packet, with a head that the parser has seen before, needs no parser: see `_remember`."""
        if self._closing:
            return
        if self._between and self._current is None and not self._queue:
            end = data.find(b"\r\n\r\n") + 4
            head = self._known.get(data[:end])
            if head is not None and end + head.content_length == len(data):
                self._gateway.refresh_fleet()
                self._current = exchange = Exchange(self._gateway, self, head, data[end:], perf_counter())
                exchange.start()
                return
            if self._parse(data):
                self._remember(data, end)
        else:
            self._parse(data)
        self._step()

    def _parse(self, data: bytes) -> bool:
        """Whether nothing was wrong."""
        if self._in_head and self._target:
            # A head that goes on over several packets: the parser keeps its unfinished line, so the whole is counted here.
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Upgrades are not taken: the request is answered as if it had not asked, and nothing after it is read.
            self._closing = True
            if self._queue and isinstance(last := self._queue[-1], Request):
                last.head.keep_alive = False
        except httptools.HttpParserError as error:
            self._refuse(answers.bad_request(str(error)))
        if self._in_head and self._head_bytes > self._limits.header_bytes:
            self._refuse(answers.head_too_large(self._limits.header_bytes))
        if not self._message_began and (self._target or not self._in_head):
            self._message_began = perf_counter()
        return not self._closing

    def _remember(self, data: bytes, end: int) -> None:
        """Keep what the parser made of the head `data[:end]`, when `data` was one whole request that began and ended with it.

        The same bytes at the same place mean the same again, so the parser need not be asked twice; its strictness is untouched, since
        only what it let pass is kept. Heads that say what the connection does next (close, 100-continue, chunks) are left to it.
        """
        if not self._between or len(self._queue) != 1 or end > KNOWN_HEAD_BYTES or not data[:1].isalpha():
            return
        request = self._queue[0]
        if isinstance(request, Request) and len(request.body) == len(data) - end:
            head = request.head
            if head.keep_alive and not head.http10 and not head.expects_continue and head.content_length == len(request.body):
                if len(self._known) >= KNOWN_HEADS:
                    self._known.clear()
                self._known[data[:end]] = head

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._gateway.clients.discard(self)
        self._closing = True
        self._queue.clear()
        current, self._current = self._current, None
        if current is not None:
            current.client_gone()

    def pause_writing(self) -> None:
        self.write_paused = True
        self.stalled_since = perf_counter()
        if self._current is not None:
            self._current.pause()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._current is not None:
            self._current.resume()

    # --- the parser ---

    def on_message_begin(self) -> None:
        self._between = False

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer field: nobody behind us needs it
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._closing:
            return
        parser, headers = self._parser, self._headers
        try:
            size = len(self._target) + sum(len(name) + len(value) + 4 for name, value in headers)
            if size > self._limits.header_bytes:
                raise answers.head_too_large(self._limits.header_bytes)
            head = read_head(parser.get_method(), self._target, parser.get_http_version(), headers, parser.should_keep_alive())
            if head.content_length > self._limits.body_bytes:
                raise answers.body_too_large(self._limits.body_bytes)
        except Problem as problem:
            self._refuse(problem)
            return
        self._head = head
        if self._current is None and not self._queue:
            self._ask_for_body()

    def _ask_for_body(self) -> None:
        head = self._head
        if head is not None and head.expects_continue and not self._asked_for_body:
            self._asked_for_body = True
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._closing:
            return
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.body_bytes:
            self._refuse(answers.body_too_large(self._limits.body_bytes))

    def on_message_complete(self) -> None:
        head = self._head
        if not self._closing and head is not None:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._queue.append(Request(head, body, perf_counter()))
        self._between = True
        self._message_began = 0.0
        self._clear()

    # --- one after the other ---

    def _step(self) -> None:
        if self._stepping:
            return
        self._stepping = True
        while self._current is None and self._queue:
            following = self._queue.popleft()
            if isinstance(following, Problem):
                self._answer_problem(following)
                break
            self._gateway.refresh_fleet()
            self._current = exchange = Exchange(self._gateway, self, following.head, following.body, following.began)
            exchange.start()
        self._stepping = False
        self._balance_reading()

    def _balance_reading(self) -> None:
        crowded = len(self._queue) >= QUEUED_REQUESTS
        if crowded != self._reading_paused and not self._transport.is_closing():
            self._reading_paused = crowded
            if crowded:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def hand_over(self, exchange: Exchange, pairing: Pairing) -> None:
        self._current = pair = PairExchange(exchange, pairing)
        pair.start()

    def finished(self, keep_alive: bool) -> None:
        """The current request is answered (or never will be)."""
        self._current = None
        if not keep_alive:
            self._queue.clear()
            self._hang_up()
            return
        self.idle_since = perf_counter()
        if self._queue:
            self._step()
        elif self._closing:
            self._hang_up()
        elif self._head is not None:
            self._ask_for_body()

    def _refuse(self, problem: Problem) -> None:
        """Answer `problem` when its turn comes; nothing behind it is read."""
        if not self._closing:
            self._closing = True
            self._queue.append(problem)
            self._gateway.count_malformed()

    def _answer_problem(self, problem: Problem) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(answers.response(problem.status, problem.body(), extra=problem.header_lines, close=True))
        self._lingering = True
        self.idle_since = perf_counter()
        self._transport.write_eof()

    def _hang_up(self) -> None:
        self._closing = True
        if not self._transport.is_closing():
            self._transport.close()

    # --- time ---

    def check_time(self, now: float) -> None:
        limits = self._limits
        if self._lingering:
            if now - self.idle_since > LINGER_S:
                self._transport.abort()
        elif self.write_paused and now - self.stalled_since > limits.keepalive_s:
            self._transport.abort()
        elif self._current is not None:
            self._current.check_time(now)
        elif self._message_began:
            if now - self._message_began > limits.header_timeout_s:
                self._refuse(answers.too_slow(limits.header_timeout_s))
                self._step()
        elif now - self.idle_since > limits.keepalive_s:
            self._transport.close()

    def close_if_idle(self) -> None:
        """For a drain: connections between two requests go now, others with their answer."""
        if self._current is None and not self._queue and not self._message_began:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()
