"""Server-sent events: one response a viewer, `id:` is the version, a comment every ten seconds keeps proxies awake.

A viewer that comes back sends `since=` or `Last-Event-ID`. Without either, the newest state of every topic comes first, decisions
excepted: those are a list that can be paged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiohttp import web

from backend.api import routes
from backend.control.events import TOPICS, Event, EventHub
from backend.core.errors import InvalidRequest

KEEP_ALIVE_S = 10.0
SLOWEST_WRITE_S = 20.0
"""Seconds until a viewer that does not read is cut off."""


async def stream(request: web.Request, hub: EventHub) -> web.StreamResponse:
    """Serve one viewer until it leaves, is too slow, or the server stops."""
    topics = parse_topics(request.query.get("topics", ""))
    since = parse_since(request.query.get("since", "") or request.headers.get("Last-Event-ID", ""))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    await response.prepare(request)
    listener = hub.listen(topics)
    try:
        await _write(response, b"".join(_first(hub, topics, since)))
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    event = await listener.queue.get()
            except TimeoutError:
                await _write(response, b": keep-alive\n\n")
                continue
            if event is None:
                return response
            await _write(response, encode(event))
    except (ConnectionError, TimeoutError):
        if request.transport is not None:
            request.transport.abort()
        return response
    finally:
        hub.leave(listener)


def encode(event: Event) -> bytes:
    note = f": {event.note}\n".encode() if event.note else b""
    return b"%sid: %d\nevent: %s\ndata: %s\n\n" % (note, event.version, event.topic.encode(), event.data)


def parse_topics(text: str) -> frozenset[str]:
    """Raises InvalidRequest for a topic that does not exist."""
    topics = frozenset(name for name in text.split(",") if name) or frozenset(TOPICS)
    if unknown := topics - TOPICS.keys():
        raise InvalidRequest(f"Unknown topic {min(unknown)!r}.", param="topics", fix=f"Topics are {', '.join(TOPICS)}.")
    return topics


def parse_since(text: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal():
        raise InvalidRequest(f"`since` is {text!r}, not a version.", param="since", fix="Pass the `id` of the last event.")
    return int(text)


def _first(hub: EventHub, topics: Iterable[str], since: int | None) -> Iterable[bytes]:
    # The first bytes also tell a proxy and the client's library that the stream is open.
    yield b": connected\n\n"
    if since is None:
        newest = [hub.latest(topic) for topic in topics if topic != routes.EVENT_DECISIONS]
        yield from map(encode, sorted(event for event in newest if event is not None))
        return
    missed = hub.backfill(topics, since)
    if missed.reset:
        yield encode(Event(hub.version, routes.EVENT_RESET, b'{"version":%d}' % hub.version))
    yield from map(encode, missed.events)


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(SLOWEST_WRITE_S):
        await response.write(data)
