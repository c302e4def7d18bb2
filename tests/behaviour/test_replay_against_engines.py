"""Replays against a simulated engine: what the load generator counts is what an engine's prefix cache really did."""

from __future__ import annotations

import asyncio

import pytest

from backend.launch import replay as door
from backend.launch.replay import LoadOptions
from backend.simulate.engine.model import CoreSettings
from tests.fakes.engines import running_engine

BIG = CoreSettings(block_size=64, num_blocks=75_000, max_model_len=131_072, max_num_seqs=64)
SMALL = CoreSettings(block_size=64, num_blocks=2_050, max_model_len=131_072, max_num_seqs=64)

REQUESTS = 300


async def replay(url: str, **options):
    chosen = LoadOptions(url=url, model="tiny", speed=1000.0, max_in_flight=1, output_tokens=1)
    return (await door.replay("conversation-sample", chosen, **options)).summary


async def test_an_engine_that_forgets_nothing_reaches_the_traces_ceiling():
    async with running_engine(core=BIG, speed=10_000.0) as engine:
        summary = await replay(engine.url, limit=REQUESTS)
    assert (summary.ok, summary.errors) == (REQUESTS, {})
    assert summary.ceiling_tokens > 0.08
    # The trace shares whole blocks of 512, which are whole blocks of 64 too.
    assert summary.hit_rate == pytest.approx(summary.ceiling_tokens, abs=0.001)


async def test_an_engine_with_little_room_stays_below_the_ceiling():
    async with running_engine(core=SMALL, speed=10_000.0) as engine:
        summary = await replay(engine.url, limit=REQUESTS)
    assert summary.errors == {}
    assert summary.hit_rate < summary.ceiling_tokens


async def test_counted_tokens_are_the_engines_own():
    async with running_engine(core=BIG, speed=10_000.0) as engine:
        summary = await replay(engine.url, limit=20)
        text = (await engine.client.get("/metrics")).text
    metrics = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    found = {name.partition("{")[0]: float(value) for name, value in metrics.items()}
    assert found["vllm:prefix_cache_hits_total"] == summary.cached_tokens
    assert found["vllm:prefix_cache_queries_total"] == summary.prompt_tokens
    assert found["vllm:generation_tokens_total"] == summary.completion_tokens == 20


async def test_a_prompt_beyond_the_context_is_one_failed_request():
    short = CoreSettings(block_size=64, num_blocks=60_000, max_model_len=7_000, max_num_seqs=64)
    async with running_engine(core=short, speed=10_000.0) as engine:
        summary = await replay(engine.url, limit=4)
    assert summary.errors == {"http_400": 2}
    assert "7000" in summary.first_error


async def test_the_same_trace_gives_the_same_hits_again():
    rates = []
    for _ in range(2):
        async with running_engine(core=SMALL, speed=10_000.0) as engine:
            rates.append((await replay(engine.url, limit=60)).cached_tokens)
    assert rates[0] == rates[1]


async def test_an_engine_that_goes_away_in_mid_replay_leaves_a_summary():
    async with running_engine(core=BIG, speed=10.0) as engine:
        chosen = LoadOptions(url=engine.url, model="tiny", speed=1000.0, max_in_flight=4, output_tokens=200)
        sent = 0

        def received(result):
            nonlocal sent
            sent += 1
            if sent == 2:
                engine.server.kill()

        ending = asyncio.create_task(engine.server.run())
        outcome = await door.replay("conversation-sample", chosen, limit=12, on_result=received)
        await ending
    summary = outcome.summary
    assert summary.requests == 12
    assert summary.ok >= 2
    assert set(summary.errors) <= {"connect", "reset", "truncated", "aborted"}
    assert summary.errors
