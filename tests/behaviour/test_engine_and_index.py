"""A simulated engine and the real index, joined by the bytes on the wire: at every moment the index knows what the engine holds."""

import random

import pytest

from backend.kvindex import PrefixIndex
from backend.simulate.engine.model import CoreSettings
from tests.fakes.engines import listening, running_engine

# Few blocks, so that eviction, duplicate copies and shared prefixes all happen.
TIGHT = {
    16: CoreSettings(block_size=16, num_blocks=120, max_model_len=1500),
    64: CoreSettings(block_size=64, num_blocks=40, max_model_len=1500),
}


def prompts(count: int, seed: int) -> list[list[int]]:
    """Prompts that share beginnings of different lengths."""
    draw = random.Random(seed)
    shared = [draw.randrange(150_000) for _ in range(600)]
    return [shared[: draw.randrange(1, 600)] + [draw.randrange(150_000) for _ in range(draw.randrange(1, 300))] for _ in range(count)]


ENGINES = [
    *(("vllm", version, size) for version, size in (("0.9.2", 16), ("0.23.0", 64), ("0.24.0", 64), ("0.32.0", 16))),
    *(("sglang", version, size) for version, size in (("0.4.10.post2", 16), ("0.5.16", 64), ("0.5.20", 16), ("0.5.23", 64))),
]


@pytest.mark.parametrize(("family", "version", "block_size"), ENGINES, ids=[f"{row[0]}-{row[1]}" for row in ENGINES])
async def test_the_index_knows_after_every_request_what_the_engine_holds(family, version, block_size):
    index = PrefixIndex(4096)
    asked = prompts(40, seed=block_size)
    heard = 0
    settings = {"engine": family, "version": version, "core": TIGHT[block_size], "speed": 1000.0}
    async with running_engine(events=True, **settings) as engine, listening(engine) as listener:
        for number, prompt in enumerate(asked):
            await engine.complete(prompt=prompt, max_tokens=1 + number % 40)
            for frames in await listener.batches(engine.server.publisher.next_number - heard):
                index.ingest("pod", frames[-1], model="tiny")
                heard += 1
            core = engine.server.driver.core
            for earlier in asked[: number + 1 : 7]:
                assert index.match(earlier, model="tiny").get("pod", 0) == core.cached_tokens(earlier)


async def test_the_index_predicts_what_the_engine_reports_as_cached():
    index = PrefixIndex(4096)
    heard = 0
    async with running_engine(events=True, core=TIGHT[16], speed=1000.0) as engine, listening(engine) as listener:
        for prompt in prompts(40, seed=3):
            predicted = index.match(prompt, model="tiny").get("pod", 0)
            answer = await engine.complete(prompt=prompt, max_tokens=3)
            cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert predicted - cached in (0, 16), "a fully cached prompt computes its last block again"
            for frames in await listener.batches(engine.server.publisher.next_number - heard):
                index.ingest("pod", frames[-1], model="tiny")
                heard += 1
