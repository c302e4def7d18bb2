"""`python -m tests.bench.index`: what the index costs, beside the prototype and beside NVIDIA Dynamo's radix tree.

CPU seconds of one process, medians of interleaved runs: every round runs all contenders, so that a busy machine slows all of them.
The prototype takes part when WORKBENCH_PROTOTYPE names its kvidx.py, Dynamo when ai-dynamo-runtime is installed (extra `bench`).
Writes bench-results/index.json and prints a table. Dynamo is fed JSON with ready hashes; ours hashes the tokens too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from backend.kvindex import PrefixIndex, kernels

ROOT = Path(__file__).resolve().parents[2]
BLOCK_SIZE, BLOCKS_A_SEQUENCE, PODS = 16, 256, 8
BLOCKS = 65_536
RUN_OF_MESSAGES = 32
"""Messages a drain hands over in one call."""

Contender = Callable[[], float]


@dataclass(frozen=True)
class Stream:
    """One event stream in every contender's form."""

    pods: list[int]
    arrays: list[bytes]
    maps: list[bytes]
    removals: list[bytes]
    dynamo: list[bytes]


def make_stream(blocks_an_event: int) -> Stream:
    rng = np.random.default_rng(0)
    stream = Stream([], [], [], [], [])
    encode = msgspec.msgpack.encode
    for sequence in range(BLOCKS // BLOCKS_A_SEQUENCE):
        tokens = rng.integers(0, 150_000, BLOCKS_A_SEQUENCE * BLOCK_SIZE).tolist()
        hashes = rng.integers(1, 2**63, BLOCKS_A_SEQUENCE).tolist()
        for at in range(0, BLOCKS_A_SEQUENCE, blocks_an_event):
            parent = hashes[at - 1] if at else None
            own, ids = hashes[at : at + blocks_an_event], tokens[at * BLOCK_SIZE : (at + blocks_an_event) * BLOCK_SIZE]
            event = {
                "type": "BlockStored", "block_hashes": own, "parent_block_hash": parent, "token_ids": ids, "block_size": BLOCK_SIZE,
                "lora_id": None, "medium": "GPU", "lora_name": None, "extra_keys": [None] * len(own), "group_idx": 0,
                "kv_cache_spec_kind": "full_attention",
            }  # fmt: skip
            stream.pods.append(sequence % PODS)
            stream.arrays.append(encode([1.0, [["BlockStored", own, parent, ids, BLOCK_SIZE, None, "GPU"]], 0]))
            stream.maps.append(encode([1.0, [event], 0]))
            stream.removals.append(encode([1.0, [["BlockRemoved", own[::-1], "GPU"]], 0]))
            blocks = [{"block_hash": value, "tokens_hash": value} for value in own]
            stream.dynamo.append(json.dumps({"event_id": at, "data": {"stored": {"parent_hash": parent, "blocks": blocks}}}).encode())
    return stream


def fresh_index() -> PrefixIndex:
    index = PrefixIndex(BLOCKS * 2)
    index._table.array[:] = index._table.array  # pages are touched before the clock starts, as the prototype does
    for pod in range(PODS):
        index.add_pod(f"pod-{pod}")
    return index


def runs_of(pods: list[int], messages: list[bytes], size: int) -> list[tuple[str, list[bytes]]]:
    """Messages as a source drains them: up to `size` of one publisher at once."""
    by_pod: dict[int, list[bytes]] = {}
    for pod, message in zip(pods, messages, strict=True):
        by_pod.setdefault(pod, []).append(message)
    return [(f"pod-{pod}", own[at : at + size]) for pod, own in by_pod.items() for at in range(0, len(own), size)]


def ingest(runs: list[tuple[str, list[bytes]]], *before: list[tuple[str, list[bytes]]]) -> float:
    """CPU seconds of ingesting `runs` into an index that has `before`."""
    index = fresh_index()
    for earlier in before:
        for pod, messages in earlier:
            index.ingest_many(pod, messages)
    started = time.thread_time()
    for pod, messages in runs:
        index.ingest_many(pod, messages)
    used = time.thread_time() - started
    assert index.stats().copies == (0 if before else BLOCKS)
    return used


def load_prototype() -> ModuleType | None:
    path = os.environ.get("WORKBENCH_PROTOTYPE", "")
    if not path:
        return None
    spec = importlib.util.spec_from_file_location("kvidx", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kvidx"] = module
    spec.loader.exec_module(module)
    return module


def load_dynamo() -> Any:
    try:
        from dynamo.llm import RadixTree
    except ImportError:
        return None
    return RadixTree


def prototype_ingest(prototype: Any, stream: Stream) -> float:
    table = prototype.new(PODS, 1 << 18, 1 << 18)
    table[:] = table
    hashes, lanes = np.zeros(4096, np.uint64), np.zeros(65536, np.uint64)
    started = time.thread_time()
    for pod, message in zip(stream.pods, stream.arrays, strict=True):
        prototype.ingest_raw(table, np.frombuffer(message, np.uint8), pod, 0, hashes, lanes)
    return time.thread_time() - started


def dynamo_ingest(radix_tree: Any, stream: Stream) -> float:
    tree = radix_tree()
    started = time.process_time()
    for pod, message in zip(stream.pods, stream.dynamo, strict=True):
        tree.apply_event(pod, message)
    tree.find_matches([1])
    return time.process_time() - started


def measure(contenders: dict[str, Contender], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, all of them in every round; one round before does not count."""
    seen: dict[str, list[float]] = {name: [] for name in contenders}
    for at in range(rounds + 1):
        for name, contender in contenders.items():
            used = contender()
            if at:
                seen[name].append(used)
    return {name: statistics.median(values) for name, values in seen.items()}


def bench_ingest(rounds: int, prototype: Any, radix_tree: Any) -> list[dict[str, Any]]:
    rows = []
    for size in (1, 8, 64, 128):
        stream = make_stream(size)
        one = runs_of(stream.pods, stream.arrays, 1)
        array = runs_of(stream.pods, stream.arrays, RUN_OF_MESSAGES)
        maps, removals = runs_of(stream.pods, stream.maps, RUN_OF_MESSAGES), runs_of(stream.pods, stream.removals, RUN_OF_MESSAGES)
        contenders: dict[str, Contender] = {
            "ours, array": lambda array=array: ingest(array),  # type: ignore[misc]
            "ours, map": lambda maps=maps: ingest(maps),  # type: ignore[misc]
            "ours, one message a call": lambda one=one: ingest(one),  # type: ignore[misc]
            "ours, removal": lambda array=array, removals=removals: ingest(removals, array),  # type: ignore[misc]
        }
        if prototype is not None:
            contenders["prototype"] = lambda stream=stream: prototype_ingest(prototype, stream)  # type: ignore[misc]
        if radix_tree is not None:
            contenders["dynamo"] = lambda stream=stream: dynamo_ingest(radix_tree, stream)  # type: ignore[misc]
        for name, seconds in measure(contenders, rounds).items():
            rows.append({"what": "ingest", "blocks_an_event": size, "who": name, "million_blocks_per_cpu_s": BLOCKS / seconds / 1e6})
    return rows


def bench_lookup(rounds: int) -> list[dict[str, Any]]:
    """Whole calls from Python, tokens as an array; every pod holds a prefix of its own depth, with 100,000 other blocks around."""
    rows = []
    for blocks in (32, 125, 1000, 8000):
        for pods in (8, 64):
            rng = np.random.default_rng(1)
            index = PrefixIndex(1 << 18)
            tokens = rng.integers(0, 150_000, blocks * BLOCK_SIZE).astype(np.uint32)
            for pod in range(pods):
                depth = blocks if pod == 0 else int(rng.integers(1, blocks + 1))
                event = ["BlockStored", list(range(1, depth + 1)), None, tokens[: depth * BLOCK_SIZE].tolist(), BLOCK_SIZE]
                index.ingest(f"pod-{pod}", msgspec.msgpack.encode([1.0, [event], 0]))
            for at in range(100):
                other = rng.integers(0, 150_000, 1000 * BLOCK_SIZE).tolist()
                event = ["BlockStored", list(range(10**6 * (at + 1), 10**6 * (at + 1) + 1000)), None, other, BLOCK_SIZE]
                index.ingest(f"pod-{at % pods}", msgspec.msgpack.encode([1.0, [event], 0]))
            assert index.match(tokens)["pod-0"] == blocks * BLOCK_SIZE
            lookup = index.lookup([f"pod-{pod}" for pod in range(pods)])
            calls: dict[str, Callable[[], object]] = {
                "lookup": lambda lookup=lookup, tokens=tokens: lookup.match(tokens),  # type: ignore[misc]
                "match": lambda index=index, tokens=tokens: index.match(tokens),  # type: ignore[misc]
                "hash_tokens": lambda index=index, tokens=tokens: index.hash_tokens(tokens, "", BLOCK_SIZE),  # type: ignore[misc]
            }
            repeats = max(20, 20_000 // blocks)
            for name, seconds in measure({key: _timed(call, repeats) for key, call in calls.items()}, rounds).items():
                rows.append({"what": "look-up", "blocks": blocks, "pods": pods, "who": name, "us": seconds / repeats * 1e6})
    return rows


def _timed(call: Callable[[], object], repeats: int) -> Contender:
    def run() -> float:
        started = time.thread_time()
        for _ in range(repeats):
            call()
        return time.thread_time() - started

    return run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.index", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    started = time.perf_counter()
    kernels.warm()
    warm_s = time.perf_counter() - started
    prototype, radix_tree = load_prototype(), load_dynamo()
    rows = bench_ingest(asked.rounds, prototype, radix_tree) + bench_lookup(asked.rounds)
    absent = [name for name, found in (("prototype", prototype), ("dynamo", radix_tree)) if found is None]
    result = {"kernels_loaded_s": warm_s, "load_average": os.getloadavg(), "rounds": asked.rounds, "absent": absent, "rows": rows}
    folder = ROOT / "bench-results"
    folder.mkdir(exist_ok=True)
    (folder / "index.json").write_text(json.dumps(result, indent=1))
    print(f"kernels loaded in {warm_s:.2f} s; load average {os.getloadavg()[0]:.1f}; not here: {', '.join(absent) or 'none'}")
    for row in rows:
        if row["what"] == "ingest":
            speed = row["million_blocks_per_cpu_s"]
            print(f"ingest   {row['blocks_an_event']:4d} blocks an event  {row['who']:26s} {speed:7.2f} M blocks per CPU second")
        else:
            print(f"look-up  {row['blocks']:5d} blocks {row['pods']:3d} pods  {row['who']:26s} {row['us']:9.1f} us")


if __name__ == "__main__":
    main()
