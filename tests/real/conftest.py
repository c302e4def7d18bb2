"""A real vLLM with the recorded tiny model, started once (40 to 80 seconds), and a simulated one of the same shape beside it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

MODEL = Path(__file__).resolve().parents[1] / "data" / "engines" / "tiny_model"
PYTHON = os.environ.get("WORKBENCH_REAL_ENGINE_PYTHON", "")
REAL_HOST, SIMULATED_HOST = "127.91.0.1", "127.91.0.2"
EVENTS = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": "tcp://*:5557", "replay_endpoint": "tcp://127.91.0.1:5568"}
START_TIMEOUT_S = 240


@dataclass(frozen=True)
class Engine:
    name: str
    host: str
    events: str
    replay: str

    @property
    def address(self) -> str:
        return f"{self.host}:8000"

    def post(self, path: str, **body: object) -> httpx.Response:
        return httpx.post(f"http://{self.address}{path}", json=body, timeout=60)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://{self.address}{path}", timeout=60)


def _started(command: list[str], engine: Engine, log: Path, env: dict[str, str]) -> Iterator[Engine]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **env}, start_new_session=True)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, f"{engine.name} is not ready: {log.read_text()[-2000:]}"
            try:
                if engine.get("/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield engine
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if not PYTHON or not Path(PYTHON).exists():
        pytest.skip("no real engine here: `make test-real` installs one")
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL), "--served-model-name", "tiny"]
    command += ["--host", REAL_HOST, "--port", "8000", "--dtype", "bfloat16", "--max-model-len", "512", "--block-size", "32"]
    command += ["--num-gpu-blocks-override", "64", "--max-num-seqs", "8", "--enforce-eager", "--enable-prefix-caching"]
    command += ["--enable-prompt-tokens-details", "--enable-server-load-tracking", "--kv-events-config", json.dumps(EVENTS)]
    env = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    env |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    engine = Engine("real", REAL_HOST, "tcp://127.0.0.1:5557", EVENTS["replay_endpoint"])  # type: ignore[arg-type]
    yield from _started(command, engine, tmp_path_factory.mktemp("real") / "vllm.log", env)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    import sys

    command = [sys.executable, "-m", "backend.simulate.engine", "--model", str(MODEL), "--served-model-name", "tiny"]
    command += ["--host", SIMULATED_HOST, "--port", "8000", "--max-model-len", "512", "--block-size", "32", "--num-blocks", "64"]
    command += ["--max-num-seqs", "8", "--hash-seed", "0", "--tokenizer", str(MODEL / "tokenizer.json"), "--speed", "100"]
    command += ["--kv-events", "tcp://*:5559", "--replay", f"tcp://{SIMULATED_HOST}:5560"]
    engine = Engine("simulated", SIMULATED_HOST, f"tcp://{SIMULATED_HOST}:5559", f"tcp://{SIMULATED_HOST}:5560")
    yield from _started(command, engine, tmp_path_factory.mktemp("simulated") / "engine.log", {})
