"""Plans, operations and audit in Redis: everything that a killed control needs to go on. Owns keys and commands, decides nothing.

workbench:actions:plan:ID       a plan, dropped an hour after it expired
workbench:actions:applied:ID    which operation a plan became
workbench:actions:operations    id > record
workbench:actions:order         ids by start
workbench:actions:active        ids still on their way
workbench:audit                 append-only stream; an act is an entry before it and an entry after it
workbench:audit:ended           id of an act > its second entry, so that a page need not search for it
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from backend.api.actions import AuditPage, AuditRecord, OperationPage
from backend.control.actions.model import OperationRecord, StoredPlan
from backend.core.errors import InvalidRequest, Unavailable
from backend.core.urls import masked
from backend.history.stream import check_url

PLAN, APPLIED = "workbench:actions:plan:", "workbench:actions:applied:"
OPERATIONS, ORDER, ACTIVE = "workbench:actions:operations", "workbench:actions:order", "workbench:actions:active"
AUDIT, AUDIT_ENDED = "workbench:audit", "workbench:audit:ended"
KEPT_EXPIRED_S = 3600
"""Seconds an expired plan is kept, so that applying it is refused for its age and not as unknown."""
KEPT_APPLIED_S = 86_400
KEPT_OPERATIONS = 1_000
TIMEOUT_S = 5.0

# One step, so that neither a second caller nor a kill can come between the claim, the record and its audit entry.
_BEGIN = """
local prior = redis.call('GET', KEYS[1])
if prior then return redis.call('HGET', KEYS[2], prior) end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[5])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
redis.call('SADD', KEYS[4], ARGV[1])
redis.call('XADD', KEYS[5], '*', 'started', ARGV[4])
return false
"""


class RedisStore:
    """See `backend.control.actions.model.Store`."""

    def __init__(self, url: str) -> None:
        check_url(url)
        # Any: redis-py's stubs describe answers of every mode at once; ours are bytes.
        self._redis: Any = redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0))
        self.url = masked(url)

    async def close(self) -> None:
        await self._redis.aclose()

    async def put_plan(self, stored: StoredPlan) -> None:
        seconds = int(stored.plan.expires_at - stored.plan.made_at) + KEPT_EXPIRED_S
        async with self._explained():
            await self._redis.set(PLAN + stored.plan.id, msgspec.json.encode(stored), ex=seconds)

    async def plan(self, plan_id: str) -> StoredPlan | None:
        async with self._explained():
            found = await self._redis.get(PLAN + plan_id)
        return None if found is None else msgspec.json.decode(found, type=StoredPlan)

    async def begin(self, record: OperationRecord) -> OperationRecord:
        operation = record.operation
        keys = (APPLIED + record.stored.plan.id, OPERATIONS, ORDER, ACTIVE, AUDIT)
        values = (operation.id, _json(record), operation.started_at, _json(record.audit), KEPT_APPLIED_S)
        async with self._explained():
            prior: Any = await self._redis.eval(_BEGIN, len(keys), *keys, *values)
            if prior:
                return msgspec.json.decode(prior, type=OperationRecord)
            await self._trim()
        return record

    async def applied(self, plan_id: str) -> OperationRecord | None:
        async with self._explained():
            operation_id = await self._redis.get(APPLIED + plan_id)
        return None if operation_id is None else await self.operation(operation_id.decode())

    async def put(self, record: OperationRecord) -> None:
        operation = record.operation
        async with self._explained(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(OPERATIONS, operation.id, _json(record))
            (pipe.sadd if operation.active else pipe.srem)(ACTIVE, operation.id)
            await pipe.execute()

    async def operation(self, operation_id: str) -> OperationRecord | None:
        found = await self._records([operation_id])
        return found[0] if found else None

    async def operations(self, *, limit: int, service: str = "") -> OperationPage:
        """Newest first. `service` is `namespace/name`."""
        async with self._explained():
            ids = await self._redis.zrevrange(ORDER, 0, -1 if service else limit - 1)
        found = [record.operation for record in await self._records(ids)]
        return OperationPage(items=[one for one in found if not service or f"{one.namespace}/{one.service}" == service][:limit])

    async def active(self) -> list[OperationRecord]:
        async with self._explained():
            ids = await self._redis.smembers(ACTIVE)
        return sorted(await self._records(ids), key=lambda record: record.operation.started_at)

    async def audit(self, record: AuditRecord) -> None:
        async with self._explained(), self._redis.pipeline(transaction=True) as pipe:
            pipe.xadd(AUDIT, {"ended" if record.ended_at else "started": _json(record)})
            if record.ended_at:
                pipe.hset(AUDIT_ENDED, record.id, _json(record))
            await pipe.execute()

    async def audit_page(self, *, limit: int, before: str = "") -> AuditPage:
        if before and not before.replace("-", "", 1).isdecimal():
            raise InvalidRequest(f"`before` is {before!r}.", param="before", fix="Pass `next` of the page before.")
        entries: list[tuple[str, AuditRecord]] = []
        newest = f"({before}" if before else "+"
        async with self._explained():
            while len(entries) <= limit and (chunk := await self._redis.xrevrange(AUDIT, newest, "-", count=2 * limit + 2)):
                for entry_id, fields in chunk:
                    if b"started" in fields:
                        entries.append((entry_id.decode(), msgspec.json.decode(fields[b"started"], type=AuditRecord)))
                newest = f"({chunk[-1][0].decode()}"
            page = entries[:limit]
            ends = await self._redis.hmget(AUDIT_ENDED, [one.id for _, one in page]) if page else []
        items = [msgspec.json.decode(end, type=AuditRecord) if end else one for (_, one), end in zip(page, ends, strict=True)]
        return AuditPage(items=items, next=page[-1][0] if len(entries) > limit else None)

    async def _records(self, ids: Iterable[Any]) -> list[OperationRecord]:
        wanted = list(ids)
        if not wanted:
            return []
        async with self._explained():
            found = await self._redis.hmget(OPERATIONS, wanted)
        return [msgspec.json.decode(one, type=OperationRecord) for one in found if one]

    async def _trim(self) -> None:
        """Drop the oldest operations beyond what is kept; those still on their way stay."""
        old = await self._redis.zrange(ORDER, 0, -KEPT_OPERATIONS - 1)
        if old:
            active = await self._redis.smembers(ACTIVE)
            if gone := [one for one in old if one not in active]:
                await self._redis.hdel(OPERATIONS, *gone)
                await self._redis.zrem(ORDER, *gone)

    @contextlib.asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        try:
            yield
        except (TimeoutError, RedisError, OSError) as error:
            raise Unavailable(
                f"Plans and operations are kept at {self.url}, which does not answer: {error or type(error).__name__}.",
                fix="Check that valkey-server runs. Rollouts go on meanwhile; nothing new can be applied.",
            ) from error


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)
