"""The other processes of the stack, asked over HTTP: the KV index (sources, map, probe) and the gateway (is it there, what did it drop).

Owns the client and its error messages. A peer that is away is a finding here and a 503 at the API, never an empty answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import httpx
import msgspec

from backend.api import routes
from backend.api.cache import SourcePage, SourceState
from backend.control.model import PeerView
from backend.core.clock import Clock
from backend.core.errors import Unavailable

INDEX_TIMEOUT_S = 5.0
FIRST_FAILURES = 2
"""Answers that may fail in a row before a peer counts as away: a restart takes a second."""
GATEWAY_DROPPED = re.compile(rb"^gateway_records_dropped_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class Answer(NamedTuple):
    """What a peer said, to be handed on as it is."""

    status: int
    body: bytes


class Peer:
    """One process and whether it answers."""

    def __init__(self, name: str, url: str, http: httpx.AsyncClient, clock: Clock) -> None:
        self.name = name
        self.view = PeerView(url)
        self._http = http
        self._clock = clock
        self._failures = 0

    async def request(self, method: str, path: str, *, params: Mapping[str, str] | None = None, body: bytes | None = None) -> Answer:
        """Raises Unavailable with cause and fix."""
        try:
            async with asyncio.timeout(INDEX_TIMEOUT_S):
                answer = await self._http.request(method, self.view.url + path, params=params, content=body)
        except TimeoutError:
            raise self._away(f"no answer within {INDEX_TIMEOUT_S:g} s") from None
        except httpx.HTTPError as error:
            raise self._away(str(error) or type(error).__name__) from error
        return Answer(answer.status_code, answer.content)

    async def watch(self, path: str, read: Callable[[bytes], None]) -> None:
        """Look at a page that must answer 200 with what `read` understands, and keep `view`."""
        try:
            answer = await self.request("GET", path)
            why = "" if answer.status == 200 else f"{path} answers {answer.status}."
            if not why:
                read(answer.body)
        except Unavailable as error:
            why = error.message
        except (msgspec.DecodeError, ValueError) as error:
            why = f"{path} cannot be read: {error}."
        self._failures = self._failures + 1 if why else 0
        if not why:
            self.view = PeerView(self.view.url)
        elif self._failures >= FIRST_FAILURES and not self.view.error:
            self.view = PeerView(self.view.url, why, self._clock.now())

    def _away(self, why: str) -> Unavailable:
        return Unavailable(
            f"The {self.name} at {self.view.url} does not answer: {why}.",
            fix=f"`workbench status` says whether it runs; `workbench up` starts it again by itself. Its log is logs/{self.name}.log.",
        )


class Index(Peer):
    """kvindex: also remembers its sources."""

    sources: list[SourceState] | None = None
    """None until it answered for the first time."""
    problem = ""
    """Why readers of the index see an older state."""

    async def refresh(self) -> None:
        await self.watch(routes.INDEX_SOURCES, self._read)

    def _read(self, body: bytes) -> None:
        page = msgspec.json.decode(body, type=SourcePage)
        self.sources, self.problem = page.items, page.problem


class Gateway(Peer):
    """The gateway: also remembers how many records its workers dropped."""

    dropped_records = 0.0

    async def refresh(self) -> None:
        await self.watch("/metrics", self._read)

    def _read(self, body: bytes) -> None:
        self.dropped_records = sum(float(value) for value in GATEWAY_DROPPED.findall(body))
