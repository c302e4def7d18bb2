"""Sends a trace's requests to a gateway or an engine at the trace's own times, and says what became of each.

Open loop: a request leaves when it is due, not when an earlier one has ended, as users do. Two bounds keep a machine alive, and each
is visible in the result: `rate` (requests a second) and `max_in_flight`; a request held back by them counts its wait as `late_s`.
Memory does not grow with the trace: results are handed on one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from backend.core.errors import ConfigError
from backend.simulate.httpclient import Exchange, HttpClient, HttpFailure
from backend.simulate.traces import VOCABULARY, PromptEncoder, TraceRequest

PATH = "/v1/completions"
_LARGEST_ERROR_BYTES = 64 * 1024


@dataclass(frozen=True)
class LoadOptions:
    """How to send. Zero switches a bound off, except `max_in_flight`."""

    url: str
    """Base URL, without `/v1`."""
    model: str
    speed: float = 1.0
    """10 sends ten trace seconds in one."""
    rate: float = 0.0
    """Requests a second at most; 0: as the trace says."""
    max_in_flight: int = 1024
    """Requests under way at most."""
    policy: str = ""
    """`routing-strategy` header; empty: the gateway's default."""
    user: str = ""
    output_tokens: int = 0
    """Cap on tokens asked for; 0: the trace's lengths."""
    vocabulary: int = VOCABULARY
    token: str = ""
    timeout_s: float = 600.0
    """For one whole answer."""

    def __post_init__(self) -> None:
        for name, least in (("speed", 0.0), ("timeout_s", 0.0)):
            if getattr(self, name) <= least:
                raise ConfigError(f"must be above {least:g}", field=name)
        if self.max_in_flight < 1:
            raise ConfigError("must be at least 1", field="max_in_flight")
        if self.rate < 0 or self.output_tokens < 0:
            raise ConfigError("must not be negative", field="rate" if self.rate < 0 else "output_tokens")


class RequestResult(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What became of one request. Times are seconds from when it was really sent."""

    index: int
    """Position in the trace as replayed, from 0."""
    id: str = ""
    """`request-id` of the answer: finds its decision record."""
    status: int = 0
    """0 when no status line came."""
    late_s: float = 0.0
    """Sent this long after it was due."""
    ttft_s: float | None = None
    itl_s: float | None = None
    """Mean gap between tokens; None below two tokens."""
    e2e_s: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    pod: str = ""
    error: str = ""
    """Empty, or a class: connect, reset, timeout, bad_response, truncated, aborted, stream_error, http_<status>."""
    message: str = ""


async def run(requests: Iterable[TraceRequest], options: LoadOptions, on_result: Callable[[RequestResult], None]) -> int:
    """Send all of `requests`; returns how many. Cancelling it ends every exchange under way, and those have no result."""
    try:
        async with _client(options) as client, asyncio.TaskGroup() as tasks:
            return await _send_all(client, tasks, requests, options, on_result)
    except BaseExceptionGroup as group:
        # A broken line of the trace is one error for the caller, not a group of one.
        raise group.exceptions[0] from None


async def _send_all(
    client: HttpClient,
    tasks: asyncio.TaskGroup,
    requests: Iterable[TraceRequest],
    options: LoadOptions,
    on_result: Callable[[RequestResult], None],
) -> int:
    encoder = PromptEncoder(options.vocabulary)
    slots = asyncio.Semaphore(options.max_in_flight)

    async def one(index: int, body: bytes, due: float) -> None:
        try:
            on_result(await _send(client, index, body, due, options))
        finally:
            slots.release()

    sent = 0
    async for request, due in _arrivals(requests, options):
        await slots.acquire()
        tasks.create_task(one(sent, _body(encoder, request, options), due))
        sent += 1
    return sent


@asynccontextmanager
async def _client(options: LoadOptions) -> AsyncIterator[HttpClient]:
    client = HttpClient(options.url, token=options.token)
    try:
        yield client
    finally:
        client.close()


async def _arrivals(requests: Iterable[TraceRequest], options: LoadOptions) -> AsyncIterator[tuple[TraceRequest, float]]:
    """Each request when it may leave, with the loop time at which it was due by the trace."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    first: float | None = None
    earliest = start
    for request in requests:
        first = request.timestamp if first is None else first
        due = start + (request.timestamp - first) / 1000 / options.speed
        leave = max(due, earliest)
        if (wait := leave - loop.time()) > 0:
            await asyncio.sleep(wait)
        if options.rate:
            earliest = max(leave, loop.time() - 1 / options.rate) + 1 / options.rate
        yield request, due


def _body(encoder: PromptEncoder, request: TraceRequest, options: LoadOptions) -> bytes:
    asked = min(request.output_length, options.output_tokens or request.output_length)
    model = msgspec.json.encode(options.model)
    return b'{"model":%b,"prompt":%b,"max_tokens":%d,"ignore_eos":true,"stream":true,"stream_options":{"include_usage":true}}' % (
        model,
        encoder.encode(request),
        max(1, asked),
    )


async def _send(client: HttpClient, index: int, body: bytes, due: float, options: LoadOptions) -> RequestResult:
    loop = asyncio.get_running_loop()
    started = loop.time()
    reader = StreamReader(loop.time)
    result = RequestResult(index=index, late_s=max(0.0, started - due))
    lines = "".join(f"{name}: {value}\r\n" for name, value in (("routing-strategy", options.policy), ("user", options.user)) if value)
    try:
        exchange = await client.request("POST", PATH, body, reader.feed, headers=lines, timeout_s=options.timeout_s)
    except HttpFailure as failure:
        cut = failure.failure == "reset" and failure.exchange is not None and failure.exchange.status == 200
        result.error, result.message = "truncated" if cut else failure.failure, str(failure)
        if failure.exchange is not None:
            _answered(result, failure.exchange)
        return result
    _answered(result, exchange)
    result.e2e_s = loop.time() - started
    if exchange.status != 200:
        result.error, result.message = f"http_{exchange.status}", reader.text()
        return result
    reader.complete(result, started)
    return result


def _answered(result: RequestResult, exchange: Exchange) -> None:
    result.status = exchange.status
    result.id = exchange.headers.get("request-id", "")
    result.pod = exchange.headers.get("target-pod", "")


class StreamReader:
    """Reads a completion's event stream: counts tokens by their events, decodes only the few events that say more."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.first_at: float | None = None
        self._clock = clock
        self._last_at = 0.0
        self._events = 0
        self._rest = b""
        self._finished = False
        self._reason = ""
        self._usage: _Usage | None = None
        self._error = ""

    def feed(self, piece: bytes) -> None:
        data = self._rest + piece if self._rest else piece
        *events, rest = data.split(b"\n\n")
        # An answer without an event's end is an error body: keep a bounded part of it for the message.
        self._rest = rest if len(rest) <= _LARGEST_ERROR_BYTES else rest[:_LARGEST_ERROR_BYTES]
        for event in events:
            self._event(event)

    def _event(self, event: bytes) -> None:
        if not event.startswith(b"data:"):
            return
        payload = event[5:].lstrip()
        if payload == b"[DONE]":
            self._finished = True
            return
        if b'"choices":[]' not in payload and b'"error"' not in payload:
            self._last_at = self._clock()
            self._events += 1
            if self.first_at is None:
                self.first_at = self._last_at
            if b'"finish_reason":null' in payload and b'"usage":{' not in payload:
                return
        self._decode(payload)

    def _decode(self, payload: bytes) -> None:
        try:
            chunk = msgspec.json.decode(payload, type=_Chunk)
        except msgspec.MsgspecError as error:
            self._error = f"unreadable event: {error}"
            return
        if chunk.error is not None:
            self._error = str(chunk.error.get("message", chunk.error) if isinstance(chunk.error, dict) else chunk.error)
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices:
            self._reason = choice.finish_reason or self._reason

    def complete(self, result: RequestResult, started: float) -> None:
        """Write what the stream said into `result`."""
        if self.first_at is not None:
            result.ttft_s = self.first_at - started
        if self._usage is not None:
            result.prompt_tokens = self._usage.prompt_tokens
            result.completion_tokens = self._usage.completion_tokens
            details = self._usage.prompt_tokens_details
            result.cached_tokens = None if details is None else details.cached_tokens
        tokens = result.completion_tokens or self._events
        if self.first_at is not None and tokens > 1 and self._events > 1:
            result.itl_s = (self._last_at - self.first_at) / (tokens - 1)
        if self._error:
            result.error, result.message = "stream_error", self._error
        elif self._reason == "abort":
            result.error, result.message = "aborted", "the engine stopped while it answered"
        elif not self._finished:
            result.error, result.message = "truncated", "the stream ended without [DONE]"

    def text(self) -> str:
        """The beginning of an answer that was no stream, for a message."""
        return self._rest[:300].decode(errors="replace").strip()


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None
