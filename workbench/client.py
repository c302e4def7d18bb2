"""The asynchronous workbench: one coroutine a question to the control API. `workbench.sync` is the same for notebooks and scripts.

Never decides and never acts by itself; what it answers are the results of `workbench.results`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.api import routes
from backend.api.cache import CacheMap, ProbeRequest, ProbeResult, SourcePage
from backend.api.decisions import DecisionPage, DecisionRecord
from backend.api.endpoints import Endpoints
from backend.api.findings import FindingPage
from backend.api.fleet import FleetSnapshot, PodView
from workbench import _target, results
from workbench._transport import Params, Transport
from workbench.errors import NotFound, UsageError
from workbench.explanation import Explanation
from workbench.reports.client import AsyncReports
from workbench.services import AsyncServices

if TYPE_CHECKING:
    from workbench.stream import Event
    from workbench.traffic import Replay

LAST = "last"
Message = dict[str, object]
Prompt = str | Sequence[int] | Sequence[Message]


class AsyncFleet:
    """Which pods exist and how they are. `last` is the newest snapshot seen, for reprs."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.last: results.FleetTable | None = None

    async def snapshot(self) -> results.FleetTable:
        """The whole fleet now."""
        self.last = results.FleetTable(await self._transport.get(FleetSnapshot, routes.FLEET))
        return self.last

    async def pod(self, name: str) -> results.PodCard:
        """One pod. Raises NotFound."""
        return results.PodCard(await self._transport.get(PodView, routes.POD.format(name=_segment(name))))


class AsyncCache:
    """What every pod has cached."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.last: results.CacheMapResult | None = None

    async def map(self, bins: int = 128) -> results.CacheMapResult:
        """Blocks of every pod in `bins` buckets of the prefix space."""
        self.last = results.CacheMapResult(await self._transport.get(CacheMap, routes.CACHE_MAP, {"bins": bins}))
        return self.last

    async def probe(self, prompt: Prompt, *, model: str = "") -> results.ProbeTable:
        """Which pod holds how much of `prompt`: text, token ids, or chat messages. `model` may be empty when there is one."""
        return results.ProbeTable(await self._transport.post(ProbeResult, routes.CACHE_PROBE, probe_request(prompt, model)))

    async def sources(self) -> results.SourcesTable:
        """The event streams that the index follows, with lag, gaps and restarts."""
        answer = await self._transport.get(SourcePage, routes.CACHE_SOURCES)
        return results.SourcesTable(answer.items, at=time.time())


class AsyncRouter:
    """Where requests went, and why."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.last: results.DecisionsTable | None = None

    async def decisions(
        self, limit: int = 100, *, model: str = "", pod: str = "", policy: str = "", outcome: str = "", before: str = ""
    ) -> results.DecisionsTable:
        """The newest `limit` decisions that fit the filters; `before` continues where `.next` of another answer ended."""
        if limit < 1:
            raise UsageError(f"limit is {limit}, at least 1 is needed.")
        filters: Params = {"limit": limit, "model": model, "pod": pod, "policy": policy, "outcome": outcome, "before": before}
        self.last = results.DecisionsTable(await self._transport.get(DecisionPage, routes.DECISIONS, filters))
        return self.last

    async def explain(self, request_id: str = LAST) -> Explanation:
        """Candidates, score terms and outcome of one request, by its `request-id`; "last" is the newest. Raises NotFound."""
        if request_id == LAST:
            newest = await self.decisions(limit=1)
            if not len(newest):
                raise NotFound("No request yet.", fix="`workbench replay conversation-sample` sends some.")
            return Explanation(newest[0])
        return Explanation(await self._transport.get(DecisionRecord, routes.DECISION.format(id=_segment(request_id))))


class AsyncWorkbench:
    """The asynchronous door; `connect(asynchronous=True)` makes one."""

    def __init__(self, target: _target.Target) -> None:
        self.target = target
        self._closed = False
        self.transport = Transport(target.control, target.token)
        self.fleet = AsyncFleet(self.transport)
        self.cache = AsyncCache(self.transport)
        self.router = AsyncRouter(self.transport)
        self.reports = AsyncReports(self.transport, self)
        self.services = AsyncServices(self.transport)

    @property
    def endpoints(self) -> Endpoints | None:
        """URLs of the stack's parts; None when connected by URL."""
        return self.target.endpoints

    async def findings(self) -> results.FindingsTable:
        """What is wrong or degraded, why, and what to do."""
        answer = await self.transport.get(FindingPage, routes.FINDINGS)
        return results.FindingsTable(answer.items, at=time.time())

    def stream(self, topics: Sequence[str] = (), *, since: int | None = None) -> AsyncIterator[Event]:
        """Changes as they come, with reconnect; see `workbench.stream`."""
        from workbench import stream

        return stream.follow(self.transport, topics, since=since)

    async def replay(self, trace: str | Path, **options: Any) -> Replay:
        """Send a trace's requests through the gateway; options as `workbench.traffic.replay`."""
        from workbench import traffic

        return await traffic.replay(self, trace, **options)

    async def close(self) -> None:
        """Leave the stack; one that `connect` started is ended. A second call does nothing."""
        if not self._closed:
            self._closed = True
            await self.transport.close()
            await asyncio.to_thread(self.target.release)

    async def __aenter__(self) -> AsyncWorkbench:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Connecting:
    """What `connect(asynchronous=True)` returns: await it, or enter it with `async with`."""

    def __init__(self, target: str | Path | Endpoints | None, token: str | None) -> None:
        self._given = (target, token)
        self._workbench: AsyncWorkbench | None = None

    async def _open(self) -> AsyncWorkbench:
        target = await asyncio.to_thread(_target.find_or_start, *self._given)
        workbench = AsyncWorkbench(target)
        try:
            await workbench.fleet.snapshot()
        except BaseException:
            await workbench.close()
            raise
        self._workbench = workbench
        return workbench

    def __await__(self) -> Generator[Any, None, AsyncWorkbench]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncWorkbench:
        return await self._open()

    async def __aexit__(self, *_: object) -> None:
        if self._workbench is not None:
            await self._workbench.close()


def probe_request(prompt: Prompt, model: str = "") -> ProbeRequest:
    """A prompt as the API wants it: text, token ids or messages, told apart by their type.

    >>> probe_request([1, 2, 3]).tokens
    [1, 2, 3]
    """
    if isinstance(prompt, str):
        return ProbeRequest(model=model, prompt=prompt)
    items: list[Any] = list(prompt)
    if items and all(isinstance(item, dict) for item in items):
        return ProbeRequest(model=model, messages=items)
    tokens = [int(item) for item in items if hasattr(item, "__index__")]
    if len(tokens) != len(items):
        raise UsageError("A prompt is text, a list of token ids, or a list of chat messages.")
    return ProbeRequest(model=model, tokens=tokens)


def _segment(name: str) -> str:
    """A name as one segment of a path."""
    from urllib.parse import quote

    if not name:
        raise NotFound("An empty name names nothing.")
    return quote(name, safe="")
