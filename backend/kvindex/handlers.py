"""The query API: map, probe, sources, stats, held blocks. Reads the index and the feed; never waits for either."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web as aioweb

from backend.api import routes
from backend.api.cache import CacheMap, ProbeMatch, ProbeRequest, ProbeResult, SourcePage
from backend.core import web
from backend.core.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
    from backend.kvindex.service import IndexService

DEFAULT_BINS, MOST_BINS = 128, 4096
SHARED_PREFIXES = 20
_probe = msgspec.json.Decoder(ProbeRequest)


class Handlers:
    def __init__(self, service: IndexService) -> None:
        self._service = service
        self._maps: dict[int, CacheMap] = {}
        self._making_map = asyncio.Lock()

    def register(self, app: aioweb.Application) -> None:
        app.router.add_get(routes.INDEX_MAP, self.map)
        app.router.add_post(routes.INDEX_PROBE, self.probe)
        app.router.add_get(routes.INDEX_SOURCES, self.sources)
        app.router.add_get(routes.INDEX_STATS, self.stats)
        app.router.add_get(routes.INDEX_HELD, self.held)

    async def map(self, request: aioweb.Request) -> aioweb.Response:
        """One binning for all viewers: a map is made once a version and number of bins, whoever asks."""
        try:
            bins = int(request.query.get("bins", DEFAULT_BINS))
        except ValueError:
            bins = 0
        if not 1 <= bins <= MOST_BINS:
            raise InvalidRequest(f"bins is a whole number from 1 to {MOST_BINS}", param="bins")
        async with self._making_map:
            made = self._maps.get(bins)
            if made is None or made.version != self._service.index.version:
                made = self._maps[bins] = await asyncio.to_thread(self._make_map, bins)
                while len(self._maps) > 8:
                    self._maps.pop(next(iter(self._maps)))
        return web.json_response(made)

    async def probe(self, request: aioweb.Request) -> aioweb.Response:
        """Who holds how much of a prompt of token ids; text is tokenized by control."""
        asked = _probe.decode(await request.read())
        if asked.tokens is None:
            raise InvalidRequest("The index knows tokens only.", param="tokens", fix="Send text to the control API, which tokenizes it.")
        model = asked.model or self._service.only_model()
        try:
            matches = self._service.index.match(asked.tokens, model=model)
        except ValueError as error:
            raise InvalidRequest(str(error), param="tokens") from error
        size = len(asked.tokens)
        found = [ProbeMatch(pod=pod, matched_tokens=tokens, share=tokens / size if size else 0.0) for pod, tokens in matches.items()]
        return web.json_response(ProbeResult(model=model, tokens=size, matches=found))

    async def sources(self, _: aioweb.Request) -> aioweb.Response:
        return web.json_response(SourcePage(items=self._service.source_states(), problem=self._service.index.problem))

    async def stats(self, _: aioweb.Request) -> aioweb.Response:
        return web.json_response(self._service.index.stats())

    async def held(self, request: aioweb.Request) -> aioweb.Response:
        """Engine hashes of all blocks of `?pod=` (`&rank=`), as 16 hex digits: to be compared with the engine by hand or by a test.

        A debugging aid: a large cache makes a long answer, and no event is applied while it is put together.
        """
        pod, rank = request.query.get("pod", ""), request.query.get("rank", "0")
        if not rank.isdecimal():
            raise InvalidRequest("rank is a whole number", param="rank")
        index = self._service.index
        if pod not in index.pods():
            raise NotFound(f"The index has no pod {pod!r}.", fix=f"It knows {', '.join(sorted(index.pods())) or 'none'}.")
        hashes = await asyncio.to_thread(index.held, pod, int(rank))
        return web.json_response({"pod": pod, "rank": int(rank), "block_hashes": [f"{value:016x}" for value in sorted(hashes)]})

    def _make_map(self, bins: int) -> CacheMap:
        index = self._service.index
        version, pods = index.version, list(index.pods())
        blocks = index.map(bins, pods)
        stats = index.stats()
        return CacheMap(
            at=self._service.clock.now(),
            version=version,
            pods=pods,
            bins=bins,
            blocks=blocks.tolist(),
            totals=blocks.sum(axis=1).tolist(),
            distinct=stats.distinct_blocks,
            copies=stats.copies,
            shared=index.shared(SHARED_PREFIXES),
        )
