"""The Redis stream of decision batches, as a consumer group reads it. Owns commands and their oddities, decides nothing.

Delivery is at least once: an entry stays pending until `acknowledge`, over a `kill -9` of the reader and of the server (ours
syncs its append-only file before it answers). What the reader must do about repeats is its own matter.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import redis.asyncio as redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from backend.core.errors import ConfigError, Unavailable
from backend.core.urls import masked
from backend.history.records import CONSUMER, GROUP

Entry = tuple[bytes, Mapping[bytes, bytes]]
"""Id and fields; no fields for an entry that the stream's cap removed while it was pending."""

BLOCK_S = 5.0
"""Seconds a read waits at the server: no polling while nothing happens."""
CHUNK = 100
"""Entries a read."""
ABANDONED_MS = 60_000
"""Pending entries of another consumer's name are taken over after this long."""


class DecisionStream:
    """One connection. Every call raises Unavailable when the server does not answer or refuses."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        check_url(url)
        self._redis = redis.Redis.from_url(
            url, socket_timeout=BLOCK_S + 3, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0), single_connection_client=False
        )
        self.url = masked(url)

    async def open(self) -> None:
        """Make the group if it is not there. From the stream's beginning: what was sent before us belongs to us too."""
        with self._explained("XGROUP"):
            try:
                await self._redis.xgroup_create(self.name, GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    async def pending(self) -> AsyncIterator[list[Entry]]:
        """Entries that were delivered and never acknowledged: ours, then those of consumers long gone."""
        after = "0"
        while chunk := await self._read(after, block_ms=None):
            yield chunk
            after = chunk[-1][0].decode()
        cursor = "0-0"
        while True:
            with self._explained("XAUTOCLAIM"):
                answer = await self._redis.xautoclaim(self.name, GROUP, CONSUMER, ABANDONED_MS, cursor, count=CHUNK)
            if answer[1]:
                yield list(answer[1])
            cursor = answer[0].decode()
            if cursor == "0-0":
                return

    async def fresh(self) -> list[Entry]:
        """Entries never delivered before; empty after BLOCK_S without any."""
        return await self._read(">", block_ms=int(BLOCK_S * 1000))

    async def acknowledge(self, entries: Sequence[bytes]) -> None:
        with self._explained("XACK"):
            for start in range(0, len(entries), 1000):
                await self._redis.xack(self.name, GROUP, *entries[start : start + 1000])

    async def trim(self) -> None:
        """Drop what is acknowledged, so that the server's memory holds the unwritten only; not when others read the stream too."""
        with self._explained("XTRIM"):
            groups = await self._redis.xinfo_groups(self.name)
            if len(groups) != 1:
                return
            summary = await self._redis.xpending(self.name, GROUP)
            oldest = summary["min"] if summary["pending"] else groups[0]["last-delivered-id"]
            await self._redis.xtrim(self.name, minid=oldest, approximate=True)

    async def now(self) -> float:
        """The server's clock, which entry ids are made of; seconds since 1970."""
        with self._explained("TIME"):
            seconds, microseconds = await self._redis.time()
        return int(seconds) + int(microseconds) / 1e6

    async def close(self) -> None:
        await self._redis.aclose()

    async def _read(self, after: str, *, block_ms: int | None) -> list[Entry]:
        with self._explained("XREADGROUP"):
            answer: Any = await self._redis.xreadgroup(GROUP, CONSUMER, {self.name: after}, count=CHUNK, block=block_ms)
        if not answer:
            return []
        # RESP3 answers with a map of streams, RESP2 with a list of pairs.
        return list(next(iter(answer.values()))[0] if isinstance(answer, dict) else answer[0][1])

    @contextlib.contextmanager
    def _explained(self, command: str) -> Iterator[None]:
        try:
            yield
        except (TimeoutError, RedisError, OSError) as error:
            raise Unavailable(
                f"The stream server {self.url} does not serve {command}: {error or type(error).__name__}",
                fix="Check that valkey-server runs; records wait in the gateway's workers and in the stream meanwhile.",
            ) from error
        finally:
            # redis-py 8 can swallow a cancellation that comes while it opens a connection (asyncio.wait_for of CPython 3.11 does
            # it too, when its answer arrives in the same turn of the loop). The task would then never end.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError


def check_url(url: str) -> None:
    """Raises ConfigError for what is no Redis URL, before anything connects."""
    try:
        parse_url(url)
    except ValueError:
        # without the reason: it may repeat a part of the password
        raise ConfigError("is not a Redis URL", field="records.redis_url", fix="Write redis://127.0.0.1:6379/0.") from None


def entry_time(entry_id: bytes) -> float:
    """When the server took the entry, seconds since 1970."""
    return int(entry_id.partition(b"-")[0]) / 1000
