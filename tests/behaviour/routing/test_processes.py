"""The gateway as processes: workers and masters that are killed under load, an orderly end, records on a real stream.

Requests on the killed process' own connections may be reset; every other request is answered, and correctly."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import redis

from backend.core.processes import alive
from backend.history.records import decode_batch
from tests.fakes.raw_http import RawClient, ask, completion, get, post
from tests.fakes.upstream import FakeEngine
from tests.fakes.valkey import Valkey, free_port, valkey

__all__ = ["valkey"]


class Process:
    def __init__(self, folder: Path, port: int, engines: list[FakeEngine], redis_url: str = "") -> None:
        self.port = port
        self.log = folder / "gateway.log"
        pods = "".join(f'[[pods]]\nname = "{each.name}"\naddress = "{each.address}"\nmodel = "m"\n' for each in engines)
        self.config = folder / "gateway.toml"
        (folder / "shared").mkdir(exist_ok=True)
        self.config.write_text(
            f'shared = "{folder / "shared"}"\n[listen]\nport = {port}\nworkers = 2\n[limits]\ndrain_s = "1s"\n'
            f'[records]\nredis_url = "{redis_url}"\n{pods}'
        )
        self.running: subprocess.Popen[bytes]

    def spawn(self) -> int:
        """Times that the log said `ready` before."""
        with self.log.open("ab") as output:
            before = self.log.read_text().count(": ready")
            argv = [sys.executable, "-m", "backend.gateway", "--config", str(self.config)]
            self.running = subprocess.Popen(argv, stdout=output, stderr=output)
        return before

    async def start(self) -> None:
        before = self.spawn()
        await until(lambda: self.log.read_text().count(": ready") > before, self.log)

    def workers(self) -> list[int]:
        return children(self.running.pid)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


async def until(condition: Callable[[], object], log: Path, timeout_s: float = 30.0) -> None:
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        if condition():
            return
        assert asyncio.get_running_loop().time() < deadline, end_of(log)
        await asyncio.sleep(0.02)


def end_of(log: Path) -> str:
    return log.read_text()[-3000:]


@asynccontextmanager
async def processes(folder: Path, redis_url: str = "") -> AsyncIterator[tuple[Process, list[FakeEngine]]]:
    engines = [FakeEngine("a", delay_s=0.005), FakeEngine("b", delay_s=0.005)]
    for engine in engines:
        await engine.start()
    gateway = Process(folder, free_port(), engines, redis_url)
    await gateway.start()
    workers = gateway.workers()
    try:
        yield gateway, engines
    finally:
        workers += gateway.workers()
        gateway.running.terminate()
        assert await asyncio.to_thread(gateway.running.wait, 8) == 0, gateway.log.read_text()[-3000:]
        await until(lambda: not any(alive(worker) for worker in workers), gateway.log)
        for engine in engines:
            await engine.stop()


class Load:
    """Clients with a connection each, one request after the other; a reset connection is opened anew and counted."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answered = self.resets = 0
        self.wrong: list[object] = []
        self.stopping = False

    async def client(self) -> None:
        while not self.stopping:
            try:
                async with RawClient(self.port) as client:
                    while not self.stopping:
                        client.send(post(completion()))
                        answer = await client.answer()
                        if answer.status == 200 and answer.json()["choices"][0]["text"] == "hello":
                            self.answered += 1
                        else:
                            self.wrong.append(answer)
                        if answer.headers.get("connection") == "close":
                            break
            except (ConnectionError, asyncio.IncompleteReadError):
                self.resets += 1
                await asyncio.sleep(0.01)
            except TimeoutError as error:
                self.wrong.append(error)

    @asynccontextmanager
    async def running(self, clients: int) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.client()) for _ in range(clients)]
        try:
            yield
        finally:
            self.stopping = True
            await asyncio.gather(*tasks)


@pytest.mark.chaos
async def test_a_killed_worker_is_replaced_and_only_its_own_connections_are_reset(tmp_path: Path) -> None:
    async with processes(tmp_path) as (gateway, _):
        load = Load(gateway.port)
        async with load.running(8):
            await until(lambda: load.answered > 50, gateway.log)
            victim = gateway.workers()[0]
            os.kill(victim, signal.SIGKILL)
            await until(lambda: len(gateway.workers()) == 2 and victim not in gateway.workers(), gateway.log)
            then = load.answered
            await until(lambda: load.answered > then + 50, gateway.log)
        assert load.wrong == []
        assert load.resets <= 8
        text = (await metrics(gateway.port)).decode()
        assert "gateway_in_flight_requests 0.0" in text
        assert "gateway_worker_restarts_total 1.0" in text


@pytest.mark.chaos
async def test_workers_of_a_killed_master_serve_on_until_the_next_ones_are_ready(tmp_path: Path) -> None:
    async with processes(tmp_path) as (gateway, _):
        load = Load(gateway.port)
        async with load.running(8):
            await until(lambda: load.answered > 50, gateway.log)
            orphans = gateway.workers()
            gateway.running.kill()
            gateway.running.wait()
            then = load.answered
            await until(lambda: load.answered > then + 50, gateway.log)
            await gateway.start()
            await until(lambda: not any(alive(orphan) for orphan in orphans), gateway.log)
            then = load.answered
            await until(lambda: load.answered > then + 50, gateway.log)
        assert load.wrong == []
        assert load.resets <= 8
        assert "gateway_in_flight_requests 0.0" in (await metrics(gateway.port)).decode()


async def metrics(port: int) -> bytes:
    async with RawClient(port) as client:
        client.send(get("/metrics"))
        return (await client.answer()).body


async def test_an_orderly_end_lets_a_stream_finish(tmp_path: Path) -> None:
    async with processes(tmp_path) as (gateway, engines):
        for engine in engines:
            engine.gap_s, engine.chunks = 0.02, 20
        async with RawClient(gateway.port) as client:
            client.send(post(completion(stream=True)))
            await client.head()
            gateway.running.terminate()
            assert (await client.ended(5)).endswith(b"0\r\n\r\n")


async def test_every_record_reaches_the_stream_even_over_a_restart_of_its_server(tmp_path: Path, valkey: Valkey) -> None:
    async with processes(tmp_path, valkey.url) as (gateway, _):
        server = redis.Redis.from_url(valkey.url)

        def arrived() -> set[str]:
            try:
                entries = server.xrange("workbench:decisions")
            except redis.exceptions.RedisError:
                return set()
            return {record.id for _, fields in entries for record in decode_batch(fields)}

        first = [(await ask(gateway.port, completion())).headers["request-id"] for _ in range(20)]
        await until(lambda: set(first) <= arrived(), gateway.log)
        valkey.kill()
        second = [(await ask(gateway.port, completion())).headers["request-id"] for _ in range(20)]
        await until(lambda: "decision records cannot be sent" in gateway.log.read_text(), gateway.log)
        valkey.start()
        third = [(await ask(gateway.port, completion())).headers["request-id"] for _ in range(5)]
        wanted = set(first + second + third)
        await until(lambda: wanted <= arrived(), gateway.log)
        server.close()


def start_only(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "backend.gateway", "--config", str(config)], capture_output=True, text=True, timeout=30)


def test_a_taken_port_is_said_in_one_line(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = tmp_path / "gateway.toml"
        config.write_text(f"[listen]\nport = {port}\n")
        ended = start_only(config)
    assert ended.returncode == 1
    assert f"127.0.0.1:{port} is taken" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("text", "named"), [("[routing]\npolicy = 'magic'\n", "routing.policy"), ("[listen]\nport = 'x'\n", "port"), ("[[pods]]\n", "pods")]
)
def test_a_wrong_configuration_is_named(tmp_path: Path, text: str, named: str) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(text)
    ended = start_only(config)
    assert ended.returncode == 2
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr


def test_settings_reach_workers_unchanged(tmp_path: Path) -> None:
    from backend.core.settings import GatewaySettings, PodSettings
    from backend.gateway.worker import decode_settings, encode_settings

    settings = GatewaySettings(shared=tmp_path, pods=(PodSettings(name="a", address="h:1", model="m", labels={"x": "y"}),))
    assert decode_settings(encode_settings(settings)) == settings
    assert msgspec.json.decode(encode_settings(settings))["shared"] == str(tmp_path)
