"""The core without a clock: the same `begin_step` and `finish_step`, with time as a number.

Expected latencies: a published benchmark of two H20 replicas serving Qwen3-8B (prompts of 8000 tokens, answers of 200), to which
the step-time preset was fitted at one point; the others are predictions.
"""

import random
import statistics

import pytest

from backend.engines.cost import preset
from backend.simulate.engine.hashing import BlockHasher
from backend.simulate.engine.model import CoreSettings
from backend.simulate.engine.scheduler import EngineCore
from tests.fakes.engines import always, sequence

KV_TOKENS = 475_000


def serve(requests_per_s: float, count: int, *, prompt: int = 8000, output: int = 200, seed: int = 1) -> list[float]:
    """All times between tokens of one engine with Poisson arrivals and prompts that share nothing."""
    limits = CoreSettings(block_size=64, num_blocks=KV_TOKENS // 64, max_model_len=16384)
    core = EngineCore(limits, BlockHasher(seed="0"), always(7), preset("h20-qwen3-8b"))
    draw = random.Random(seed)
    arrivals = [0.0]
    for _ in range(count - 1):
        arrivals.append(arrivals[-1] + draw.expovariate(requests_per_s))
    gaps, now, last = [], 0.0, {}
    while arrivals or not core.idle:
        while arrivals and (arrivals[0] <= now or core.idle):
            now = max(now, arrivals[0])
            arrivals.pop(0)
            core.add(sequence([draw.randrange(2**32) for _ in range(prompt)], output))
        step = core.begin_step(now)
        now += step.seconds
        for request, _ in core.finish_step(step, now).tokens:
            if id(request) in last:
                gaps.append(now - last[id(request)])
            last[id(request)] = now
    return gaps


@pytest.mark.parametrize(("per_replica", "published_ms", "within"), [(0.5, 9.1, 0.35), (1.0, 46.5, 0.25)], ids=["light", "loaded"])
def test_median_time_between_tokens_is_near_the_published_one(per_replica, published_ms, within):
    median_ms = statistics.median(serve(per_replica, 60)) * 1000
    assert median_ms == pytest.approx(published_ms, rel=within)


def test_the_tail_under_load_is_a_whole_prefill_chunk():
    gaps_ms = [gap * 1000 for gap in serve(1.0, 60)]
    assert statistics.quantiles(gaps_ms, n=100)[-1] == pytest.approx(1050, rel=0.1)


def test_the_same_arrivals_give_the_same_times():
    assert serve(2.0, 5, prompt=500, output=20) == serve(2.0, 5, prompt=500, output=20)
