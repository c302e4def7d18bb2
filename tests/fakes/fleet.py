"""Fleets and requests for policies, and a whole gateway worker inside the test's own loop, on real sockets."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from backend.api.decisions import DecisionRecord
from backend.api.fleet import Pod
from backend.core.errors import NotFound
from backend.core.settings import GatewaySettings, LimitSettings, RoutingSettings
from backend.gateway.counts import Counts
from backend.gateway.fleet_table import FleetTable
from backend.gateway.model import FleetView, PairView, RequestView
from backend.gateway.prefix import Prefix, PrefixReader
from backend.gateway.server import ClientConnection
from backend.gateway.service import Gateway
from backend.kvindex.tokens import parse_token_array
from tests.fakes.upstream import FakeEngine

MODEL = "m"


def fleet(in_flight: Sequence[int]) -> FleetView:
    return FleetView(candidates=[f"pod-{index}" for index in range(len(in_flight))], in_flight=list(in_flight))


def request(matched_tokens: Sequence[int] | None = None, random: float = 0.0, index_problem: str = "") -> RequestView:
    return RequestView(
        random=random,
        matched_tokens=None if matched_tokens is None else list(matched_tokens),
        index_problem=index_problem,
        prompt_tokens=128,
    )


class FakeIndex:
    """What the prefix index would answer: matched tokens by pod, for every prompt alike."""

    def __init__(self, matched: dict[str, int], *, block_size: int = 16) -> None:
        self.matched = matched
        self.names = tuple(matched)
        self.size = block_size
        self.stored = self.removed = 0
        self.now = "live"
        self.asked: list[list[int]] = []

    def state(self) -> Any:
        return self.now

    def lookup(self, pods: Sequence[str]) -> FakeLookup:
        return FakeLookup(self, pods)

    def counters(self, pod: str) -> tuple[int, int]:
        return self.stored, self.removed


class FakeLookup:
    def __init__(self, index: FakeIndex, pods: Sequence[str]) -> None:
        self.index = index
        self.pods = pods

    def match(self, tokens: Any, model: str = "") -> tuple[Sequence[str], list[int]]:
        self.index.asked.append([int(token) for token in tokens])
        return self.pods, [self.index.matched.get(name, 0) for name in self.pods]

    def match_text(self, text: bytes, start: int, end: int, model: str = "") -> tuple[list[int], int]:
        tokens = parse_token_array(text, start, end)
        return self.match(tokens, model)[1], len(tokens)

    def source(self, place: int) -> tuple[int, int, int]:
        return self.index.size, self.index.stored, self.index.removed


def no_index(folder: Path) -> PrefixReader:
    raise NotFound("there is no index")


class Running:
    """A worker that listens."""

    def __init__(self, gateway: Gateway, port: int, table: FleetTable) -> None:
        self.gateway = gateway
        self.port = port
        self.table = table
        self.put: list[DecisionRecord] = []

    @property
    def records(self) -> list[DecisionRecord]:
        """Of every request finished until now."""
        self.gateway.settle()
        return self.put

    def set_pods(self, pods: Iterable[Pod]) -> None:
        self.table.write(list(pods))

    async def record(self, number: int = 0) -> DecisionRecord:
        """Waits for the record: it is written after the answer has gone out."""
        for _ in range(400):
            if len(self.records) > number:
                return self.records[number]
            await asyncio.sleep(0.005)
        raise AssertionError(f"there are only {len(self.records)} records")

    def in_flight(self) -> int:
        return sum(self.gateway.counts.in_flight(range(64), range(32)))


def pod(engine: FakeEngine, /, *, ready: bool = True, model: str = MODEL, **more: Any) -> Pod:
    state = "ready" if ready else "unready"
    return Pod(name=engine.name, ip=engine.host, port=engine.port, model=model, ready=ready, state=state, **more)


def pairs(prefill: Sequence[tuple[str, int]], decode: Sequence[tuple[str, int]]) -> PairView:
    """Candidates as (groups with blanks between, requests under way), named p-0, p-1, ... and d-0, d-1, ..."""
    return PairView(
        candidates=[f"d-{at}" for at in range(len(decode))],
        in_flight=[load for _, load in decode],
        groups=[group.split() for group, _ in decode],
        prefill=FleetView([f"p-{at}" for at in range(len(prefill))], [load for _, load in prefill]),
        prefill_groups=[group.split() for group, _ in prefill],
    )


@asynccontextmanager
async def running_gateway(
    folder: Path,
    pods: Iterable[Pod],
    *,
    policy: str = "least-request",
    index: PrefixReader | None = None,
    limits: LimitSettings | None = None,
    change: Callable[[GatewaySettings], GatewaySettings] | None = None,
) -> AsyncIterator[Running]:
    """One worker over `pods`; afterwards no request is counted and no connection is left open."""
    settings = GatewaySettings(routing=RoutingSettings(policy=policy), limits=limits or LimitSettings(drain_s=0.5), shared=folder)
    settings = change(settings) if change else settings
    counts = Counts(folder, create=True)
    table = FleetTable(folder)
    table.write(list(pods))
    prefix = Prefix(folder, opener=no_index if index is None else lambda _: index)
    gateway = Gateway(settings, folder, 0, prefix=prefix)
    server = await asyncio.get_running_loop().create_server(lambda: ClientConnection(gateway), "127.0.0.1", 0)
    running = Running(gateway, server.sockets[0].getsockname()[1], table)
    gateway.records.put = running.put.append  # type: ignore[method-assign]
    sweep = asyncio.create_task(gateway.sweep())
    try:
        yield running
    finally:
        sweep.cancel()
        await asyncio.gather(sweep, return_exceptions=True)
        server.close()
        await gateway.drain(settings.limits.drain_s)
        await asyncio.sleep(0)
        left = running.in_flight()
        await gateway.close()
        table.close()
        counts.close()
        assert left == 0, f"{left} requests are still counted"


def limits(**changes: Any) -> LimitSettings:
    return dataclasses.replace(LimitSettings(drain_s=0.5), **changes)
