"""What one simulated engine costs: `python -m tests.bench.engine`.

Start, memory, idle CPU, and CPU a scrape, a request and a streamed chunk, from the scheduler's own account of the process' threads
(/proc/PID/schedstat). Steps are those of the default GPU, so most of the time the engine sleeps between them and pays for waking up.
Results: a table, and `bench-results/engine.json`.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

HOST = "127.44.0.9"
ROOT = Path(__file__).resolve().parents[2]
IDLE_S = 5.0


def import_seconds(module: str) -> float:
    """Best of five fresh interpreters, their own start not counted."""
    script = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    return min(float(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout) for _ in range(5))


class Engine:
    """An engine process with KV events on, and one client connection to it."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "backend.simulate.engine", "--host", HOST, "--port", str(self.port), "--log-level", "WARNING"]
        events = ["--kv-events", "tcp://*:0", "--replay", "tcp://*:0", "--timeout-keep-alive", "600"]
        started = time.monotonic()
        self.process = subprocess.Popen([*command, *events])
        self.client = http.client.HTTPConnection(HOST, self.port, timeout=30)
        while not self._answers():
            time.sleep(0.01)
        self.start_s = time.monotonic() - started

    def _answers(self) -> bool:
        try:
            self.get("/health")
        except OSError:
            self.client.close()
            return False
        return True

    def get(self, path: str) -> bytes:
        self.client.request("GET", path)
        return self.client.getresponse().read()

    def complete(self, tokens: int, max_tokens: int, *, stream: bool = False, client: http.client.HTTPConnection | None = None) -> None:
        client = client or self.client
        body = {"prompt": [random.randrange(150_000) for _ in range(tokens)], "max_tokens": max_tokens, "stream": stream}
        client.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        client.getresponse().read()

    def many_streams(self, streams: int, tokens: int) -> None:
        def one() -> None:
            self.complete(3, tokens, stream=True, client=http.client.HTTPConnection(HOST, self.port, timeout=30))

        threads = [threading.Thread(target=one) for _ in range(streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def cpu_s(self) -> float:
        tasks = Path(f"/proc/{self.process.pid}/task")
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9

    def resident_mb(self) -> float:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    def microseconds(self, count: int, run: Callable[[], None]) -> float:
        """CPU of `run`, divided by `count`."""
        before = self.cpu_s()
        run()
        return (self.cpu_s() - before) / count * 1e6


def measure() -> dict[str, float]:
    figures = {"import_s": import_seconds("backend.simulate.engine.__main__")}
    engine = Engine()
    try:
        figures["ready_s"] = engine.start_s
        figures["resident_mb"] = engine.resident_mb()
        before = engine.cpu_s()
        time.sleep(IDLE_S)
        figures["idle_cpu_percent"] = (engine.cpu_s() - before) / IDLE_S * 100
        figures["scrape_us"] = engine.microseconds(100, lambda: [engine.get("/metrics") for _ in range(100)] and None)
        figures["request_400_tokens_us"] = engine.microseconds(100, lambda: [engine.complete(400, 1) for _ in range(100)] and None)
        figures["request_8000_tokens_us"] = engine.microseconds(20, lambda: [engine.complete(8000, 1) for _ in range(20)] and None)
        figures["chunk_one_stream_us"] = engine.microseconds(200, lambda: engine.complete(3, 200, stream=True))
        figures["chunk_32_streams_us"] = engine.microseconds(3200, lambda: engine.many_streams(32, 100))
        figures["resident_after_mb"] = engine.resident_mb()
    finally:
        stopped = time.monotonic()
        engine.process.terminate()
        engine.process.wait()
        figures["stop_s"] = time.monotonic() - stopped
    return figures


def main() -> None:
    figures = measure()
    for name, value in figures.items():
        print(f"{name:26}{value:12.3f}")
    folder = ROOT / "bench-results"
    folder.mkdir(exist_ok=True)
    (folder / "engine.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
