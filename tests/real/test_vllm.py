"""What we believe of vLLM, asked of a real one: events, hashes, bodies, metrics, and what the index promises of it."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator

import pytest
import zmq

from backend.kvindex import PrefixIndex, decode_batch
from tests.real.conftest import Engine

pytestmark = pytest.mark.real_engine
END = b"\xff" * 8


def replayed(engine: Engine, start: int = 0) -> list[bytes]:
    """Payloads of every batch from `start` on."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(engine.replay)
    socket.send_multipart([b"", start.to_bytes(8, "big")])
    found = []
    try:
        while socket.poll(5000):
            *_, number, payload = socket.recv_multipart()
            if number == END:
                return found
            found.append(payload)
        pytest.fail("the replay did not end")
    finally:
        context.destroy(linger=0)


def prompts(seed: int) -> Iterator[list[int]]:
    """Prompts of token ids that share beginnings, as conversations do."""
    source = random.Random(seed)
    history: list[int] = []
    for _ in range(12):
        if source.random() < 0.3:
            history = history[:32]
        history = (history + [source.randrange(5, 450) for _ in range(source.randrange(20, 60))])[:400]
        yield list(history)


def cached(engine: Engine, tokens: list[int]) -> int:
    answer = engine.post("/v1/completions", model="tiny", prompt=tokens, max_tokens=1, temperature=0)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] or 0)


def stored(engine: Engine, start: int) -> list[tuple[tuple[int, ...], int | None, tuple[int, ...]]]:
    """Stores as (hashes, parent, tokens), in order."""
    events = [event for payload in replayed(engine, start) for event in decode_batch(payload).events]
    return [(tuple(event.block_hashes), event.parent_hash, tuple(event.token_ids)) for event in events if event.kind == "stored"]


def test_the_simulated_engine_hits_stores_and_hashes_as_the_real_one(real: Engine, simulated: Engine) -> None:
    starts = [len(replayed(engine)) for engine in (real, simulated)]
    for tokens in prompts(seed=1):
        assert cached(simulated, tokens) == cached(real, tokens)
    assert stored(simulated, starts[1]) == stored(real, starts[0])


def test_the_index_promises_what_the_real_engine_delivers(real: Engine) -> None:
    index = PrefixIndex(capacity_blocks=4096)
    seen = 0
    for tokens in prompts(seed=2):
        for payload in replayed(real, seen):
            index.ingest("real", payload, model="tiny")
            seen += 1
        promised = index.match(tokens, model="tiny").get("real", 0)
        assert abs(cached(real, tokens) - promised) <= 32
        time.sleep(0.15)  # the real publisher hands batches to its replay buffer at most this much later


SHAPES = [
    ("completion", "/v1/completions", {"model": "tiny", "prompt": "The quick brown fox", "max_tokens": 2}),
    ("chat", "/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "hello fox"}], "max_tokens": 2}),
    ("tokenize", "/tokenize", {"model": "tiny", "prompt": "The quick brown fox", "return_token_strs": True}),
    ("unknown_model", "/v1/completions", {"model": "nope", "prompt": "x"}),
    ("missing_field", "/v1/chat/completions", {"model": "tiny"}),
    ("too_long", "/v1/completions", {"model": "tiny", "prompt": [7] * 600}),
    ("bad_max_tokens", "/v1/completions", {"model": "tiny", "prompt": [7] * 6, "max_tokens": -1}),
]


def shape(value: object) -> object:
    """Keys and types; the values of an answer differ."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


@pytest.mark.parametrize(("path", "body"), [case[1:] for case in SHAPES], ids=[case[0] for case in SHAPES])
def test_answers_have_the_same_status_and_shape(real: Engine, simulated: Engine, path: str, body: dict[str, object]) -> None:
    theirs, ours = real.post(path, **body), simulated.post(path, **body)
    assert ours.status_code == theirs.status_code
    if theirs.status_code == 200:
        assert shape(ours.json()) == shape(theirs.json())
    else:
        assert ours.json() == theirs.json()


def test_metrics_have_the_same_names_and_labels(real: Engine, simulated: Engine) -> None:
    def series(engine: Engine) -> set[str]:
        lines = [line for line in engine.get("/metrics").text.splitlines() if line.startswith("vllm:")]
        return {re.sub(r'="[^"]*"', "", line.rsplit(" ", 1)[0]) for line in lines}

    assert series(simulated) == series(real)
