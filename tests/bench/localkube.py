"""`python -m tests.bench.localkube`: the laptop's API server as a process of its own: ready time, creates and status patches a second.

A raw asyncio client over TLS keeps `--connections` requests in flight, so the server is what is measured. Everything is written to
sqlite as in normal use. Writes bench-results/localkube.json and prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"ready_s": 0.7, "creates_per_s": 800.0, "status_patches_per_s": 2000.0}
PODS = "/api/v1/namespaces/default/pods"


class Client:
    """One keep-alive connection."""

    def __init__(self, port: int, token: str, tls: ssl.SSLContext) -> None:
        self._port, self._tls = port, tls
        self._head = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._tls)

    async def call(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> bytes:
        head = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        status = int(answer[9:12])
        length = next(int(line[15:]) for line in answer.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        content = await self._reader.readexactly(length)
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {content[:300]!r}")
        return content


def pod(name: str) -> bytes:
    """About 1.2 KB, as a controller sends it."""
    env = [{"name": f"VARIABLE_{index}", "value": "value-of-some-length"} for index in range(10)]
    container = {
        "name": "engine", "image": "vllm/vllm-openai:v0.11.0", "args": ["--model", "llama-8b", "--port", "8000"], "env": env,
        "ports": [{"containerPort": 8000, "name": "http"}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
        "resources": {"limits": {"nvidia.com/gpu": "1", "cpu": "4", "memory": "16Gi"}},
    }  # fmt: skip
    labels = {"app": "bench", "role-name": "decode", "roleset-name": "roleset-0", "storm-service-name": "service"}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": {"containers": [container]}}
    return msgspec.json.encode(body)


def status(name: str, turn: int) -> bytes:
    container = {"name": "engine", "ready": True, "restartCount": turn, "image": "vllm/vllm-openai:v0.11.0", "imageID": "", "started": True}
    conditions = [{"type": kind, "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"} for kind in ("Ready", "ContainersReady")]
    state = {
        "phase": "Running",
        "podIP": "127.66.0.1",
        "message": f"{name} {turn}",
        "containerStatuses": [container],
        "conditions": conditions,
    }
    return msgspec.json.encode({"status": state})


async def together(clients: list[Client], calls: list[tuple[str, str, bytes, str]]) -> float:
    """Calls a second, with as many in flight as there are connections."""
    left = iter(calls)

    async def work(client: Client) -> None:
        for method, path, body, kind in left:
            await client.call(method, path, body, kind)

    started = time.perf_counter()
    await asyncio.gather(*(work(client) for client in clients))
    return len(calls) / (time.perf_counter() - started)


async def ready(process: subprocess.Popen[bytes], state: Path, started: float) -> tuple[list[Any], float]:
    """Host, port, token and TLS of the server, and the seconds until it answered /readyz."""
    file = state / "kubeconfig"
    while True:
        if process.poll() is not None:
            raise RuntimeError("the server ended")
        try:
            login = json.loads(file.read_text())
        except (FileNotFoundError, ValueError):
            await asyncio.sleep(0.005)
            continue
        cluster = login["clusters"][0]["cluster"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        found = [
            int(cluster["server"].rpartition(":")[2]),
            login["users"][0]["user"]["token"],
            ssl.create_default_context(cadata=authority),
        ]
        client = Client(*found)
        await client.open()
        await client.call("GET", "/readyz")
        return found, time.perf_counter() - started


def start(folder: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "backend.localkube.api", "--state", folder]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)


def rss_mb(pid: int) -> float:
    """Resident memory; 0 where the system has no /proc."""
    file = Path(f"/proc/{pid}/statm")
    return int(file.read_text().split()[1]) * 4096 / 2**20 if file.exists() else 0.0


async def measure(count: int, connections: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        started = time.perf_counter()
        process = start(folder)
        try:
            found, ready_s = await ready(process, state, started)
            clients = [Client(*found) for _ in range(connections)]
            for client in clients:
                await client.open()
            names = [f"pod-{index}" for index in range(count)]
            creates = await together(clients, [("POST", PODS, pod(name), "application/json") for name in names])
            merge = "application/merge-patch+json"
            patches = [("PATCH", f"{PODS}/{name}/status", status(name, turn), merge) for turn in range(3) for name in names]
            patched = await together(clients, patches)
            began = time.perf_counter()
            listed = await clients[0].call("GET", PODS)
            list_s = time.perf_counter() - began
            rss = rss_mb(process.pid)
        finally:
            process.terminate()
            process.wait(10)
    return {
        "ready_s": ready_s, "creates_per_s": creates, "status_patches_per_s": patched, "pods": count, "list_s": list_s,
        "list_mb": len(listed) / 1e6, "rss_mb": rss,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=8)
    given = parser.parse_args()
    found = asyncio.run(measure(given.pods, given.connections))
    results = ROOT / "bench-results"
    results.mkdir(exist_ok=True)
    (results / "localkube.json").write_text(json.dumps({"measured": found, "targets": TARGETS}, indent=2))
    for name, value in found.items():
        print(f"{name:22} {value:10.3f}" + (f"   target {TARGETS[name]:g}" if name in TARGETS else ""))


if __name__ == "__main__":
    main()
