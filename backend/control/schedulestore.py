"""Schedules in Redis: what they are, which moments were dealt with, and who writes which report right now.

The three steps that must not be torn apart are scripts, which the server runs one at a time. `claim` gives a moment to one asker and
a number that only grows (the fence); the claim ends by itself when its holder stops renewing it. `finish` counts only while the claim
still has the same fence: a holder that slept through its lease learns here that somebody else did its work.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from backend.api.reports import Schedule
from backend.core.errors import Unavailable
from backend.core.urls import masked

TIMEOUT_S = 3.0


class ScheduleStore(Protocol):
    """Every call raises Unavailable when the schedules cannot be reached."""

    broken: dict[str, str]
    """Stored schedules that this version cannot read: id to reason."""

    async def all(self) -> dict[str, Schedule]: ...

    async def done(self) -> dict[str, float]:
        """The newest moment of each schedule that was dealt with."""
        ...

    async def add(self, schedule: Schedule) -> bool:
        """False when there is one with this id."""
        ...

    async def add_once(self, schedule: Schedule) -> bool:
        """Add it unless that was done before, also when somebody has deleted it since."""
        ...

    async def remove(self, schedule_id: str) -> bool: ...

    async def claim(self, schedule_id: str, due: float, lease_s: float) -> int:
        """The fence, above 0; 0 when another holds the claim, the moment was dealt with, or the schedule is gone."""
        ...

    async def renew(self, schedule_id: str, fence: int, lease_s: float) -> bool:
        """False when the claim belongs to somebody else or to nobody."""
        ...

    async def finish(self, schedule_id: str, due: float, fence: int) -> bool:
        """Count the moment as dealt with and give the claim back; False when it is not ours any more."""
        ...

    async def close(self) -> None: ...


_CLAIM = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
local done = redis.call('HGET', KEYS[2], ARGV[1])
if done and tonumber(done) >= tonumber(ARGV[2]) then return 0 end
if redis.call('EXISTS', KEYS[4]) == 1 then return 0 end
local fence = redis.call('INCR', KEYS[3])
redis.call('SET', KEYS[4], fence, 'PX', ARGV[3])
return fence
"""
_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_FINISH = """
if redis.call('GET', KEYS[2]) ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('DEL', KEYS[2])
return 1
"""
_ADD = """
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
return 1
"""


class RedisSchedules:
    """`keys` begins the name of every key."""

    def __init__(self, url: str, keys: str) -> None:
        self.url = masked(url)
        self.broken: dict[str, str] = {}
        self._table, self._done, self._fence, self._made = (f"{keys}{end}" for end in ("", ":done", ":fence", ":made"))
        self._lock = f"{keys}:lock:"
        self._redis: Any = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0), decode_responses=True
        )

    async def all(self) -> dict[str, Schedule]:
        with self._explained("HGETALL"):
            rows = await self._redis.hgetall(self._table)
        found: dict[str, Schedule] = {}
        broken: dict[str, str] = {}
        for name, text in rows.items():
            try:
                found[name] = msgspec.json.decode(text, type=Schedule)
            except msgspec.MsgspecError as error:
                broken[name] = str(error)
        self.broken = broken
        return found

    async def done(self) -> dict[str, float]:
        with self._explained("HGETALL"):
            return {name: float(moment) for name, moment in (await self._redis.hgetall(self._done)).items()}

    async def add(self, schedule: Schedule) -> bool:
        text = msgspec.json.encode(schedule).decode()
        with self._explained("EVAL"):
            return bool(await self._redis.eval(_ADD, 2, self._table, self._done, schedule.id, text, repr(schedule.created_at)))

    async def add_once(self, schedule: Schedule) -> bool:
        with self._explained("HSETNX"):
            if not await self._redis.hsetnx(self._made, schedule.id, repr(schedule.created_at)):
                return False
        return await self.add(schedule)

    async def remove(self, schedule_id: str) -> bool:
        with self._explained("HDEL"):
            async with self._redis.pipeline(transaction=True) as step:
                step.hdel(self._table, schedule_id).hdel(self._done, schedule_id).delete(self._lock + schedule_id)
                removed, *_ = await step.execute()
            return bool(removed)

    async def claim(self, schedule_id: str, due: float, lease_s: float) -> int:
        keys = (self._table, self._done, self._fence, self._lock + schedule_id)
        with self._explained("EVAL"):
            return int(await self._redis.eval(_CLAIM, len(keys), *keys, schedule_id, repr(due), int(lease_s * 1000)))

    async def renew(self, schedule_id: str, fence: int, lease_s: float) -> bool:
        with self._explained("EVAL"):
            return bool(await self._redis.eval(_RENEW, 1, self._lock + schedule_id, str(fence), int(lease_s * 1000)))

    async def finish(self, schedule_id: str, due: float, fence: int) -> bool:
        keys = (self._done, self._lock + schedule_id)
        with self._explained("EVAL"):
            return bool(await self._redis.eval(_FINISH, len(keys), *keys, schedule_id, repr(due), str(fence)))

    async def close(self) -> None:
        await self._redis.aclose()

    @contextlib.contextmanager
    def _explained(self, command: str) -> Iterator[None]:
        try:
            yield
        except (TimeoutError, RedisError, OSError) as error:
            raise Unavailable(
                f"The server of the schedules, {self.url}, does not serve {command}: {error or type(error).__name__}",
                fix="Check that valkey-server runs. Missed reports are caught up when it is back.",
            ) from error
        finally:
            # redis-py can swallow a cancellation that comes while it opens a connection; the task would then never end.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError
