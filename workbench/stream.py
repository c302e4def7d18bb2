"""Changes of a stack as typed events, for dashboards and long-running notebooks: reconnects by itself and says when it had to.

The server numbers its changes; after a break the client asks for what came since. When the server no longer has that, it sends
`reset`: whoever follows fetches snapshots again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from backend.api import routes
from backend.api.actions import Operation
from backend.api.cache import SourceState
from backend.api.decisions import DecisionRecord
from backend.api.findings import Finding
from backend.api.fleet import FleetSnapshot
from workbench._transport import Transport
from workbench.errors import TransientError

if TYPE_CHECKING:
    from workbench.client import AsyncWorkbench

FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 8.0
SILENCE_S = 45.0
"""A server sends at least a comment this often; silence means a connection that died without a word."""

Kind = Literal["fleet", "decisions", "findings", "sources", "operation", "reset", "connected", "disconnected"]

_TYPES: dict[str, Any] = {
    routes.EVENT_FLEET: FleetSnapshot,
    routes.EVENT_DECISIONS: list[DecisionRecord],
    routes.EVENT_FINDINGS: list[Finding],
    routes.EVENT_SOURCES: list[SourceState],
    routes.EVENT_OPERATION: Operation,
}


class Event(msgspec.Struct, frozen=True):
    """`data` is a FleetSnapshot, an Operation, or a list of DecisionRecord, Finding or SourceState; for `disconnected` the reason.

    `connected` and `disconnected` are the client's own. After `reset` everything fetched before is to be fetched again.
    """

    kind: Kind
    data: Any = None
    version: int | None = None


async def follow(client: Transport | AsyncWorkbench, topics: Sequence[str] = (), *, since: int | None = None) -> AsyncIterator[Event]:
    """Events without end. A lost server is one `disconnected`, then `connected` when it is back.

    Raises what trying again cannot change: Unauthorized, NotFound, UnreadableAnswer.
    """
    transport = client if isinstance(client, Transport) else client.transport
    delay = FIRST_DELAY_S
    connected = False
    while True:
        try:
            params = {"topics": ",".join(topics) or None, "since": since}
            async with transport.lines(routes.STREAM, params, silence_s=SILENCE_S) as lines:
                connected, delay = True, FIRST_DELAY_S
                yield Event("connected")
                async for event in parse(lines):
                    since = None if event.kind == "reset" and event.version is None else (event.version or since)
                    yield event
            reason = "the server ended the stream"
        except TransientError as error:
            reason = error.message
        if connected:
            connected = False
            yield Event("disconnected", reason)
        # Spread out: after a restart of control all its viewers come back, but not in the same instant.
        await asyncio.sleep(delay * random.uniform(0.7, 1.3))
        delay = min(delay * 2, LONGEST_DELAY_S)


async def parse(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    """Server-sent events from their lines. Kinds that this version does not know are passed over."""
    kind, version = "", None
    data: list[str] = []
    async for line in lines:
        if not line:
            if (event := _event(kind, "\n".join(data), version)) is not None:
                yield event
            kind, data, version = "", [], None
            continue
        name, _, text = line.partition(":")
        text = text.removeprefix(" ")
        if name == "event":
            kind = text
        elif name == "data":
            data.append(text)
        elif name == "id" and text.isdigit():
            version = int(text)


def _event(kind: str, data: str, version: int | None) -> Event | None:
    if kind == routes.EVENT_RESET:
        return Event("reset", version=version)
    if kind not in _TYPES:
        return None
    return Event(kind, msgspec.json.decode(data, type=_TYPES[kind]), version)  # type: ignore[arg-type]
