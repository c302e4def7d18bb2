"""Watches: what is there or has changed since a version, then every change, until the time is over.

A watch never blocks writers. Changes wait in a queue of its own; a client that does not read closes its watch when that is full,
and goes on from the last version it saw.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable

import msgspec

from backend.localkube.api.ask import Form, Listing, Place
from backend.localkube.api.status import ApiError, Json
from backend.localkube.api.store import Event, Store, Stored, stored, versioned
from backend.localkube.api.tables import partial, table

LONGEST_S = 3600.0
QUEUE = 10_000
BOOKMARK_S = 30.0
INITIAL_END = "k8s.io/initial-events-end"


class Watch:
    """One client's watch; begins to listen when it is made, so nothing is lost before the first byte."""

    def __init__(self, store: Store, at: Place, asked: Listing, *, form: Form, now: Callable[[], float], bookmarks: bool) -> None:
        self._store, self._at, self._asked, self._form, self._now, self._bookmarks = store, at, asked, form, now, bookmarks
        self._columns_sent = False
        self._queue: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._overrun = False
        self._first = self._begin()
        self.stop = store.listen(at.kind.key, self._hear)

    def _begin(self) -> list[bytes]:
        """What the client is sent at once. Raises ApiError (410)."""
        asked, at = self._asked, self._at
        if asked.version and not asked.send_initial:
            events = self._store.since(at.kind.key, asked.version)
            return [line for event in events if (line := self._line(event))]
        items = self._store.all(at.kind.key, at.namespace)
        lines = [self._encode("ADDED", item) for item in items if asked.matches is None or asked.matches(item.value)]
        if asked.send_initial:
            lines.append(self._bookmark(initial=True))
        return lines

    def _hear(self, event: Event) -> None:
        if len(self._queue) >= QUEUE:
            self._overrun = True
        else:
            self._queue.append(event)
        self._wake.set()

    async def lines(self, timeout_s: float) -> AsyncIterator[bytes]:
        """Lines of JSON, several at once where they came together."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        if self._first:
            yield b"".join(self._first)
        while not self._overrun:
            parts = [line for event in self._taken() if (line := self._line(event))]
            if parts:
                yield b"".join(parts)
                continue
            left = end - loop.time()
            if left <= 0:
                break
            try:
                await asyncio.wait_for(self._wake.wait(), min(left, BOOKMARK_S))
            except TimeoutError:
                if self._bookmarks and not self._queue:
                    yield self._bookmark()

    def _taken(self) -> list[Event]:
        events = list(self._queue)
        self._queue.clear()
        self._wake.clear()
        return events

    def _line(self, event: Event) -> bytes:
        """The change as this watch sees it; empty when it does not."""
        new, old, namespace = event.new, event.old, self._at.namespace
        if namespace is not None and new.key[0] != namespace:
            return b""
        if self._asked.version and new.version <= self._asked.version:
            return b""
        matches = self._asked.matches
        if matches is None:
            return self._encode(event.change, new)
        was = old is not None and matches(old.value)
        if event.change == "DELETED":
            return self._encode("DELETED", new) if was else b""
        if matches(new.value):
            return self._encode("MODIFIED" if was else "ADDED", new)
        if was and old is not None:
            return self._encode("DELETED", stored(versioned(old.value, new.version), new.version))
        return b""

    def _encode(self, change: str, item: Stored) -> bytes:
        if self._form == "object":
            return b'{"type":"%s","object":%s%s}\n' % (change.encode(), self._at.kind.head, item.tail)
        if self._form == "Metadata":
            value: Json = partial(item.value)
        else:
            meta = {"resourceVersion": str(item.version)}
            value = table(self._at.kind, [item.value], meta, include="Metadata", now=self._now(), head=not self._columns_sent)
            self._columns_sent = True
        return b'{"type":"%s","object":%s}\n' % (change.encode(), msgspec.json.encode(value))

    def _bookmark(self, *, initial: bool = False) -> bytes:
        """Up to which version this watch has seen everything."""
        kind = self._at.kind
        meta: Json = {"resourceVersion": str(self._store.version), "creationTimestamp": None}
        if initial:
            meta["annotations"] = {INITIAL_END: "true"}
        value: Json = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": meta}
        if self._form == "Table":
            value = {**table(kind, [], meta, include="None", now=self._now(), head=False), "rows": [{"cells": [], "object": value}]}
        return json.dumps({"type": "BOOKMARK", "object": value}, separators=(",", ":")).encode() + b"\n"

    def last_line(self) -> bytes:
        """What is sent before the end: where the client can go on."""
        return self._bookmark() if self._bookmarks and not self._queue and not self._overrun else b""


def error_line(error: ApiError) -> bytes:
    return msgspec.json.encode({"type": "ERROR", "object": error.status()}) + b"\n"
