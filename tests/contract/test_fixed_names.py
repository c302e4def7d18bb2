"""The names that others rely on: Python interfaces, parts that run alone, headers, shapes of the control API. Nothing here is a detail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from backend.kvindex import PrefixIndex, decode_batch
from tests.fakes import ports

STORED = {"type": "BlockStored", "block_hashes": [11, 12], "parent_block_hash": None, "token_ids": list(range(32)), "block_size": 16}
STORED |= {"lora_id": None, "medium": "GPU", "lora_name": None}
ACTING = ["plan", "apply", "scale", "pause", "resume", "abort", "undo"]
BATCH = msgspec.msgpack.encode([1.5, [STORED, {"type": "BlockRemoved", "block_hashes": [12], "medium": "GPU"}], 0])


@contextmanager
def part(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", *words], stdin=subprocess.DEVNULL, env=os.environ)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def answered(url: str, *, within_s: float = 60.0) -> httpx.Response:
    """The first 200 from `url`."""
    give_up = time.monotonic() + within_s
    while True:
        try:
            response = httpx.get(url, timeout=5)
            if response.status_code == 200:
                return response
        except httpx.TransportError:
            pass
        assert time.monotonic() < give_up, f"{url} does not answer"
        time.sleep(0.05)


def test_an_index_takes_payloads_and_matches_tokens() -> None:
    index = PrefixIndex(1024)
    told = index.ingest("pod-a", BATCH, model="m", rank=0, domain=None)
    assert (told.stored, told.removed, told.cleared, told.skipped) == (2, 1, 0, 0)
    assert dict(index.match(list(range(40)), model="m", lora=None, salt=None, pods=None)) == {"pod-a": 16}
    assert index.match(list(range(40)), model="other") == {}
    assert np.asarray(index.map(8)).shape == (1, 8)
    assert index.stats() is not None
    index.clear("pod-a")
    assert index.match(list(range(40)), model="m") == {}
    index.remove_pod("pod-a")


def test_an_index_in_a_folder_is_read_by_another_one(tmp_path: Path) -> None:
    writer = PrefixIndex(1024, path=tmp_path)
    writer.ingest("pod-a", BATCH, model="m")
    assert PrefixIndex.open(tmp_path).match(list(range(40)), model="m") == {"pod-a": 16}


def test_a_batch_decodes_to_events_with_the_agreed_fields() -> None:
    batch = decode_batch(BATCH)
    stored, removed = batch.events
    assert (batch.timestamp, batch.rank) == (1.5, 0)
    assert (stored.kind, stored.block_hashes, stored.parent_hash, stored.block_size) == ("stored", [11, 12], None, 16)
    assert (list(stored.token_ids), stored.medium, stored.lora_name, stored.extra_keys) == (list(range(32)), "GPU", None, None)
    assert (removed.kind, removed.block_hashes) == ("removed", [12])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Engine, index and gateway started by hand from configuration files: no Kubernetes, no Redis, no control."""
    folder = tmp_path_factory.mktemp("alone")
    base = ports.free_base(folder)
    pods = f'[[pods]]\nname = "engine-0"\naddress = "127.0.0.1:{base}"\nmodel = "m"\nengine = "vllm"\nlabels = {{ tier = "chat" }}\n'
    shared = f'shared = "{folder}"\n'
    (folder / "gateway.toml").write_text(
        f'{shared}[listen]\nhost = "127.0.0.1"\nport = {base + 1}\nworkers = 1\n[routing]\npolicy = "prefix-cache"\n{pods}'
    )
    (folder / "kvindex.toml").write_text(f"{shared}[listen]\nport = {base + 2}\n{pods}")
    engine = ["backend.simulate.engine", "--engine", "vllm", "--version", "0.32.0", "--role", "both", "--host", "127.0.0.1"]
    engine += ["--port", str(base), "--model", "m", "--block-size", "16", "--num-blocks", "16384", "--speed", "50"]
    engine += ["--kv-events", f"tcp://*:{base + 3}", "--replay", f"tcp://*:{base + 4}"]
    with (
        part(*engine),
        part("backend.kvindex", "--config", str(folder / "kvindex.toml")),
        part("backend.gateway", "--config", str(folder / "gateway.toml")),
    ):
        urls = {"engine": f"http://127.0.0.1:{base}", "gateway": f"http://127.0.0.1:{base + 1}", "kvindex": f"http://127.0.0.1:{base + 2}"}
        answered(urls["engine"] + "/health")
        answered(urls["gateway"] + "/healthz")
        answered(urls["kvindex"] + "/healthz")
        yield urls


def test_parts_run_alone_and_an_answer_names_its_pod(alone: dict[str, str]) -> None:
    body = {"model": "m", "prompt": list(range(100)), "max_tokens": 2}
    answer = httpx.post(alone["gateway"] + "/v1/completions", json=body, headers={"routing-strategy": "random"}, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.headers["routing-strategy"] == "random"
    assert answer.headers["target-pod"] == "engine-0"
    assert answer.headers["target-pod-ip"] == alone["engine"].removeprefix("http://")
    assert answer.headers["request-id"]


def test_the_index_alone_follows_its_engine(alone: dict[str, str]) -> None:
    httpx.post(alone["engine"] + "/v1/completions", json={"model": "m", "prompt": list(range(500, 600)), "max_tokens": 1}, timeout=30)
    give_up = time.monotonic() + 30
    while True:
        found = httpx.post(alone["kvindex"] + "/probe", json={"model": "m", "tokens": list(range(500, 600))}, timeout=30).json()
        if found["matches"]:
            break
        assert time.monotonic() < give_up, found
        time.sleep(0.05)
    assert [(match["pod"], match["matched_tokens"]) for match in found["matches"]] == [("engine-0", 96)]


def test_the_gateway_lists_models_and_metrics(alone: dict[str, str]) -> None:
    assert [model["id"] for model in httpx.get(alone["gateway"] + "/v1/models").json()["data"]] == ["m"]
    assert "gateway_" in httpx.get(alone["gateway"] + "/metrics").text


@pytest.mark.parametrize(
    ("body", "status", "header", "code"),
    [
        ({"model": "nope", "prompt": "x"}, 400, "x-error-no-model-backends", "model_not_found"),
        ({"model": "m", "prompt": 7}, 400, "x-error-request-body-processing", None),
    ],
    ids=["unknown_model", "bad_prompt"],
)
def test_refusals_carry_the_agreed_header_and_body(
    alone: dict[str, str], body: dict[str, object], status: int, header: str, code: str | None
) -> None:
    answer = httpx.post(alone["gateway"] + "/v1/completions", json=body)
    assert answer.status_code == status
    assert header in answer.headers
    assert set(answer.json()["error"]) == {"message", "type", "code", "param"}
    assert answer.json()["error"]["code"] == code


@pytest.mark.parametrize("module", ["backend.gateway", "backend.kvindex", "backend.control"])
def test_a_part_without_its_file_says_what_is_missing(module: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", module, "--config", "nowhere.toml"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 2
    assert "nowhere.toml" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("command", ["up", "down", "status", "replay", "explain", "probe", "report", *ACTING])
def test_a_command_of_the_workbench_exists(command: str) -> None:
    assert (
        subprocess.run([sys.executable, "-m", "workbench", command, "--help"], capture_output=True, timeout=60, check=False).returncode == 0
    )


def test_wrong_usage_ends_with_2_and_a_failure_with_1(tmp_path: Path) -> None:
    def code(*words: str) -> int:
        env = {**os.environ, "WORKBENCH_STATE": str(tmp_path)}
        return subprocess.run([sys.executable, "-m", "workbench", *words], capture_output=True, timeout=60, env=env, check=False).returncode

    assert code("explode") == 2
    assert code("explain", "last") == 1
