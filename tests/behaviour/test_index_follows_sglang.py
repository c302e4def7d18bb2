"""The index against what a simulated SGLang holds: found by its server info, in every encoding of its events."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.behaviour.test_index_follows_engines import address, load
from tests.fakes.engines import running_engine
from tests.fakes.index import index_world, until


@pytest.mark.parametrize("version", ["0.5.23", "0.5.20", "0.5.18", "0.5.8"])
async def test_the_index_equals_the_engine_after_load_and_eviction(tmp_path: Path, version: str) -> None:
    async with running_engine(events=True, engine="sglang", version=version) as engine, index_world(tmp_path) as world:
        world.set_pod("a", address(engine), engine="sglang")
        await world.live("a")
        await load(engine, 1, 40)
        held = (await engine.client.get("/debug/blocks")).json()["block_hashes"]
        # SGLang names a page by the first 16 digits of its digest; vLLM by the last.
        expected = {int(digest[:16], 16) for digest in held}
        await until(lambda: world.index.held("a") == expected)
        assert world.source("a").removed > 0
        assert (world.source("a").skipped, world.index.stats().parked) == ({}, 0)
