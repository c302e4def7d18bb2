"""The simulated engine as a process: when its port opens, how it ends, what it says when it cannot start."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from backend.core.life import LifePipe
from tests.fakes.engines import until

HOST = "127.77.0.3"
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 500, "stream": True}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class Process:
    """An engine process; its output is kept for messages."""

    def __init__(self, *options: str, port: int | None = None, life: LifePipe | None = None) -> None:
        self.port = free_port() if port is None else port
        self.url = f"http://{HOST}:{self.port}"
        command = [sys.executable, "-m", "backend.simulate.engine", "--host", HOST, "--port", str(self.port), "--model", "tiny", *options]
        environment = dict(os.environ) if life is None else life.env()
        fds = () if life is None else (life.read_fd,)
        self.popen = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, pass_fds=fds, text=True)

    async def ready(self) -> None:
        async with httpx.AsyncClient() as client:
            for _ in range(400):
                try:
                    if (await client.get(f"{self.url}/health")).status_code == 200:
                        return
                except httpx.TransportError:
                    await asyncio.sleep(0.02)
        raise AssertionError("the engine did not become ready")

    async def ended(self, within: float) -> int:
        return await asyncio.wait_for(asyncio.to_thread(self.popen.wait), within)


@asynccontextmanager
async def engine(*options: str, **more):
    process = Process(*options, **more)
    try:
        await process.ready()
        yield process
    finally:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.communicate()


async def read_stream(client, url, body, first_token: asyncio.Event) -> list[str]:
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        lines = []
        async for line in response.aiter_lines():
            if line:
                lines.append(line)
                first_token.set()
        return lines


def reasons(lines):
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]
    return [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]


async def test_sigterm_ends_running_streams_with_abort_and_the_process_with_zero():
    async with engine() as process, httpx.AsyncClient(timeout=20) as client:
        begun = asyncio.Event()
        stream = asyncio.create_task(read_stream(client, process.url, CHAT, begun))
        await asyncio.wait_for(begun.wait(), 5)
        process.popen.send_signal(signal.SIGTERM)
        lines = await stream
        assert await process.ended(2) == 0
    assert (reasons(lines), lines[-1]) == (["abort"], "data: [DONE]")


async def test_with_a_shutdown_timeout_running_requests_finish_and_new_ones_get_abort_and_no_token():
    async with engine("--shutdown-timeout", "20") as process, httpx.AsyncClient(timeout=20) as client:
        begun = asyncio.Event()
        stream = asyncio.create_task(read_stream(client, process.url, {**CHAT, "max_tokens": 80}, begun))
        await asyncio.wait_for(begun.wait(), 5)
        process.popen.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        health = await client.get(f"{process.url}/health")
        refused = (await client.post(f"{process.url}/v1/completions", json={"prompt": "a", "max_tokens": 5})).json()
        lines = await stream
        assert await process.ended(5) == 0
    assert health.status_code == 200
    assert (refused["choices"][0]["finish_reason"], refused["usage"]["completion_tokens"]) == ("abort", 0)
    assert reasons(lines) == ["length"]


async def test_a_new_stream_while_draining_ends_at_once():
    async with engine("--shutdown-timeout", "20") as process, httpx.AsyncClient(timeout=20) as client:
        begun = asyncio.Event()
        running = asyncio.create_task(read_stream(client, process.url, {**CHAT, "max_tokens": 80}, begun))
        await asyncio.wait_for(begun.wait(), 5)
        process.popen.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        lines = await read_stream(client, process.url, CHAT, asyncio.Event())
        await running
    assert (reasons(lines), lines[-1]) == (["abort"], "data: [DONE]")


async def test_the_drain_is_not_longer_than_its_timeout():
    async with engine("--shutdown-timeout", "0.5") as process, httpx.AsyncClient(timeout=20) as client:
        begun = asyncio.Event()
        stream = asyncio.create_task(read_stream(client, process.url, CHAT, begun))
        await asyncio.wait_for(begun.wait(), 5)
        process.popen.send_signal(signal.SIGTERM)
        assert await process.ended(3) == 0
        assert reasons(await stream) == ["abort"]


async def test_the_end_of_the_parent_ends_it_at_once_also_while_requests_run():
    life = LifePipe()
    async with engine("--shutdown-timeout", "20", life=life) as process, httpx.AsyncClient(timeout=20) as client:
        begun = asyncio.Event()
        stream = asyncio.create_task(read_stream(client, process.url, CHAT, begun))
        await asyncio.wait_for(begun.wait(), 5)
        life.close()
        assert await process.ended(2) == 0
        assert reasons(await stream) == ["abort"]


@pytest.mark.parametrize("family", ["vllm", "sglang"])
async def test_two_processes_make_a_pair(family):
    """The command line as fleets use it: a prefill and a decode, the exchange of their family between them."""
    more = ("--disaggregation-bootstrap-port", str(free_port())) if family == "sglang" else ()
    asked = {"prompt": list(range(200)), "max_tokens": 5}
    async with (
        engine("--engine", family, "--role", "prefill", *more) as prefill,
        engine("--engine", family, "--role", "decode", "--no-health-generates") as decode,
        httpx.AsyncClient(timeout=20) as client,
    ):
        if family == "sglang":
            asked |= {"bootstrap_host": HOST, "bootstrap_port": int(more[1]), "bootstrap_room": 2**62}
            first = asyncio.create_task(client.post(f"{prefill.url}/v1/completions", json=asked))
        else:
            ask = {**asked, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
            asked["kv_transfer_params"] = (await client.post(f"{prefill.url}/v1/completions", json=ask)).json()["kv_transfer_params"]
            first = None
        answer = (await client.post(f"{decode.url}/v1/completions", json=asked)).json()
        assert first is None or (await first).status_code == 200
        text = (await client.get(f"{decode.url}/metrics")).text
    assert answer["usage"]["completion_tokens"] == 5
    assert re.search(r"(nixl_xfer_time_seconds|kv_transfer_latency_ms)_count\{.*\} 1.0", text)


async def test_a_drained_sglang_finishes_what_runs():
    async with engine("--engine", "sglang", "--no-health-generates") as process, httpx.AsyncClient(timeout=20) as client:
        begun = asyncio.Event()
        stream = asyncio.create_task(read_stream(client, process.url, {**CHAT, "max_tokens": 80}, begun))
        await asyncio.wait_for(begun.wait(), 5)
        process.popen.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        assert (await client.get(f"{process.url}/health")).status_code == 503
        lines = await stream
        assert await process.ended(5) == 0
    assert reasons(lines) == ["length"]


async def test_the_port_opens_only_when_the_start_is_over():
    started = time.monotonic()
    async with engine("--startup-delay", "1"):
        assert time.monotonic() - started > 1


def catches_sigterm(pid: int) -> bool:
    """A process that is still being imported does not; where /proc does not tell, nobody knows."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return False
    (caught,) = re.findall(r"SigCgt:\s*([0-9a-f]+)", status.read_text())
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


async def test_a_start_can_be_interrupted():
    process = Process("--startup-delay", "60")
    await until(lambda: catches_sigterm(process.popen.pid))
    process.popen.send_signal(signal.SIGTERM)
    assert await process.ended(2) == 0
    process.popen.communicate()


REFUSED = [
    (["--num-blocks", "10"], 2, "would not fit into the KV cache"),
    (["--version", "newest"], 2, "not a version"),
    (["--version", "0.8.5", "--kv-events", "tcp://*:0"], 2, "from 0.9 on"),
    (["--replay", "tcp://*:0"], 2, "needs --kv-events"),
    (["--tokenizer", "/does/not/exist.json"], 2, "no such file"),
    (["--kv-events", "somewhere"], 2, "is not an endpoint"),
    (["--engine", "sglang", "--version", "0.4.9", "--kv-events", "tcp://*:0"], 2, "from 0.4.10 on"),
]


@pytest.mark.parametrize(("options", "code", "words"), REFUSED, ids=[" ".join(case[0][-2:]) for case in REFUSED])
async def test_what_cannot_be_is_one_message_and_no_traceback(options, code, words):
    process = Process(*options)
    assert await process.ended(5) == code
    errors = process.popen.communicate()[1]
    assert words in errors
    assert "Traceback" not in errors


async def test_a_taken_port_is_named():
    async with engine() as first:
        second = Process(port=first.port)
        assert await second.ended(5) == 1
        assert f"{HOST}:{first.port} is taken" in second.popen.communicate()[1]


def test_an_engine_loads_no_heavy_package():
    """Dozens of engines share a laptop; what one of them imports is paid by each."""
    heavy = ("numpy", "numba", "aiohttp", "pandas", "polars", "prometheus_client", "jinja2", "tokenizers", "httpx", "panel")
    script = f"import sys, backend.simulate.engine.__main__ as _; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="a real engine's memory is read from /proc")
async def test_an_engine_of_a_laptops_fleet_stays_below_45_mb():
    async with engine("--kv-events", "tcp://*:0", "--replay", "tcp://*:0") as process, httpx.AsyncClient(timeout=20) as client:
        for start in range(5):
            prompt = list(range(start * 10_000, start * 10_000 + 4000))
            await client.post(f"{process.url}/v1/completions", json={"prompt": prompt, "max_tokens": 2})
        pages = Path(f"/proc/{process.popen.pid}/statm").read_text().split()[1]  # noqa: ASYNC240  memory, not a disk
    resident = int(pages) * os.sysconf("SC_PAGESIZE")
    assert resident < 45 * 2**20
