"""A simulated engine inside the test's own loop, and a raw ZeroMQ subscriber to listen to it with."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import msgspec
import zmq
import zmq.asyncio

from backend.simulate.engine.model import CoreSettings, Sampler, Sequence
from backend.simulate.engine.publisher import PublisherSettings
from backend.simulate.engine.server import EngineServer
from backend.simulate.engine.settings import EngineSettings

_SUBNET = f"127.77.{os.getpid() % 250}"
HOST, OTHER_HOST = f"{_SUBNET}.1", f"{_SUBNET}.2"
"""Of this test process alone: some tests need a certain port, and several runs may share a machine."""
SMALL = CoreSettings(block_size=32, num_blocks=64, max_model_len=512, max_num_seqs=8)
"""The cache of the recorded engine."""


def always(token: int) -> Sampler:
    return lambda _: token


def in_order(tokens: Iterable[int]) -> Sampler:
    """Recorded output tokens, one after the other."""
    given = list(tokens)
    return lambda sequence: given[sequence.generated]


def sequence(tokens: Iterable[int], max_tokens: int = 1, **more: object) -> Sequence:
    return Sequence(request_id="", tokens=list(tokens), max_tokens=max_tokens, arrived_at=0.0, **more)  # type: ignore[arg-type]


@dataclass
class RunningEngine:
    server: EngineServer
    url: str
    client: httpx.AsyncClient

    async def complete(self, **body: object) -> dict:
        """A completion's answer; fails the test when it is refused."""
        response = await self.client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    async def stream(self, path: str, **body: object) -> list[str]:
        """The data lines of a streamed answer."""
        async with self.client.stream("POST", path, json={"stream": True, **body}) as response:
            assert response.status_code == 200
            return [line async for line in response.aiter_lines() if line]


@asynccontextmanager
async def running_engine(*, sampler: Sampler | None = None, events: bool = False, **settings: object) -> AsyncIterator[RunningEngine]:
    """An engine on a free port; with `events`, KV events and their replay on free ports too."""
    if events:
        settings.setdefault("kv_events", PublisherSettings(endpoint="tcp://*:0", replay_endpoint="tcp://*:0", host=HOST))
    given = {"host": HOST, "port": 0, "model": "tiny", "core": SMALL, "hash_seed": "0", "speed": 100.0, **settings}
    server = EngineServer(EngineSettings(**given), sampler=sampler)  # type: ignore[arg-type]
    await server.start()
    url = f"http://{server.settings.host}:{server.port}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            yield RunningEngine(server, url, client)
    finally:
        server.kill()
        await server.run()


class Listener:
    """A SUB that keeps every batch as raw frames, and a DEALER for replays."""

    def __init__(self, endpoint: str, *, bind: bool = False) -> None:
        self._context = zmq.asyncio.Context()
        self._sub = self._context.socket(zmq.SUB)
        self._sub.setsockopt(zmq.SUBSCRIBE, b"")
        if bind:
            self._sub.bind(endpoint)
        else:
            self._sub.connect(endpoint)

    async def batches(self, count: int, *, within: float = 5.0) -> list[list[bytes]]:
        return [await asyncio.wait_for(self._sub.recv_multipart(), within) for _ in range(count)]

    async def silent(self, seconds: float = 0.2) -> bool:
        return not await self._sub.poll(int(seconds * 1000))

    async def replay(self, endpoint: str, start: int) -> list[list[bytes]]:
        """All frames of a replay, its end marker included."""
        dealer = self._context.socket(zmq.DEALER)
        dealer.connect(endpoint)
        await dealer.send_multipart([b"", start.to_bytes(8, "big")])
        answers: list[list[bytes]] = []
        while not answers or answers[-1][-2] != b"\xff" * 8:
            answers.append(await asyncio.wait_for(dealer.recv_multipart(), 5))
        dealer.close(linger=0)
        return answers

    def close(self) -> None:
        self._context.destroy(linger=0)


@asynccontextmanager
async def listening(engine: RunningEngine) -> AsyncIterator[Listener]:
    """A listener that is known to be connected: PUB forgets what nobody has subscribed to yet."""
    assert engine.server.publisher is not None
    listener = Listener(engine.server.publisher.endpoint)
    await asyncio.sleep(0.15)
    try:
        yield listener
    finally:
        listener.close()


def free_ports(count: int, host: str = HOST) -> list[int]:
    """Ports that nobody listens on now; for what must be told a port before it opens it."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [probe.getsockname()[1] for probe in probes]


def events_of(payload: bytes) -> list:
    return msgspec.msgpack.decode(payload)[1]


async def until(condition: Callable[[], object], *, within: float = 5.0) -> bool:
    """Whether `condition` came true in time; for what a real process or socket does and nobody announces."""
    try:
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110  no event to wait for: that is what this helper is for
                await asyncio.sleep(0.005)
    except TimeoutError:
        return False
    return True
