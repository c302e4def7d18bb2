"""One leader among several processes, by a Lease of the cluster; the record and the times are client-go's.

No two clocks are compared: whoever watches a lease measures with its own clock for how long the record has not changed. A leader
gives up (`renew_deadline_s`) before anybody may take over (`duration_s`), both counted from its last successful renewal.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from backend.core.errors import UsageError, WorkbenchError
from backend.kube.client import KubeClient
from backend.kube.errors import ApiError
from backend.kube.resources import LEASES, Object, version_of

log = logging.getLogger(__name__)

Verdict = Literal["renew", "take", "wait"]


@dataclass(frozen=True, slots=True)
class Observed:
    """The record that was seen last, and when it was first seen like that, by the observer's monotonic clock in seconds."""

    spec: dict[str, Any]
    since: float

    @property
    def holder(self) -> str:
        return self.spec.get("holderIdentity") or ""


def observe(before: Observed | None, lease: Object, now: float) -> Observed:
    """What is known after reading `lease`: the old date as long as nothing in the record changed."""
    spec = lease.get("spec") or {}
    return before if before is not None and before.spec == spec else Observed(spec, now)


def verdict(observed: Observed, identity: str, duration_s: float, now: float) -> Verdict:
    """What `identity` may do with the lease: it is ours, it is free (given back, or unchanged for too long), or another holds it."""
    if observed.holder == identity:
        return "renew"
    if not observed.holder:
        return "take"
    promised = float(observed.spec.get("leaseDurationSeconds") or duration_s)
    return "take" if now - observed.since >= max(promised, duration_s) else "wait"


def record(before: dict[str, Any], identity: str, duration_s: float, now: datetime) -> dict[str, Any]:
    """The spec with which `identity` takes or renews a lease."""
    stamp = _micro_time(now)
    same = before.get("holderIdentity") == identity
    return {
        **before,
        "holderIdentity": identity,
        "leaseDurationSeconds": max(1, round(duration_s)),
        "acquireTime": before.get("acquireTime", stamp) if same else stamp,
        "renewTime": stamp,
        "leaseTransitions": int(before.get("leaseTransitions") or 0) + (0 if same or not before else 1),
    }


class LeaderElector:
    """Competes for the lease `namespace/name` under `identity`, which must differ from process to process."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        identity: str,
        *,
        duration_s: float = 15.0,
        renew_deadline_s: float = 10.0,
        retry_s: float = 2.0,
    ) -> None:
        if not duration_s > renew_deadline_s > retry_s > 0:
            raise UsageError("A lease needs duration_s > renew_deadline_s > retry_s > 0.")
        if not identity:
            raise UsageError("Who competes for a lease needs an identity.")
        self.namespace, self.name, self.identity = namespace, name, identity
        self._client = client
        self._duration_s, self._deadline_s, self._retry_s = duration_s, renew_deadline_s, retry_s
        self._observed: Observed | None = None
        self._leading = False
        self._problem = ""
        self._held = client.figures.leading.labels(f"{namespace}/{name}")
        self._losses = client.figures.lease_losses.labels(f"{namespace}/{name}")

    @property
    def leading(self) -> bool:
        return self._leading

    @property
    def holder(self) -> str:
        """Who holds the lease as far as this process knows; "" for nobody."""
        return self._observed.holder if self._observed else ""

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Compete until cancelled; while leading, run `lead()`, which is cancelled when the lease is lost.

        Ends when `lead()` returns or fails. The lease is given back only after `lead()` has ended.
        """
        while True:
            renewed = await self._acquire()
            self._set_leading(True)
            log.info("%s leads (%s/%s)", self.identity, self.namespace, self.name)
            work = asyncio.ensure_future(lead())
            keep = asyncio.create_task(self._keep(renewed), name=f"lease:{self.name}")
            lost = False
            try:
                await asyncio.wait({work, keep}, return_when=asyncio.FIRST_COMPLETED)
                lost = keep.done()
            finally:
                await _end(work)
                await _end(keep)
                self._set_leading(False)
                if not lost:
                    await self._release()
            if not lost:
                work.result()
                return
            self._losses.inc()
            log.error("%s has lost the lease %s/%s and has stopped what only a leader may do", self.identity, self.namespace, self.name)
            keep.result()
            if not work.cancelled() and (error := work.exception()) is not None:
                log.error("what only a leader may do ended with an error", exc_info=error)

    async def _acquire(self) -> float:
        """Try until the lease is ours. The moment before the request that made it so."""
        while True:
            asked = _now()
            if await self._attempt(asked + self._deadline_s):
                return asked
            await asyncio.sleep(self._retry_s * (1 + 0.2 * random.random()))

    async def _keep(self, renewed: float) -> None:
        """Renew until that fails for too long or another holds the lease; returns when it is lost."""
        while True:
            await asyncio.sleep(min(self._retry_s, max(renewed + self._deadline_s - _now(), 0.0)))
            asked = _now()
            if asked < renewed + self._deadline_s and await self._attempt(renewed + self._deadline_s):
                renewed = asked
            if self.holder != self.identity or _now() >= renewed + self._deadline_s:
                return

    async def _attempt(self, until: float) -> bool:
        """Whether the lease is ours now; what keeps us from knowing is logged once."""
        try:
            async with asyncio.timeout_at(until):
                ours = await self._try()
        except (WorkbenchError, TimeoutError) as error:
            problem = str(error) or "no answer in time"
            if not self._problem:
                log.warning("the lease %s/%s can be neither read nor written: %s", self.namespace, self.name, problem)
            self._problem = problem
            return False
        self._problem = ""
        return ours

    async def _try(self) -> bool:
        """Read the lease and take or renew it if we may; whether it is ours now. Raises what the client raises."""
        try:
            lease = await self._client.get(LEASES, self.namespace, self.name)
        except ApiError as error:
            if not error.not_found:
                raise
            return await self._write(None, {})
        self._observed = observe(self._observed, lease, _now())
        if verdict(self._observed, self.identity, self._duration_s, _now()) == "wait":
            return False
        return await self._write(lease, self._observed.spec)

    async def _write(self, lease: Object | None, before: dict[str, Any]) -> bool:
        """Write our record over the very version that was read; False when somebody was faster."""
        spec = record(before, self.identity, self._duration_s, datetime.now(UTC))
        try:
            if lease is None:
                body = {"metadata": {"name": self.name, "namespace": self.namespace}, "spec": spec}
                stored = await self._client.create(LEASES, self.namespace, body)
            else:
                stored = await self._client.update(LEASES, self.namespace, {**lease, "spec": spec})
        except ApiError as error:
            if error.conflict or error.already_exists:
                return False
            raise
        self._observed = observe(self._observed, stored, _now())
        return True

    async def _release(self) -> None:
        """Give the lease back, so that the next leader need not wait; what fails here runs out by itself."""
        try:
            async with asyncio.timeout(self._retry_s):
                lease = await self._client.get(LEASES, self.namespace, self.name)
                spec = lease.get("spec") or {}
                if spec.get("holderIdentity") == self.identity and version_of(lease):
                    stamp = _micro_time(datetime.now(UTC))
                    given_back = {**spec, "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": stamp, "acquireTime": stamp}
                    await self._client.update(LEASES, self.namespace, {**lease, "spec": given_back})
        except (WorkbenchError, TimeoutError) as error:
            log.warning("the lease %s/%s was not given back and runs out by itself: %s", self.namespace, self.name, error)

    def _set_leading(self, leading: bool) -> None:
        self._leading = leading
        self._held.set(1 if leading else 0)


def _now() -> float:
    """The loop's clock: monotonic, and virtual in tests."""
    return asyncio.get_running_loop().time()


def _micro_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def _end(task: asyncio.Future[None]) -> None:
    """Cancel and wait, however often a library swallows the cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1.0)
