"""The one subscription of this process to control; every session reads its snapshots.

Owns the connection, what arrived over it and how old that is. Never touches a Bokeh document: sessions look at `version` on
their own timer, so nothing here can block or leak a page. Runs in the server's event loop; no locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from apps.core.snapshot import Connection, Rollouts, Snapshot, Trend, Trouble, trend_of
from backend.api.actions import Operation
from backend.api.cache import CacheMap, ProbeRequest, ProbeResult, SourceState
from backend.api.decisions import DecisionRecord
from backend.api.findings import Finding
from backend.api.fleet import FleetSnapshot
from workbench.services import AsyncServices

log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 3.0
"""A page that waits longer than this for control to come back looks broken."""
KEPT_DECISIONS = 1000
KEPT_TRENDS = 150
"""Five minutes of scrapes."""
MAP_PERIOD_S = 1.0
ROLLOUTS_PERIOD_S = 2.0
"""Services have no event of their own; operations are told as they change."""
MAP_CELLS = 32_768
"""Cells of a map at most: one byte each goes to every open cache page once a second."""


class FeedLost(Exception):
    """Control cannot be reached, its stream ended, or it refuses; the text says why and `fix` what to do, where control tells."""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.fix = fix


@dataclass(frozen=True)
class Change:
    """What one event of the stream brings; fields that it says nothing about are None."""

    fleet: FleetSnapshot | None = None
    decisions: list[DecisionRecord] | None = None
    findings: list[Finding] | None = None
    sources: list[SourceState] | None = None
    operation: Operation | None = None


class Feed(Protocol):
    """How the hub reaches control. Every method raises FeedLost when it cannot."""

    def changes(self, heard: Callable[[], None]) -> AsyncGenerator[Change, None]:
        """First the whole state, then every change, until the connection breaks; `heard` for every sign of life."""
        ...

    async def cache_map(self, bins: int) -> CacheMap: ...

    async def probe(self, request: ProbeRequest) -> ProbeResult: ...

    async def decision(self, request_id: str) -> DecisionRecord: ...

    async def rollouts(self) -> Rollouts: ...

    def acting(self, user: str) -> AbstractAsyncContextManager[AsyncServices]:
        """Plans and operations in the name of `user`; what control refuses inside becomes FeedLost."""
        ...

    async def close(self) -> None: ...


class Hub:
    """Follows one control. `run()` until cancelled; everybody else only reads."""

    def __init__(self, feed: Feed, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.feed = feed
        self.clock = clock
        self.views: weakref.WeakSet[object] = weakref.WeakSet()
        """Live views of all sessions; only counted, never called."""
        self._map_viewers: weakref.WeakSet[object] = weakref.WeakSet()
        self._map_wanted = asyncio.Event()
        self._connection = Connection()
        self._fleet: FleetSnapshot | None = None
        self._findings: tuple[Finding, ...] | None = None
        self._sources: tuple[SourceState, ...] | None = None
        self._decisions: OrderedDict[str, DecisionRecord] | None = None
        self._ordered: tuple[DecisionRecord, ...] | None = None
        """The decisions newest first; None when they have changed since."""
        self._trends: deque[Trend] = deque(maxlen=KEPT_TRENDS)
        self._map: CacheMap | None = None
        self._map_error = ""
        self._rollouts_viewers: weakref.WeakSet[object] = weakref.WeakSet()
        self._rollouts_wanted = asyncio.Event()
        self._rollouts: Rollouts | None = None
        self._rollouts_trouble: Trouble | None = None
        self._version = 0
        self._snapshot = Snapshot()

    async def run(self) -> None:
        """Follow control, come back after every loss, poll the map and the services while somebody looks at them."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_for_ever(), name="hub:follow")
            tasks.create_task(self._poll_map(), name="hub:map")
            tasks.create_task(self._poll_rollouts(), name="hub:rollouts")

    def snapshot(self) -> Snapshot:
        """The state now. The same object until something changes."""
        if self._snapshot.version != self._version:
            self._snapshot = Snapshot(
                version=self._version,
                connection=self._connection,
                fleet=self._fleet,
                findings=self._findings,
                sources=self._sources,
                decisions=self._newest_first(),
                trends=tuple(self._trends),
                cache_map=self._map,
                cache_map_error=self._map_error,
                rollouts=self._rollouts,
                rollouts_trouble=self._rollouts_trouble,
            )
        return self._snapshot

    def _newest_first(self) -> tuple[DecisionRecord, ...] | None:
        """Decisions by their end, also those of two gateway workers whose records came in two batches."""
        if self._ordered is None and self._decisions is not None:
            self._ordered = tuple(sorted(self._decisions.values(), key=_ended_at, reverse=True))
        return self._ordered

    @property
    def connection(self) -> Connection:
        return self._connection

    def watch_map(self, viewer: object) -> None:
        """Poll the cache map for as long as `viewer` lives or until `unwatch_map`."""
        self._map_viewers.add(viewer)
        self._map_wanted.set()

    def unwatch_map(self, viewer: object) -> None:
        self._map_viewers.discard(viewer)

    def watch_rollouts(self, viewer: object) -> None:
        """Poll services, operations and audit for as long as `viewer` lives or until `unwatch_rollouts`."""
        self._rollouts_viewers.add(viewer)
        self._rollouts_wanted.set()

    def unwatch_rollouts(self, viewer: object) -> None:
        self._rollouts_viewers.discard(viewer)

    def see_operation(self, operation: Operation) -> None:
        """Take over what control told of one operation; what it changed in services and audit is asked for at once."""
        if self._rollouts is not None:
            self._rollouts = self._rollouts.with_operation(operation)
            self._version += 1
        self._rollouts_wanted.set()

    def apply(self, change: Change) -> None:
        """Take over what one event brought."""
        self._hear()
        self._version += 1
        if change.fleet is not None:
            self._fleet = change.fleet
            self._trends.append(trend_of(change.fleet))
        if change.decisions is not None:
            self._add_decisions(change.decisions)
        if change.findings is not None:
            self._findings = tuple(change.findings)
        if change.sources is not None:
            self._sources = tuple(change.sources)
        if change.operation is not None:
            self.see_operation(change.operation)

    def _hear(self) -> None:
        was = self._connection.state
        self._connection = Connection("live", self.clock())
        if was != "live":
            self._version += 1
            log.info("control answers")

    def _lose(self, reason: str) -> None:
        if self._connection.state != "lost" or self._connection.reason != reason:
            log.warning("control is away: %s", reason)
            self._connection = Connection("lost", self._connection.heard_at, reason)
            self._version += 1

    def _add_decisions(self, records: list[DecisionRecord]) -> None:
        known = self._decisions if self._decisions is not None else OrderedDict()
        for record in sorted(records, key=_ended_at):
            known[record.id] = record
        while len(known) > KEPT_DECISIONS:
            known.popitem(last=False)
        self._decisions = known
        self._ordered = None

    async def _follow_for_ever(self) -> None:
        delay = FIRST_DELAY_S
        while True:
            try:
                async with contextlib.aclosing(self.feed.changes(self._hear)) as changes:
                    async for change in changes:
                        self.apply(change)
                        delay = FIRST_DELAY_S
                self._lose("control ended the stream")
            except FeedLost as error:
                self._lose(str(error))
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY_S)

    async def _poll_map(self) -> None:
        while True:
            if not self._map_viewers:
                self._map_wanted.clear()
                await self._map_wanted.wait()
            try:
                found = await self.feed.cache_map(self._bins())
                if self._map is None or self._map_error or found.version != self._map.version or found.pods != self._map.pods:
                    self._version += 1
                    self._map, self._map_error = found, ""
            except FeedLost as error:
                if self._map_error != str(error):
                    self._map_error = str(error)
                    self._version += 1
            await asyncio.sleep(MAP_PERIOD_S)

    async def _poll_rollouts(self) -> None:
        while True:
            self._rollouts_wanted.clear()
            if self._rollouts_viewers:
                await self._fetch_rollouts()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROLLOUTS_PERIOD_S if self._rollouts_viewers else None):
                    await self._rollouts_wanted.wait()

    async def _fetch_rollouts(self) -> None:
        found, trouble = self._rollouts, None
        try:
            found = await self.feed.rollouts()
        except FeedLost as error:
            trouble = Trouble(str(error), error.fix)
        if (found, trouble) != (self._rollouts, self._rollouts_trouble):
            self._rollouts, self._rollouts_trouble = found, trouble
            self._version += 1

    def _bins(self) -> int:
        """Buckets a pod: as many as fit, in powers of two between 32 and 256."""
        pods = max(1, len(self._fleet.pods) if self._fleet else 1)
        bins = 256
        while bins > 32 and bins * pods > MAP_CELLS:
            bins //= 2
        return bins


def _ended_at(record: DecisionRecord) -> float:
    return record.at + record.total_ms / 1000
