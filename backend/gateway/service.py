"""What all requests of one worker share: the fleet, counts, index, tokenizer, records; and the clock that ends what takes too long.

One sweep a few times a second looks at every connection, instead of a timer for each: a timer costs more than a request's parsing.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
from collections.abc import Coroutine
from functools import cached_property, partial
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

from backend.core.errors import ConfigError
from backend.core.metrics import Registry
from backend.core.settings import GatewaySettings
from backend.engines.base import EngineAdapter, adapter
from backend.gateway import answers, metrics, report
from backend.gateway.counts import Counts
from backend.gateway.fleet_table import GENERATION, FleetReader
from backend.gateway.policies import POLICIES, Policy
from backend.gateway.prefix import Prefix
from backend.gateway.records import RecordPublisher
from backend.gateway.request import RequestHead
from backend.gateway.series import Counters
from backend.gateway.targets import Candidates, Targets
from backend.gateway.tokens import Tokenizer

if TYPE_CHECKING:
    from backend.gateway.exchange import Exchange
    from backend.gateway.server import ClientConnection

log = logging.getLogger(__name__)

SETTLE_S = 0.05
SETTLE_AT = 512
"""Finished requests wait for their record this long, or until there are so many."""


class Gateway:
    """One worker's state. `folder` holds the shared files; `prefix` may be replaced by tests."""

    def __init__(self, settings: GatewaySettings, folder: Path, row: int, *, prefix: Prefix | None = None) -> None:
        self.settings = settings
        self.folder = folder
        self.row = row
        self.default_policy = policy_named(settings.routing.policy)
        self.counts = Counts(folder)
        self.counts.claim(row)
        self.rows: list[int] = [row]
        self.counters = Counters(folder, row)
        self.fleet = FleetReader(folder)
        self.targets = Targets()
        self.prefix = prefix or Prefix(settings.shared)
        self.tokenizer = Tokenizer(timeout_s=settings.routing.tokenize_timeout_s, connect_timeout_s=settings.limits.connect_timeout_s)
        settled = partial(metrics.count_hit, self.counters)
        self.records = RecordPublisher(settings.records, row, lost=self.count_lost_records, counters=self.prefix.counters, settled=settled)
        self.clients: set[ClientConnection] = set()
        self.known_heads: dict[bytes, RequestHead] = {}
        """Heads of requests as the parser read them, by their bytes: see `server`."""
        self.draining = False
        self._finished: list[Exchange] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._chance = random.Random()
        self.random = self._chance.random
        self._id_end = b""
        self._ids = 0
        self.policy_settings = {name: policy.settings(settings.routing) for name, policy in POLICIES.items()}
        self._key = f"Bearer {settings.auth_token}".encode() if settings.auth_token else b""
        self.needs_key = bool(self._key)
        self.avoiding = False
        """Some pod refused a connection a moment ago: see `preferred`."""
        self.refresh_fleet()

    # --- for requests ---

    def refresh_fleet(self) -> None:
        """One comparison when nothing changed."""
        if self.fleet.words[GENERATION] == self.targets.generation:
            return
        read = self.fleet.read()
        if read is not None:
            self.targets.update(*read)

    def new_request_id(self) -> bytes:
        """A version 4 UUID. Its last 90 bits are drawn once for many requests, its first 32 never repeat until they are drawn again;
        the factor only makes neighbours look unlike each other."""
        if not self._ids & 0xFFFF_FFFF:
            digits = f"{self._chance.getrandbits(92):023x}"
            variant = "89ab"[self._chance.getrandbits(2)]
            self._id_end = f"-{digits[:4]}-4{digits[4:7]}-{variant}{digits[7:10]}-{digits[10:22]}".encode()
        self._ids += 1
        return b"%08x%b" % (self._ids * 0x9E3779B1 & 0xFFFF_FFFF, self._id_end)

    def new_room(self) -> int:
        """For the two legs of one request to meet in: 63 random bits."""
        return self._chance.getrandbits(63)

    def check_key(self, authorization: bytes) -> None:
        if self._key and not hmac.compare_digest(authorization, self._key):
            raise answers.bad_api_key()

    def preferred(self, candidates: Candidates) -> Candidates:
        """Without pods that refused a connection a moment ago, as long as others are left."""
        now = asyncio.get_running_loop().time()
        refusing = [pod.name for pod in candidates.pods if pod.pool.avoid_until > now]
        if not refusing or len(refusing) == len(candidates.pods):
            return candidates
        return candidates.without(refusing)

    def adapter(self, engine: str) -> EngineAdapter:
        return adapter(engine)

    def spawn(self, body: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """A task of a request; it answers its own errors, here it is only kept from being collected."""
        task = asyncio.get_running_loop().create_task(body)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of a request died", exc_info=error)

    # --- what remains of requests ---

    def note_finished(self, exchange: Exchange) -> None:
        """Its record and counters are made a moment later together with others', off the path of the answer."""
        finished = self._finished
        finished.append(exchange)
        if len(finished) == 1:
            asyncio.get_running_loop().call_later(SETTLE_S, self.settle)
        elif len(finished) >= SETTLE_AT:
            self.settle()

    def settle(self) -> None:
        """Make records and counters of the requests that have finished since the last time."""
        finished, self._finished = self._finished, []
        if finished:
            report.settle(self, finished)

    # --- counting ---

    def count_retry(self, reason: str) -> None:
        self.counters.add(("retry", reason))
        self.avoiding = True

    def count_prefill(self, model: str, status: str, code: int) -> None:
        """A prefill leg that ended: `status` is ok or the kind of its failure."""
        self.counters.add(("prefill", model, status, str(code)))

    def count_routing_error(self, reason: str) -> None:
        self.counters.add(("routing_error", reason))

    def count_ignored_headers(self, names: tuple[str, ...]) -> None:
        for name in names:
            self.counters.add(("ignored_header", name))

    def count_malformed(self) -> None:
        self.counters.add(("malformed",))

    def count_lost_records(self, number: int) -> None:
        self.counters.add(("records_dropped",), number)

    @cached_property
    def registry(self) -> Registry:
        return Registry()

    @cached_property
    def registry_view(self) -> metrics.GatewayCollector:
        return metrics.GatewayCollector(self.registry)

    def render_metrics(self) -> bytes:
        self.settle()
        return metrics.render(self)

    # --- time ---

    def tick_s(self) -> float:
        limits = self.settings.limits
        shortest = min(limits.header_timeout_s, limits.first_byte_timeout_s, limits.idle_timeout_s, limits.keepalive_s)
        return min(0.5, max(0.01, shortest / 4))

    async def sweep(self) -> None:
        """End what takes too long, forget idle connections that have aged, and see workers come and go."""
        loop = asyncio.get_running_loop()
        tick = self.tick_s()
        while True:
            await asyncio.sleep(tick)
            now, loop_now = perf_counter(), loop.time()
            for client in list(self.clients):
                client.check_time(now)
            self.avoiding = False
            for pool in self.targets.pools.values():
                pool.drop_aged(monotonic())
                self.avoiding |= pool.avoid_until > loop_now
            self.rows = self.counts.used_rows() or [self.row]
            self.refresh_fleet()

    async def drain(self, timeout_s: float) -> None:
        """Take no new requests, wait for those under way, then end what is left."""
        self.draining = True
        for client in list(self.clients):
            client.close_if_idle()
        deadline = perf_counter() + timeout_s
        while True:
            if not self.clients or perf_counter() > deadline:
                break
            await asyncio.sleep(0.02)
        for client in list(self.clients):
            client.abort()

    async def close(self) -> None:
        """After `drain`: records out, shared rows free. A hard end of connections needs one turn of the loop to be told."""
        await asyncio.sleep(0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.settle()
        await self.records.flush(1.0)
        for pool in self.targets.pools.values():
            pool.close()
            for connection in list(pool.open):
                connection.transport.abort()
        self.counts.release()
        self.counts.close()
        self.counters.close()
        self.fleet.close()


def policy_named(name: str) -> Policy:
    policy = POLICIES.get(name)
    if policy is None:
        raise ConfigError(f"is {name!r}", field="routing.policy", fix=f"Choose one of: {', '.join(sorted(POLICIES))}.")
    return policy
