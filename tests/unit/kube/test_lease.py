"""Leader election in virtual time, against a store that keeps versions as a server does."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backend.core.errors import UsageError
from backend.kube.client import KubeClient
from backend.kube.errors import ClusterUnreachable, api_error
from backend.kube.figures import KubeFigures
from backend.kube.lease import LeaderElector, Observed, observe, record, verdict
from tests.fakes.kubeapi import FakeKubeApi, kube_api, write_kubeconfig
from tests.fakes.waiting import eventually

__all__ = ["kube_api"]


class Leases:
    """The three calls that an elector makes, without sockets, whose waiting virtual time cannot skip."""

    def __init__(self) -> None:
        self.figures = KubeFigures()
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.away: set[str] = set()
        """Identities that do not reach the server; "*" for all."""

    async def get(self, *_: Any) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        if self.lease is None:
            raise api_error(404, b"", what="GET lease")
        return self.lease

    async def create(self, _resource: Any, _namespace: Any, body: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        if self.lease is not None:
            raise api_error(409, b'{"kind": "Status", "reason": "AlreadyExists"}', what="POST lease")
        return self._store(body)

    async def update(self, _resource: Any, _namespace: Any, body: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        assert self.lease is not None
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise api_error(409, b'{"kind": "Status", "reason": "Conflict"}', what="PUT lease")
        return self._store(body)

    def _store(self, body: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        return self.lease


class Door:
    """One process' way to the leases, which can be shut."""

    def __init__(self, leases: Leases) -> None:
        self.leases, self.figures, self.shut = leases, leases.figures, False
        self.refuses_after_s = 0.5

    def __getattr__(self, name: str) -> Any:
        if self.shut:
            return self._nobody
        return getattr(self.leases, name)

    async def _nobody(self, *_: Any) -> None:
        await asyncio.sleep(self.refuses_after_s)
        raise ClusterUnreachable("https://nowhere", "no connection", unsent=True)


class Process:
    """One competitor; `led` are the spans of the loop's time in which it led."""

    def __init__(self, leases: Leases, identity: str) -> None:
        self.door = Door(leases)
        self.elector = LeaderElector(self.door, "fleet", "control", identity)  # type: ignore[arg-type]
        self.led: list[list[float]] = []
        self.task = asyncio.create_task(self.elector.run(self._lead))

    async def _lead(self) -> None:
        loop = asyncio.get_running_loop()
        span = [loop.time(), float("inf")]
        self.led.append(span)
        try:
            await asyncio.Event().wait()
        finally:
            span[1] = loop.time()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.mark.looptime
async def test_one_of_many_leads_and_when_it_stops_the_next_follows_at_once() -> None:
    leases = Leases()
    processes = [Process(leases, f"p{number}") for number in range(4)]
    await asyncio.sleep(60)
    leaders = [process for process in processes if process.elector.leading]
    assert len(leaders) == 1
    assert {process.elector.holder for process in processes} == {leaders[0].elector.identity}
    stopped = asyncio.get_running_loop().time()
    await leaders[0].stop()
    await asyncio.sleep(4)
    others = [process for process in processes if process.elector.leading]
    assert len(others) == 1
    assert others[0].led[0][0] - stopped < 3, "a lease that was given back need not run out"
    assert leases.lease is not None
    assert leases.lease["spec"]["leaseTransitions"] == 1, "it has passed on once"
    for process in processes:
        await process.stop()


@pytest.mark.looptime
@pytest.mark.parametrize("refuses_after_s", [0.5, 3600.0], ids=["refused", "silence"])
async def test_a_leader_cut_off_stops_before_another_begins(refuses_after_s: float) -> None:
    leases = Leases()
    first = Process(leases, "first")
    first.door.refuses_after_s = refuses_after_s
    await asyncio.sleep(5)
    second = Process(leases, "second")
    await asyncio.sleep(5)
    first.door.shut = True
    await asyncio.sleep(40)
    assert not first.elector.leading
    assert second.elector.leading
    gap = second.led[0][0] - first.led[0][1]
    assert 3 < gap < 10, "the deadline of 10 s lies before the end of 15 s"
    first.door.shut = False
    await asyncio.sleep(30)
    assert len(first.led) == 1
    assert second.elector.leading
    await first.stop()
    await second.stop()


@pytest.mark.looptime
async def test_a_server_that_is_away_for_a_moment_costs_no_leadership() -> None:
    leases = Leases()
    only = Process(leases, "only")
    await asyncio.sleep(5)
    only.door.shut = True
    await asyncio.sleep(6)
    only.door.shut = False
    await asyncio.sleep(60)
    assert only.led == [[only.led[0][0], float("inf")]]
    await only.stop()


@pytest.mark.looptime
async def test_a_lease_that_another_wrote_over_ends_the_leadership() -> None:
    leases = Leases()
    only = Process(leases, "only")
    await asyncio.sleep(5)
    assert leases.lease is not None
    leases._store({**leases.lease, "spec": {**leases.lease["spec"], "holderIdentity": "thief"}})
    await asyncio.sleep(4)
    assert not only.elector.leading
    await asyncio.sleep(30)
    assert only.elector.leading, "the thief never renewed"
    await only.stop()


@pytest.mark.looptime
async def test_what_the_leader_runs_decides_about_the_end() -> None:
    leases = Leases()
    elector = LeaderElector(Door(leases), "fleet", "control", "a")  # type: ignore[arg-type]

    async def fails() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await elector.run(fails)
    assert leases.lease is not None
    assert leases.lease["spec"]["holderIdentity"] == "", "given back all the same"


def test_only_the_own_clock_decides_when_a_lease_has_run_out() -> None:
    written = record({}, "other", 15, datetime(1999, 1, 1, tzinfo=UTC))
    seen = observe(None, {"spec": written}, 100.0)
    assert verdict(seen, "me", 15, 114.9) == "wait", "a holder whose clock is decades behind is alive as long as it writes"
    assert observe(seen, {"spec": written}, 110.0).since == 100.0
    assert verdict(seen, "me", 15, 115.0) == "take"
    renewed = observe(seen, {"spec": {**written, "renewTime": "x"}}, 110.0)
    assert verdict(renewed, "me", 15, 124.0) == "wait"
    assert verdict(renewed, "other", 15, 999.0) == "renew"
    assert verdict(Observed({**written, "holderIdentity": ""}, 110.0), "me", 15, 110.0) == "take"


def test_a_renewal_keeps_when_the_lease_was_taken() -> None:
    first = record({}, "a", 15, datetime(2026, 1, 1, tzinfo=UTC))
    later = record(first, "a", 15, datetime(2026, 1, 2, tzinfo=UTC))
    assert later["acquireTime"] == first["acquireTime"] == "2026-01-01T00:00:00.000000Z"
    assert (first["leaseTransitions"], later["leaseTransitions"]) == (0, 0)
    assert record(later, "b", 15, datetime(2026, 1, 3, tzinfo=UTC))["leaseTransitions"] == 1


def test_times_that_would_allow_two_leaders_are_refused() -> None:
    with pytest.raises(UsageError, match="duration_s > renew_deadline_s"):
        LeaderElector(Door(Leases()), "fleet", "control", "a", duration_s=10, renew_deadline_s=10)  # type: ignore[arg-type]


async def test_two_processes_on_one_server_never_lead_together(kube_api: FakeKubeApi, tmp_path: Path) -> None:
    client = KubeClient.from_kubeconfig(write_kubeconfig(tmp_path / "config", kube_api.url))
    leading: set[str] = set()

    def body(identity: str) -> Any:
        async def lead() -> None:
            assert not leading
            leading.add(identity)
            try:
                await asyncio.Event().wait()
            finally:
                leading.discard(identity)

        return lead

    times = {"duration_s": 0.9, "renew_deadline_s": 0.6, "retry_s": 0.1}
    tasks = {name: asyncio.create_task(LeaderElector(client, "fleet", "control", name, **times).run(body(name))) for name in ("a", "b")}
    await eventually(lambda: len(leading) == 1)
    first = next(iter(leading))
    tasks[first].cancel()
    await eventually(lambda: len(leading) == 1 and first not in leading)
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    await client.close()
