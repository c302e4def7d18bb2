"""A prefill and a decode vLLM over real sockets, against recorded pairs of vLLM 0.32.0 joined by NIXL, and what was measured of them.

What the two make up in every run (engine, request, ports, physical blocks) is replaced before the comparison.
"""

import asyncio
import json
import re
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backend.simulate.engine.dialect import parse_version
from backend.simulate.engine.model import CoreSettings
from backend.simulate.engine.nixl import lease_s
from tests.behaviour.test_engine_http import CHAT, TOKENIZER, normal, send
from tests.fakes.engines import OTHER_HOST, always, events_of, free_ports, in_order, listening, running_engine, until

DATA = Path(__file__).parents[1] / "data" / "engines" / "pd_nixl"
ASK = {"do_remote_decode": True}
PROMPT = list(range(130))
TOKENS = {"de": 343, "fi": 306, "": 992}


def recorded(name):
    return json.loads((DATA / f"{name}.json").read_text())


@asynccontextmanager
async def pair(*, decode_speed=100.0, **more):
    """A prefill and a decode on an address each; a slow decode's transfers take long too."""
    async with (
        running_engine(role="prefill", events=True, **more) as prefill,
        running_engine(role="decode", host=OTHER_HOST, **{"speed": decode_speed, **more}) as decode,
    ):
        yield prefill, decode


async def prefilled(engine, **body):
    answer = await engine.complete(**{"prompt": PROMPT, "max_tokens": 1, "kv_transfer_params": ASK, **body})
    return answer["kv_transfer_params"]


async def figure(engine, name):
    """The sum of a metric over its labels."""
    text = (await engine.client.get("/metrics")).text
    lines = [line for line in text.splitlines() if re.match(rf"vllm:{name}[{{ ]", line)]
    assert lines, name
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def made_up(text):
    text = re.sub(r'"remote_engine_id":"[0-9a-f-]{36}"', '"remote_engine_id":"E"', normal(text))
    text = re.sub(r'"remote_request_id":"((?:chat)?cmpl-).*?((?:-0)?)-[0-9a-f]{8}"', r'"remote_request_id":"\1R\2"', text)
    text = re.sub(r'"remote_host":"[0-9.]+","remote_port":\d+', '"remote_host":"H","remote_port":0', text)
    return re.sub(r'"remote_block_ids":\[\[([0-9,]+)\]\]', lambda found: f'"blocks":{len(found[1].split(","))}', text)


@pytest.mark.parametrize(("name", "token"), [("01_prefill", 384), ("03_chat_prefill", 343)], ids=["completion", "chat"])
async def test_a_prefill_answers_as_recorded(name, token):
    golden = recorded(name)
    async with running_engine(role="prefill", sampler=always(token), tokenizer=TOKENIZER) as engine:
        answer = await send(engine, golden["request"])
    assert made_up(answer.text) == made_up(golden["response"]["body"])


async def test_a_decode_that_fetched_answers_as_recorded():
    golden, before = recorded("02_decode"), recorded("01_prefill")
    async with pair(sampler=always(384), tokenizer=TOKENIZER) as (prefill, decode):
        given = (await send(prefill, before["request"])).json()["kv_transfer_params"]
        answer = await send(decode, {**golden["request"], "json": {**golden["request"]["json"], "kv_transfer_params": given}})
    assert made_up(answer.text) == made_up(golden["response"]["body"])


async def test_a_decoding_stream_has_the_recorded_lines():
    golden, before = recorded("04_chat_decode_stream"), recorded("03_chat_prefill")
    words = [TOKENS[text] for text in ("de", "", "", "", "fi")]
    async with pair(sampler=in_order(words), tokenizer=TOKENIZER) as (prefill, decode):
        given = (await send(prefill, {"headers": {}, **before["request"]})).json()["kv_transfer_params"]
        lines = await decode.stream(CHAT, **{**golden["request"]["json"], "kv_transfer_params": given})
    expected = [line for _, line in golden["response"]["lines"] if line]
    assert [normal(line) for line in lines] == [normal(line) for line in expected]


@pytest.mark.parametrize("block_size", [16, 64])
async def test_a_pair_gives_the_tokens_of_one_engine(block_size):
    core = CoreSettings(block_size=block_size, num_blocks=64, max_model_len=512, max_num_seqs=8)
    body = {"prompt": PROMPT, "max_tokens": 12, "return_token_ids": True}
    async with pair(core=core) as (prefill, decode), running_engine(core=core) as alone:
        expected = (await alone.complete(**body))["choices"][0]["token_ids"]
        answer = await decode.complete(**body, kv_transfer_params=await prefilled(prefill))
    assert answer["choices"][0]["token_ids"] == expected


async def test_blocks_are_held_until_they_were_fetched():
    async with pair() as (prefill, decode):
        params = await prefilled(prefill)
        assert len(params["remote_block_ids"][0]) == 5
        assert await figure(prefill, "kv_cache_usage_perc") == pytest.approx(5 / 63)
        assert await figure(prefill, "num_requests_running") == 0
        assert (await prefill.client.post("/reset_prefix_cache")).json() == {"success": False}
        await decode.complete(prompt=PROMPT, max_tokens=2, kv_transfer_params=params)
        assert await until(lambda: prefill.server.driver.core.kv_usage == 0)
        assert (await prefill.client.post("/reset_prefix_cache")).json() == {"success": True}


async def test_a_short_prompt_has_one_block():
    async with running_engine(role="prefill") as prefill:
        params = await prefilled(prefill, prompt=[1, 2, 3, 4, 5])
    assert len(params["remote_block_ids"][0]) == 1


async def test_what_a_prefill_ended_otherwise_is_not_held():
    async with running_engine(role="prefill") as prefill:
        answer = await prefill.client.post(CHAT, json={"messages": [{"role": "user", "content": "hi"}], "kv_transfer_params": ASK})
        assert answer.json()["kv_transfer_params"] is None
        assert prefill.server.driver.core.kv_usage == 0


async def test_a_decode_tells_its_blocks_and_counts_where_the_prompt_came_from():
    async with pair(preset="cpu-tiny") as (prefill, decode), running_engine(role="decode", host=OTHER_HOST, events=True) as listened:
        async with listening(listened) as listener:
            await listened.complete(prompt=PROMPT, max_tokens=1, kv_transfer_params=await prefilled(prefill))
            (batch,) = await listener.batches(1)
        stored = events_of(batch[-1])[0]
        assert (stored["type"], len(stored["block_hashes"]), stored["medium"]) == ("BlockStored", 4, "GPU")
        answer = await decode.complete(prompt=PROMPT, max_tokens=3, kv_transfer_params=await prefilled(prefill))
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 128, "what the prefill had cached"
        assert await figure(decode, "external_prefix_cache_hits_total") == 130
        assert await figure(decode, "prompt_tokens_by_source_total") == 130
        assert await figure(decode, "nixl_bytes_transferred_sum") == 5 * 32 * 512
        assert await figure(decode, "nixl_xfer_time_seconds_count") == 1


@pytest.mark.parametrize(
    "kept", [("do_remote_prefill", "remote_block_ids", "remote_engine_id", "remote_request_id", "remote_host", "remote_port")]
)
async def test_the_least_words_are_enough_and_count_the_whole_prompt_as_cached(kept):
    async with pair() as (prefill, decode):
        params = await prefilled(prefill)
        answer = await decode.complete(prompt=PROMPT, max_tokens=1, kv_transfer_params={name: params[name] for name in kept})
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 130
        assert await figure(decode, "nixl_xfer_time_seconds_count") == 1


async def test_too_few_words_make_a_decode_compute_the_prompt_itself():
    async with pair() as (prefill, decode):
        params = await prefilled(prefill)
        await decode.complete(prompt=PROMPT, max_tokens=1, kv_transfer_params={**params, "remote_port": None})
        assert await figure(decode, "nixl_xfer_time_seconds_count") == 0
        assert len(prefill.server.driver.core.held) == 1


async def test_words_used_twice_are_answered_as_if_nothing_were_wrong_and_counted():
    async with pair() as (prefill, decode):
        params = await prefilled(prefill)
        for prompt in (PROMPT, PROMPT[::-1]):
            await decode.complete(prompt=prompt, max_tokens=1, kv_transfer_params=params)
        assert await until(lambda: not prefill.server.driver.core.held)
        assert await figure(prefill, "nixl_num_notifications_after_expiry_total") == 1


def nowhere():
    return {"remote_host": OTHER_HOST, "remote_port": free_ports(1, OTHER_HOST)[0]}


@pytest.mark.parametrize(
    "changed", [nowhere, lambda: {"remote_engine_id": "another"}, lambda: {"remote_port": 10**6}], ids=["port", "engine", "no_port"]
)
async def test_a_prefill_that_is_not_found_ends_the_request_with_an_error_and_the_engine_goes_on(changed):
    async with pair(handshake_timeout_s=0.3) as (prefill, decode):
        params = {**await prefilled(prefill), **changed()}
        answer = await decode.client.post("/v1/completions", json={"prompt": PROMPT, "kv_transfer_params": params})
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["message"]) == (500, "InternalServerError", "Internal server error")
        assert await figure(decode, "nixl_num_failed_transfers_total") == 1
        assert decode.server.driver.core.kv_usage == 0
        assert (await decode.complete(prompt=PROMPT, max_tokens=1))["usage"]["completion_tokens"] == 1
        text = (await decode.client.get("/metrics")).text
    assert 'vllm:request_success_total{engine="0",finished_reason="error",model_name="tiny"} 1.0' in text


async def test_a_stream_that_has_begun_ends_with_the_error():
    async with running_engine(role="decode", handshake_timeout_s=0.1) as decode:
        params = {"do_remote_prefill": True, "remote_block_ids": [[1]], "remote_engine_id": "x", "remote_request_id": "y", **nowhere()}
        lines = await decode.stream("/v1/completions", prompt=PROMPT, kv_transfer_params=params)
    assert json.loads(lines[0].removeprefix("data: "))["error"]["code"] == 500
    assert lines[1:] == ["data: [DONE]"]


async def test_a_prefill_that_dies_in_the_middle_takes_its_kv_along():
    async with pair(decode_speed=0.01) as (prefill, decode):
        params = await prefilled(prefill)
        asked = asyncio.create_task(decode.client.post("/v1/completions", json={"prompt": PROMPT, "kv_transfer_params": params}))
        assert await until(lambda: decode.server.driver.core.fetching)
        prefill.server.close()
        assert (await asked).status_code == 500


async def test_transfers_to_one_decode_share_its_link():
    """A slow link: two prompts at once take as long as one after the other."""
    async with pair(decode_speed=0.05) as (prefill, decode):
        given = [await prefilled(prefill, prompt=list(range(start, start + 480))) for start in (0, 1000)]
        asked = [{"prompt": list(range(start, start + 480)), "max_tokens": 1} for start in (0, 1000)]
        await asyncio.gather(*(decode.complete(**one, kv_transfer_params=told) for one, told in zip(asked, given, strict=True)))
        slowest = decode.server.driver.figures.metrics.histograms["nixl_xfer_time_seconds"].sum
    base, each = 0.003 / 0.05, 480 * 147_456 / 40e9 / 0.05
    assert slowest == pytest.approx(2 * base + 3 * each, rel=0.1)


async def test_nobody_comes_and_the_lease_ends():
    core = CoreSettings(block_size=32, num_blocks=64, max_model_len=512, max_num_seqs=8, lease_s=0.2)
    async with running_engine(role="prefill", core=core) as prefill:
        await prefilled(prefill)
        assert prefill.server.driver.core.kv_usage > 0
        assert await until(lambda: prefill.server.driver.core.kv_usage == 0, within=2)
        assert await figure(prefill, "nixl_num_kv_expired_reqs_total") == 1


async def test_a_lease_stands_still_while_a_decode_waits_for_room():
    core = CoreSettings(block_size=32, num_blocks=17, max_model_len=512, max_num_seqs=8, lease_s=0.2)
    async with pair(core=core, speed=2.0) as (prefill, decode):
        params = await prefilled(prefill)
        long = asyncio.create_task(decode.complete(prompt=[7] * 400, max_tokens=90))
        assert await until(lambda: decode.server.driver.core.running)
        answer = await decode.complete(prompt=PROMPT, max_tokens=1, kv_transfer_params=params)
        assert answer["usage"]["completion_tokens"] == 1
        assert await figure(prefill, "nixl_num_kv_expired_reqs_total") == 0
        await long


async def test_a_client_that_leaves_a_decode_leaves_the_blocks_to_the_lease():
    async with pair(decode_speed=0.01) as (prefill, decode):
        params = await prefilled(prefill)
        asked = asyncio.create_task(decode.client.post("/v1/completions", json={"prompt": PROMPT, "kv_transfer_params": params}))
        assert await until(lambda: decode.server.driver.core.fetching)
        asked.cancel()
        assert await until(lambda: decode.server.driver.core.idle and decode.server.driver.core.kv_usage == 0)
        assert len(prefill.server.driver.core.held) == 1


async def test_an_engine_without_a_connector_ignores_the_words():
    async with running_engine() as engine:
        assert await prefilled(engine) is None
        assert (await engine.client.get("/server_info?config_format=json")).json()["vllm_config"]["kv_transfer_config"] is None


@pytest.mark.parametrize(("role", "told"), [("prefill", "kv_producer"), ("decode", "kv_consumer"), ("both", "kv_both")])
async def test_the_role_is_told_as_vllm_names_it(role, told):
    async with running_engine(role=role, connector=True) as engine:
        config = (await engine.client.get("/server_info?config_format=json")).json()["vllm_config"]["kv_transfer_config"]
    assert (config["kv_connector"], config["kv_role"]) == ("NixlConnector", told)


async def test_a_prefill_that_drains_keeps_what_is_to_be_fetched():
    async with pair(shutdown_timeout_s=5.0) as (prefill, decode):
        params = await prefilled(prefill)
        ended = asyncio.create_task(prefill.server.run())
        prefill.server.stop()
        await asyncio.sleep(0.1)
        assert not ended.done()
        await decode.complete(prompt=PROMPT, max_tokens=1, kv_transfer_params=params)
        await asyncio.wait_for(ended, 2)


@pytest.mark.parametrize(
    ("version", "blocks", "has"),
    [("0.10.2", list, "tp_size"), ("0.16.0", list, "remote_request_id"), ("0.32.0", list, "remote_num_tokens")],
)
async def test_a_pair_of_an_older_version_understands_itself(version, blocks, has):
    async with pair(version=version) as (prefill, decode):
        params = (
            await prefill.client.post(
                "/v1/completions",
                json={"prompt": PROMPT, "max_tokens": 1, "kv_transfer_params": ASK},
                headers={"X-Request-Id": "same"},
            )
        ).json()["kv_transfer_params"]
        assert has in params
        nested = parse_version(version) >= (0, 17)
        assert isinstance(params["remote_block_ids"][0], blocks if nested else int)
        answer = await decode.client.post(
            "/v1/completions",
            json={"prompt": PROMPT, "max_tokens": 2, "kv_transfer_params": params},
            headers={"X-Request-Id": "same"},
        )
        assert answer.status_code == 200
        assert await until(lambda: not prefill.server.driver.core.held)


@pytest.mark.parametrize(("version", "seconds"), [("0.11.2", 480.0), ("0.32.0", 30.0)])
def test_leases_are_as_long_as_the_versions(version, seconds):
    assert lease_s(parse_version(version)) == seconds


async def test_garbage_on_the_side_channel_hurts_nobody():
    async with pair() as (prefill, decode):
        reader, writer = await asyncio.open_connection(prefill.server.settings.host, prefill.server.connector.port)
        writer.write(b"what is this\n")
        assert await reader.read() == b""
        writer.close()
        await decode.complete(prompt=PROMPT, max_tokens=1, kv_transfer_params=await prefilled(prefill))
