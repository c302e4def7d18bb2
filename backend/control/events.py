"""The event stream's memory and its listeners: versions, bounded rings a topic, queues that drop whoever is too slow.

Owns no socket: `backend.control.streaming` writes what comes out of a listener's queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from backend.api import routes

TOPICS: dict[str, int] = {
    routes.EVENT_FLEET: 30,
    routes.EVENT_DECISIONS: 120,
    routes.EVENT_FINDINGS: 30,
    routes.EVENT_SOURCES: 30,
    routes.EVENT_OPERATION: 200,
}
"""Events kept a topic: what a viewer can catch up on after a lost connection, half a minute at full rate."""
QUEUED = 64
"""Events that may wait for a listener before it is dropped; decisions come at most twice a second."""


class Event(NamedTuple):
    version: int
    topic: str
    data: bytes
    note: str = ""
    """A remark sent as a comment, such as how many rows were left out."""


@dataclass(eq=False)
class Listener:
    """One viewer. `queue` ends with None when it was dropped or the server stops."""

    topics: frozenset[str]
    queue: asyncio.Queue[Event | None] = field(default_factory=lambda: asyncio.Queue(QUEUED))


class Backfill(NamedTuple):
    """What a returning viewer missed; `reset` when we no longer have all of it."""

    events: list[Event]
    reset: bool = False


class EventHub:
    """Versions start at the process' start in milliseconds: a viewer that comes back with one of an earlier life is told to reset."""

    def __init__(self, started_at: float) -> None:
        self.version = int(started_at * 1000)
        self.dropped = 0
        """Listeners that were too slow."""
        self._listeners: set[Listener] = set()
        self._rings: dict[str, deque[Event]] = {topic: deque() for topic in TOPICS}
        self._floors: dict[str, int] = dict.fromkeys(TOPICS, self.version)
        """A topic's ring is complete for everything after this version."""

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    def publish(self, topic: str, value: object, *, note: str = "") -> Event:
        """Send `value` as the next version."""
        self.version += 1
        return self.publish_at(self.version, topic, value, note=note)

    def publish_at(self, version: int, topic: str, value: object, *, note: str = "") -> Event:
        """As `publish`, for a value that carries its version; it must be the newest."""
        self.version = version
        event = Event(version, topic, msgspec.json.encode(value), note)
        ring = self._rings[topic]
        ring.append(event)
        if len(ring) > TOPICS[topic]:
            self._floors[topic] = ring.popleft().version
        for listener in [one for one in self._listeners if topic in one.topics]:
            self._send(listener, event)
        return event

    def latest(self, topic: str) -> Event | None:
        ring = self._rings[topic]
        return ring[-1] if ring else None

    def backfill(self, topics: Iterable[str], since: int) -> Backfill:
        """Events after `since`, in order."""
        wanted = list(topics)
        if since > self.version or any(since < self._floors[topic] for topic in wanted):
            return Backfill([], reset=True)
        return Backfill(sorted(event for topic in wanted for event in self._after(topic, since)))

    def listen(self, topics: Iterable[str]) -> Listener:
        listener = Listener(frozenset(topics))
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        self._listeners.discard(listener)

    def close(self) -> None:
        """End every stream; for the end of the process."""
        for listener in list(self._listeners):
            self._end(listener)

    def _after(self, topic: str, since: int) -> Iterator[Event]:
        return (event for event in self._rings[topic] if event.version > since)

    def _send(self, listener: Listener, event: Event) -> None:
        try:
            listener.queue.put_nowait(event)
        except asyncio.QueueFull:
            self.dropped += 1
            self._end(listener)

    def _end(self, listener: Listener) -> None:
        self._listeners.discard(listener)
        while listener.queue.full():
            listener.queue.get_nowait()
        listener.queue.put_nowait(None)
