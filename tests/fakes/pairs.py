"""A fleet of prefill and decode pods behind a gateway worker, for either way in which families share a request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.api.fleet import Pod
from tests.fakes.fleet import Running, pod, running_gateway
from tests.fakes.upstream import Blocks, FakeEngine, Rooms


@dataclass
class Fleet:
    gateway: Running
    engines: dict[str, FakeEngine]
    pods: dict[str, Pod]
    blocks: Blocks
    rooms: Rooms
    engine: str

    def __getitem__(self, name: str) -> FakeEngine:
        return self.engines[name]

    def partners(self) -> list[tuple[str, str]]:
        """Prefill and decode pod of each request whose blocks were taken over, in order."""
        if self.engine == "vllm":
            return self.blocks.fetched
        return [(first, second) if first.startswith("p") else (second, first) for first, second in self.rooms.inside.values()]

    def set_pods(self, *pods: Pod) -> None:
        self.gateway.set_pods(pods)

    def change(self, **ready: bool) -> None:
        """Readiness of pods by name."""
        for name, value in ready.items():
            self.pods[name].ready = value
        self.gateway.set_pods(self.pods.values())


@asynccontextmanager
async def disaggregated(
    folder: Path, engine: str, layout: Sequence[str], engines: Sequence[FakeEngine] = (), **gateway: Any
) -> AsyncIterator[Fleet]:
    """`layout` names the pods as `name@roleset@revision`, or by their names alone: p... are prefill, d... decode, others do both.
    `engines` are used instead of plain ones of their names."""
    blocks, rooms = Blocks(), Rooms()
    given = {one.name: one for one in engines}
    async with AsyncExitStack() as stack:
        running: dict[str, FakeEngine] = {}
        pods: dict[str, Pod] = {}
        for place in layout:
            name, roleset, revision = place.split("@") if "@" in place else (place, "rs", "r1")
            fake = running[name] = given.get(name) or FakeEngine(name)
            fake.blocks, fake.rooms = (blocks, None) if engine == "vllm" else (None, rooms)
            await stack.enter_async_context(fake)
            role = {"p": "prefill", "d": "decode"}.get(name[0], "")
            labels = {"role-name": role, "roleset-name": roleset, "storm-service-revision": revision} if role else {}
            pods[name] = pod(fake, engine=engine, labels=labels)
        worker = await stack.enter_async_context(running_gateway(folder, pods.values(), **gateway))
        yield Fleet(worker, running, pods, blocks, rooms, engine)
