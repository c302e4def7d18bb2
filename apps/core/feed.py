"""How the hub reaches control: workbench's own transport, the whole state first and then the stream of changes.

No state but the connection pool. Whatever goes wrong becomes `FeedLost` with a sentence for people.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec

from apps.core.hub import Change, FeedLost
from apps.core.snapshot import Rollouts
from backend.api import routes
from backend.api.actions import AuditPage, OperationPage, ServicePage
from backend.api.cache import CacheMap, ProbeRequest, ProbeResult, SourceState
from backend.api.decisions import DecisionPage, DecisionRecord
from backend.api.findings import Finding
from backend.api.fleet import FleetSnapshot
from workbench import stream
from workbench.errors import Unauthorized, WorkbenchError
from workbench.services import AsyncServices
from workbench.transport import Params, Transport

T = TypeVar("T", bound=msgspec.Struct)

TOPICS = (routes.EVENT_FLEET, routes.EVENT_DECISIONS, routes.EVENT_FINDINGS, routes.EVENT_SOURCES, routes.EVENT_OPERATION)
SILENCE_S = 20.0
"""A stream without a byte for so long is taken as dead; control sends a comment more often."""
FIRST_DECISIONS = 300
NEWEST = 50
"""Operations and audit records that a page shows."""


class _Findings(msgspec.Struct):
    items: list[Finding] = []


class _Sources(msgspec.Struct):
    items: list[SourceState] = []


class ControlFeed:
    """Speaks to one control. The token file is read again for every connection: a new stack writes a new token."""

    def __init__(self, url: str, token_file: Path | None) -> None:
        self.url = url.rstrip("/")
        self.token_file = token_file
        self._token = ""
        self._transport: Transport | None = None

    async def close(self) -> None:
        if self._transport is not None:
            await self._transport.close()
            self._transport = None

    async def changes(self, heard: Callable[[], None]) -> AsyncGenerator[Change, None]:
        """The whole state first, then what changes, until the connection breaks. `heard` is called for every line."""
        while True:
            fleet = await self._get(FleetSnapshot, routes.FLEET)
            yield Change(
                fleet=fleet,
                decisions=(await self._get(DecisionPage, routes.DECISIONS, {"limit": FIRST_DECISIONS})).items,
                findings=(await self._get(_Findings, routes.FINDINGS)).items,
                sources=await self._sources(),
            )
            async for change in self._stream(fleet.version, heard):
                if change is None:
                    break
                yield change
            else:
                return

    async def cache_map(self, bins: int) -> CacheMap:
        return await self._get(CacheMap, routes.CACHE_MAP, {"bins": bins})

    async def decision(self, request_id: str) -> DecisionRecord:
        return await self._get(DecisionRecord, routes.DECISION.format(id=quote(request_id, safe="")))

    async def probe(self, request: ProbeRequest) -> ProbeResult:
        try:
            return await (await self._connected()).post(ProbeResult, routes.CACHE_PROBE, request)
        except WorkbenchError as error:
            raise _lost(error) from error

    async def rollouts(self) -> Rollouts:
        services = await self._get(ServicePage, routes.SERVICES)
        operations = await self._get(OperationPage, routes.OPERATIONS, {"limit": NEWEST})
        audit = await self._get(AuditPage, routes.AUDIT, {"limit": NEWEST})
        return Rollouts(tuple(services.items), tuple(operations.items), tuple(audit.items))

    @asynccontextmanager
    async def acting(self, user: str) -> AsyncIterator[AsyncServices]:
        try:
            yield AsyncServices(await self._connected(), source="ui", user=user)
        except WorkbenchError as error:
            raise _lost(error) from error

    async def _sources(self) -> list[SourceState]:
        """Event sources; none when only the index is away, which the findings tell."""
        try:
            return (await self._get(_Sources, routes.CACHE_SOURCES)).items
        except FeedLost:
            return []

    async def _get(self, kind: type[T], path: str, params: Params | None = None) -> T:
        try:
            return await (await self._connected()).get(kind, path, params)
        except WorkbenchError as error:
            raise _lost(error) from error

    async def _stream(self, since: int, heard: Callable[[], None]) -> AsyncIterator[Change | None]:
        """Changes since `since`; None for a reset, after which everything is to be fetched again."""
        params: Params = {"since": since, "topics": ",".join(TOPICS)}
        try:
            async with (await self._connected()).lines(routes.STREAM, params, silence_s=SILENCE_S) as lines:
                async for event in stream.parse(_noting(lines, heard)):
                    yield None if event.kind == "reset" else Change(**{event.kind: event.data})
        except WorkbenchError as error:
            raise _lost(error) from error
        except msgspec.MsgspecError as error:
            raise FeedLost(f"control's stream cannot be read by this version: {error}") from error

    async def _connected(self) -> Transport:
        token = read_token(self.token_file)
        if self._transport is None or token != self._token:
            await self.close()
            self._transport, self._token = Transport(self.url, token), token
        return self._transport


def read_token(file: Path | None) -> str:
    """The stack's token; "" when there is no file. Raises FeedLost when it cannot be read."""
    if file is None:
        return ""
    try:
        return file.read_text().strip()
    except OSError as error:
        raise FeedLost(f"the token file cannot be read ({error.strerror})") from error


async def _noting(lines: AsyncIterator[str], heard: Callable[[], None]) -> AsyncIterator[str]:
    """The same lines; comments too prove that control is alive, though the parser passes over them."""
    async for line in lines:
        heard()
        yield line


def _lost(error: WorkbenchError) -> FeedLost:
    if isinstance(error, Unauthorized):
        return FeedLost("control refuses the dashboard's token")
    return FeedLost(error.message.splitlines()[0], error.fix)
