"""Plans, operations and audit in a real server of Redis' kind: one claim a plan, nothing lost over a kill, pages of the audit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from backend.api.actions import ActionPlan, AuditRecord, Operation, Parameters
from backend.control.actions import store as store_module
from backend.control.actions.model import Fingerprint, OperationRecord, StoredPlan
from backend.control.actions.store import RedisStore
from backend.core.errors import InvalidRequest, Unavailable
from tests.fakes.valkey import Valkey, valkey

__all__ = ["valkey"]


ABOUT: dict[str, Any] = {"action": "pause", "namespace": "default", "service": "qwen"}


def stored(number: int = 1) -> StoredPlan:
    plan = ActionPlan(id=f"plan-{number}", hash="h", parameters=Parameters(), made_at=1.0, expires_at=301.0, **ABOUT)
    return StoredPlan(plan=plan, fingerprint=Fingerprint(exact={"spec": {"paused": False}}), patch={"spec": {"paused": True}})


def record(number: int, *, plan: int | None = None, state: str = "running") -> OperationRecord:
    of = stored(plan or number)
    operation = Operation(id=f"op-{number}", plan_id=of.plan.id, state=state, started_at=float(number), **ABOUT)
    return OperationRecord(operation=operation, stored=of, audit=entry(number))


def entry(number: int, **more: object) -> AuditRecord:
    return AuditRecord(id=f"audit-{number}", at=float(number), action="pause", target="default/qwen", **more)


@pytest.fixture
async def store(valkey: Valkey) -> AsyncIterator[RedisStore]:
    opened = RedisStore(valkey.url)
    yield opened
    await opened.close()


async def test_a_plan_comes_back_as_it_was(store):
    await store.put_plan(stored())
    assert await store.plan("plan-1") == stored()
    assert await store.plan("plan-2") is None


async def test_of_many_callers_one_gets_the_plan_and_the_others_its_operation(store):
    begun = await asyncio.gather(*(store.begin(record(number, plan=1)) for number in range(1, 9)))
    assert len({one.operation.id for one in begun}) == 1
    assert len((await store.operations(limit=10)).items) == 1
    assert len((await store.audit_page(limit=10)).items) == 1
    assert (await store.applied("plan-1")).operation.id == begun[0].operation.id


async def test_what_is_under_way_survives_a_kill_of_the_server(store, valkey):
    await store.begin(record(1))
    await store.begin(record(2))
    ended = record(2, state="done")
    await store.put(ended)
    valkey.kill()
    with pytest.raises(Unavailable, match="does not answer"):
        await store.active()
    valkey.start()
    assert [one.operation.id for one in await store.active()] == ["op-1"]
    assert await store.operation("op-2") == ended


async def test_operations_come_newest_first_and_the_oldest_ended_ones_go(store, monkeypatch):
    monkeypatch.setattr(store_module, "KEPT_OPERATIONS", 3)
    await store.begin(record(1))
    for number in range(2, 7):
        await store.begin(record(number))
        await store.put(record(number, state="done"))
    await store.begin(record(7))
    left = [one.id for one in (await store.operations(limit=10)).items]
    assert left[:3] == ["op-7", "op-6", "op-5"]
    assert "op-1" in left, "it is still under way"
    assert "op-2" not in left
    assert [one.id for one in (await store.operations(limit=2, service="default/qwen")).items] == ["op-7", "op-6"]
    assert (await store.operations(limit=2, service="default/other")).items == []


async def test_the_audit_pages_acts_with_their_ends(store):
    for number in range(1, 6):
        await store.audit(entry(number))
        if number != 3:
            await store.audit(entry(number, outcome="done", ended_at=9.0))
    first = await store.audit_page(limit=2)
    second = await store.audit_page(limit=2, before=first.next)
    third = await store.audit_page(limit=2, before=second.next)
    seen = [(one.id, one.outcome) for page in (first, second, third) for one in page.items]
    assert seen == [(f"audit-{number}", "started" if number == 3 else "done") for number in (5, 4, 3, 2, 1)]
    assert third.next is None
    with pytest.raises(InvalidRequest):
        await store.audit_page(limit=2, before="yesterday")


async def test_a_record_with_every_field_comes_back(store):
    full = record(1)
    full.spec, full.generation, full.best, full.abort_audit = {"paused": True, "replicas": None}, 4, 2, entry(9)
    await store.put(full)
    assert msgspec.to_builtins(await store.operation("op-1")) == msgspec.to_builtins(full)
