"""The index against what engines hold: real sockets, simulated engines that tell their blocks, and a publisher that misbehaves on order.
Not here: single messages (tests/unit/kvindex), the whole stack under kill -9 (tests/chaos)."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backend.kvindex import PrefixIndex, owners, source
from tests.fakes.engines import RunningEngine, running_engine
from tests.fakes.events import Publisher, batch, cleared, removed, stored
from tests.fakes.index import World, event_engine, index_world, until
from tests.fakes.ports import free_base

TOKENS = list(range(1, 13))


async def load(engine: RunningEngine, seed: int, requests: int) -> None:
    """Requests that share prefixes and are more than the cache can hold."""
    rng = random.Random(seed)
    heads = [[rng.randrange(3, 400) for _ in range(96)] for _ in range(4)]
    prompts = [
        rng.choice(heads)[: rng.choice((0, 32, 64, 96))] + [rng.randrange(3, 400) for _ in range(rng.randrange(8, 200))]
        for _ in range(requests)
    ]
    for at in range(0, requests, 4):
        await asyncio.gather(
            *(engine.complete(model="tiny", prompt=prompt, max_tokens=rng.randrange(1, 40)) for prompt in prompts[at : at + 4])
        )


async def truth(engine: RunningEngine) -> set[int]:
    """Hashes of the blocks that the engine really holds, as its events name them."""
    held = (await engine.client.get("/debug/blocks")).json()["block_hashes"]
    return {int(digest[-16:], 16) for digest in held}


async def assert_true(world: World, pod: str, engine: RunningEngine) -> None:
    for _ in range(200):
        expected = await truth(engine)
        if world.index.held(pod) == expected:
            return
        await asyncio.sleep(0.025)
    raise AssertionError(f"{len(world.index.held(pod) - expected)} blocks too many, {len(expected - world.index.held(pod))} missing")


def address(engine: RunningEngine) -> str:
    return engine.url.removeprefix("http://")


@pytest.mark.parametrize("version", ["0.32.0", "0.23.0", "0.10.2"])
async def test_the_index_equals_the_engine_after_load_and_eviction(tmp_path: Path, version: str) -> None:
    async with running_engine(events=True, version=version) as engine, index_world(tmp_path, a=address(engine)) as world:
        await world.live("a")
        await load(engine, 1, 40)
        await assert_true(world, "a", engine)
        assert world.source("a").removed > 0
        assert (world.source("a").skipped, world.index.stats().parked) == ({}, 0)


async def test_what_an_engine_stored_before_is_replayed(tmp_path: Path) -> None:
    async with running_engine(events=True) as engine:
        await load(engine, 2, 30)
        async with index_world(tmp_path, a=address(engine)) as world:
            await world.live("a")
            await assert_true(world, "a", engine)


async def test_a_reset_cache_is_empty_in_the_index_too(tmp_path: Path) -> None:
    async with running_engine(events=True) as engine, index_world(tmp_path, a=address(engine)) as world:
        await load(engine, 3, 8)
        await engine.client.post("/reset_prefix_cache")
        await load(engine, 4, 2)
        await world.live("a")
        await assert_true(world, "a", engine)
        assert world.source("a").cleared == 1


async def test_held_blocks_can_be_compared_with_the_engine_by_hand(tmp_path: Path) -> None:
    async with running_engine(events=True) as engine, index_world(tmp_path, a=address(engine)) as world:
        await load(engine, 5, 4)
        await world.live("a")
        await assert_true(world, "a", engine)
        answer = (await world.client.get("/held", params={"pod": "a"})).json()
        assert {int(digest, 16) for digest in answer["block_hashes"]} == await truth(engine)
        assert (await world.client.get("/held", params={"pod": "a", "rank": 1})).json()["block_hashes"] == []
        assert (await world.client.get("/held", params={"pod": "b"})).status_code == 404
        assert (await world.client.get("/held", params={"pod": "a", "rank": "x"})).status_code == 400


async def test_two_engines_are_kept_apart_and_probed_together(tmp_path: Path) -> None:
    async with (
        running_engine(events=True) as one,
        running_engine(events=True) as two,
        index_world(tmp_path, a=address(one), b=address(two)) as world,
    ):
        prompt = [7] * 100
        await one.complete(model="tiny", prompt=prompt, max_tokens=1)
        await two.complete(model="tiny", prompt=prompt[:40], max_tokens=1)
        await until(lambda: world.index.stats().copies == 4, world.index.stats)
        answer = (await world.client.post("/probe", json={"tokens": prompt})).json()
        assert [(match["pod"], match["matched_tokens"]) for match in answer["matches"]] == [("a", 96), ("b", 32)]
        cached = (await one.complete(model="tiny", prompt=prompt, max_tokens=1))["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached == 96


@pytest.mark.parametrize("topic_in_replay", [True, False], ids=["framing_since_0_26", "framing_before"])
async def test_a_gap_is_filled_by_replay(tmp_path: Path, topic_in_replay: bool) -> None:
    with event_engine(topic_in_replay=topic_in_replay) as (engine, at):
        async with index_world(tmp_path, a=at) as world:
            await world.live("a")
            engine.publish(batch(stored([1], TOKENS[:4])))
            await until(lambda: world.source("a").batches == 1)
            engine.publish(batch(stored([2], TOKENS[4:8], parent=1)), lose=True)
            engine.publish(batch(stored([3], TOKENS[8:], parent=2)))
            await until(lambda: world.index.match(TOKENS, model="tiny") == {"a": 12}, lambda: world.source("a"))
            assert (world.source("a").gaps, world.source("a").missed) == (1, 0)


async def test_a_message_lost_without_a_successor_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "FIRST_CHECK_S", 0.2)
    with event_engine() as (engine, at):
        async with index_world(tmp_path, a=at) as world:
            await world.live("a")
            engine.publish(batch(stored([1], TOKENS[:4])), lose=True)
            await until(lambda: world.index.match(TOKENS, model="tiny") == {"a": 4}, lambda: world.source("a"))


async def test_a_restarted_engine_is_forgotten_and_read_again(tmp_path: Path) -> None:
    with event_engine() as (engine, at):
        async with index_world(tmp_path, a=at) as world:
            await world.live("a")
            for block in range(3):
                engine.publish(batch(stored([block + 1], TOKENS[4 * block : 4 * block + 4], parent=block or None)))
            await until(lambda: world.index.blocks("a") == 3)
            engine.restart()
            engine.publish(batch(stored([9], [5, 5, 5, 5])))
            await until(lambda: world.index.held("a") == {9}, lambda: world.source("a"))
            assert world.source("a").restarts == 1


async def test_a_restart_told_by_the_fleet_is_enough(tmp_path: Path) -> None:
    with event_engine() as (engine, at):
        async with index_world(tmp_path) as world:
            world.set_pod("a", at, started_at=1.0)
            await world.live("a")
            engine.publish(batch(stored([1], TOKENS[:4])))
            await until(lambda: world.index.blocks("a") == 1)
            engine.restart()
            world.set_pod("a", at, started_at=2.0)
            await until(lambda: world.index.blocks("a") == 0, lambda: world.source("a"))


async def test_garbage_is_counted_and_the_rest_counts(tmp_path: Path) -> None:
    with event_engine() as (engine, at):
        async with index_world(tmp_path, a=at) as world:
            await world.live("a")
            engine.publish(b"garbage")
            engine.publish(batch(stored([1], TOKENS[:3]), stored([2], TOKENS[:4])))
            engine.send_frames(b"", b"short", b"x")
            engine.send_frames(b"alone")
            engine.publish(batch(stored([3], TOKENS[4:8], parent=2)))
            await until(lambda: world.index.match(TOKENS, model="tiny") == {"a": 8}, lambda: world.source("a"))
            assert world.source("a").skipped == {"not_a_batch": 1, "token_count": 1, "bad_frames": 2}


async def test_blocks_whose_beginning_never_comes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "PARKED_EVENTS", 2)
    monkeypatch.setattr(source, "RESYNC_S", float("inf"))  # what a fresh replay would bring is not the question here
    with event_engine() as (engine, at):
        async with index_world(tmp_path, a=at) as world:
            await world.live("a")
            for block in range(5):
                engine.publish(batch(stored([block + 10], TOKENS[:4], parent=9)))
            await until(lambda: world.source("a").skipped == {"unknown_parent": 3}, lambda: world.source("a"))


async def test_an_engine_that_does_not_answer_replays_is_followed_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "REPLAY_TIMEOUT_S", 0.3)
    with event_engine() as (engine, at):
        engine.answers_replay = False
        async with index_world(tmp_path, a=at) as world:
            await world.live("a")
            assert "no answer" in world.source("a").reason
            engine.publish(batch(stored([1], TOKENS[:4])))
            await until(lambda: world.index.match(TOKENS, model="tiny") == {"a": 4}, lambda: world.source("a"))


@pytest.mark.parametrize(
    ("options", "word"),
    [({"status": 404}, "404"), ({"sources": b"{}"}, "without KV events")],
    ids=["too_old_to_say", "events_switched_off"],
)
async def test_an_engine_without_events_says_why(tmp_path: Path, options: dict[str, object], word: str) -> None:
    with event_engine(**options) as (_, at):
        async with index_world(tmp_path, a=at) as world:
            await until(lambda: world.source("a").status == "unsupported", world.service.source_states)
            assert word in world.source("a").reason
            listed = (await world.client.get("/sources")).json()["items"]
            assert [(item["pod"], item["status"]) for item in listed] == [("a", "unsupported")]


async def test_sources_follow_the_fleet(tmp_path: Path) -> None:
    with event_engine() as (one, at_one), event_engine() as (two, at_two):
        async with index_world(tmp_path, a=at_one) as world:
            one.publish(batch(stored([1], TOKENS[:4])))
            await until(lambda: world.index.match(TOKENS, model="tiny") == {"a": 4})
            two.publish(batch(stored([1, 2], TOKENS[:8])))
            world.set_pod("b", at_two)
            await until(lambda: world.index.match(TOKENS, model="tiny") == {"b": 8, "a": 4})
            world.set_pod("a", at_two)
            await until(lambda: world.index.match(TOKENS, model="tiny") == {"a": 8, "b": 8}, world.service.source_states)
            world.drop_pod("b")
            await until(lambda: world.index.pods() == ("a",))
            assert [state.pod for state in world.service.source_states()] == ["a"]


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
async def test_sglang_is_asked_where_its_version_lists_its_sources(tmp_path: Path, path: str) -> None:
    def told(publisher: Publisher, asked: str) -> bytes | None:
        ports = {"endpoint_port_base": publisher.port, "replay_endpoint_port_base": publisher.replay_port}
        return json.dumps({"kv_events": {"publisher": "zmq", "endpoint_host": "*", **ports}}).encode() if asked == path else None

    with event_engine(told=told) as (engine, at):
        async with index_world(tmp_path) as world:
            world.set_pod("a", at, engine="sglang")
            engine.publish(batch(stored([1], TOKENS[:4])))
            await until(lambda: world.index.match(TOKENS, model="tiny") == {"a": 4}, world.service.source_states)


async def test_a_pod_that_is_not_up_yet_is_asked_until_it_is(tmp_path: Path) -> None:
    async with index_world(tmp_path, a="127.0.0.1:9") as world:
        await until(lambda: world.source("a").status == "error", world.service.source_states)
        assert "does not answer" in world.source("a").reason
        with event_engine() as (_, at):
            world.set_pod("a", at)
            await world.live("a")


async def test_the_query_api_tells_what_is_there(tmp_path: Path) -> None:
    with event_engine() as (engine, at):
        async with index_world(tmp_path, a=at) as world:
            engine.publish(batch(stored([1, 2, 3], TOKENS)))
            engine.publish(batch(removed(3)))
            await until(lambda: world.source("a").removed == 1)
            drawn = (await world.client.get("/map", params={"bins": 4})).json()
            assert (drawn["pods"], drawn["totals"], drawn["distinct"], drawn["copies"]) == (["a"], [2], 2, 2)
            assert sum(drawn["blocks"][0]) == 2
            assert (await world.client.get("/map", params={"bins": 4})).json()["at"] == drawn["at"]
            stats = (await world.client.get("/stats")).json()
            assert (stats["distinct_blocks"], stats["pods"]) == (2, ["a"])
            probe = (await world.client.post("/probe", json={"tokens": TOKENS})).json()
            assert (probe["model"], probe["tokens"], probe["matches"]) == ("tiny", 12, [{"pod": "a", "matched_tokens": 8, "share": 8 / 12}])
            metrics = (await world.client.get("/metrics")).text
            assert 'kvindex_source_stored_total{pod="a",rank="0"} 3.0' in metrics
            assert "kvindex_copies 2.0" in metrics
            assert (await world.client.get("/healthz")).json()["status"] == "ok"


@pytest.mark.parametrize(
    ("method", "path", "body", "word"),
    [
        ("GET", "/map?bins=0", None, "bins"),
        ("GET", "/map?bins=many", None, "bins"),
        ("POST", "/probe", {"prompt": "text"}, "tokens only"),
        ("POST", "/probe", {"tokens": [-1]}, "token ids"),
        ("POST", "/probe", {"tokens": "x"}, "array"),
    ],
)
async def test_wrong_questions_are_answered_with_what_is_wrong(tmp_path: Path, method: str, path: str, body: object, word: str) -> None:
    async with index_world(tmp_path) as world:
        answer = await world.client.request(method, path, json=body)
        assert answer.status_code == 400
        assert word in answer.json()["error"]["message"]


def _start(folder: Path, port: int, at: str) -> subprocess.Popen[bytes]:
    config = folder / "kvindex.toml"
    config.write_text(f'shared = "{folder}/shared"\n[listen]\nport = {port}\n[[pods]]\nname = "a"\naddress = "{at}"\nmodel = "tiny"\n')
    return subprocess.Popen([sys.executable, "-m", "backend.kvindex", "--config", str(config)], stderr=subprocess.DEVNULL)


async def test_readers_never_see_an_empty_index_after_a_kill(tmp_path: Path) -> None:
    with event_engine() as (engine, at):
        engine.publish(batch(stored([1, 2, 3], TOKENS)))
        port = free_base(tmp_path)
        service = _start(tmp_path, port, at)
        try:
            await until(lambda: (tmp_path / "shared" / "index-current.bin").exists())
            await asyncio.sleep(0.1)
            reader = PrefixIndex.open(tmp_path / "shared")
            await until(lambda: reader.match(TOKENS, model="tiny") == {"a": 12})
            os.kill(service.pid, signal.SIGKILL)
            service.wait()
            engine.publish(batch(removed(3)))
            service = _start(tmp_path, port, at)
            answers = set()
            while reader.match(TOKENS, model="tiny") != {"a": 8}:
                answers.add(json.dumps(dict(reader.match(TOKENS, model="tiny"))))
                await asyncio.sleep(0.005)
            assert answers == {'{"a": 12}'}
            await until(lambda: reader.state() == "live")
        finally:
            service.terminate()
            assert service.wait(10) == 0
        assert reader.state() == "stale"


async def test_a_cleared_engine_matches_nothing(tmp_path: Path) -> None:
    with event_engine() as (engine, at):
        async with index_world(tmp_path, a=at) as world:
            engine.publish(batch(stored([1, 2, 3], TOKENS)))
            engine.publish(batch(cleared()))
            await until(lambda: world.source("a").cleared == 1)
            assert world.index.match(TOKENS, model="tiny") == {}
