"""A simulated SGLang over real sockets: bodies, streams, errors, discovery, metrics, health and drain, from its contract."""

import asyncio
import json
import re
import time

import pytest

from backend.simulate.engine.publisher import PublisherSettings
from tests.fakes.engines import HOST, SMALL, events_of, in_order, listening, running_engine, until

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "tell me about foxes"}]


def sglang(**more):
    return running_engine(**{"engine": "sglang", "version": "0.5.23", "health_generates": False, **more})


def payloads(lines):
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def test_a_completion_has_the_fields_of_sglang():
    async with sglang(sampler=in_order([600, 601])) as engine:
        answer = await engine.complete(model="any name", prompt=list(range(40)), max_tokens=2)
    assert re.fullmatch("[0-9a-f]{32}", answer.pop("id"))
    assert abs(answer.pop("created") - time.time()) < 5
    assert answer.pop("choices")[0].keys() == {"index", "text", "logprobs", "finish_reason", "matched_stop"}
    assert answer == {
        "object": "text_completion",
        "model": "any name",
        "usage": {
            "prompt_tokens": 40,
            "total_tokens": 42,
            "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 0},
            "reasoning_tokens": 0,
        },
        "metadata": {"weight_version": "default"},
    }


async def test_chat_ends_by_itself_and_the_next_turn_hits_the_cache():
    async with sglang() as engine:
        first = (await engine.client.post(CHAT, json={"messages": MESSAGES})).json()
        choice = first["choices"][0]
        turns = [*MESSAGES, {"role": "assistant", "content": choice["message"]["content"]}, {"role": "user", "content": "and?"}]
        second = (await engine.client.post(CHAT, json={"messages": turns, "max_tokens": 1})).json()
    assert choice["finish_reason"] == "stop"
    known = (first["usage"]["total_tokens"] - 1) // 32 * 32
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == known


async def test_a_chat_stream_begins_with_the_role_and_ends_with_reason_and_usage():
    async with sglang() as engine:
        chunks = payloads(await engine.stream(CHAT, messages=MESSAGES, max_tokens=3, stream_options={"include_usage": True}))
        whole = (await engine.client.post(CHAT, json={"messages": MESSAGES, "max_tokens": 3})).json()
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert (deltas[0]["role"], deltas[0]["content"]) == ("assistant", "")
    assert "".join(delta["content"] or "" for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * 4 + ["length"]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 3)


async def test_a_completion_stream_gives_the_reason_with_its_last_text_and_counts_when_asked():
    async with sglang() as engine:
        options = {"continuous_usage_stats": True}
        chunks = payloads(await engine.stream("/v1/completions", prompt="Once upon", max_tokens=3, stream_options=options))
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3]


@pytest.mark.parametrize("given", [{"text": "Once upon a time"}, {"input_ids": list(range(20))}], ids=["text", "ids"])
async def test_generate_answers_in_sglangs_own_form(given):
    async with sglang() as engine:
        body = {**given, "sampling_params": {"max_new_tokens": 4}, "rid": "r-1"}
        whole = (await engine.client.post("/generate", json=body)).json()
        chunks = payloads(await engine.stream("/generate", **body))
    assert whole["meta_info"]["finish_reason"] == {"type": "length", "length": 4}
    assert (whole["meta_info"]["id"], whole["meta_info"]["completion_tokens"], len(whole["output_ids"])) == ("r-1", 4, 4)
    assert [chunk["output_ids"] for chunk in chunks] == [whole["output_ids"][: count + 1] for count in range(4)], "each has all so far"
    assert chunks[-1]["text"] == whole["text"]


async def test_token_ids_come_when_asked_for():
    async with sglang(sampler=in_order([5, 6])) as engine:
        answer = await engine.complete(prompt=[1, 2, 3], max_tokens=2, return_token_ids=True)
    assert (answer["choices"][0]["prompt_token_ids"], answer["choices"][0]["token_ids"]) == ([1, 2, 3], [5, 6])


REFUSED = [
    ("too_long", "/v1/completions", {"prompt": [1] * 600}, "BadRequestError"),
    ("limit_beyond_the_context", "/v1/completions", {"prompt": [1] * 500, "max_tokens": 100}, "BadRequestError"),
    ("no_prompt", "/v1/completions", {}, "Bad Request"),
    ("negative_limit", "/v1/completions", {"prompt": "a", "max_tokens": -1}, "Bad Request"),
    ("a_limit_in_words", "/v1/completions", {"prompt": "a", "max_tokens": "many"}, "Bad Request"),
    ("two_prompts", "/v1/completions", {"prompt": ["a", "b"]}, "BadRequestError"),
    ("a_list", "/v1/completions", ["prompt"], "Bad Request"),
    ("negative_temperature", "/v1/completions", {"prompt": "a", "temperature": -1}, "BadRequestError"),
    ("no_messages", CHAT, {}, "Bad Request"),
    ("empty_messages", CHAT, {"messages": []}, "BadRequestError"),
    ("neither_text_nor_ids", "/generate", {"sampling_params": {}}, "BadRequestError"),
    ("sampling_that_is_a_list", "/generate", {"text": "a", "sampling_params": []}, "Bad Request"),
]


@pytest.mark.parametrize(("path", "body", "kind"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
async def test_a_wrong_request_is_refused_with_a_flat_error(path, body, kind):
    async with sglang() as engine:
        answer = await engine.client.post(path, json=body)
    error = answer.json()
    assert (answer.status_code, error["object"], error["type"], error["param"], error["code"]) == (400, "error", kind, None, 400)


@pytest.mark.parametrize(("content", "kind"), [(b"{", "application/json"), (b"{}", "text/plain")], ids=["not_json", "not_declared"])
async def test_a_body_that_is_no_json_is_refused(content, kind):
    async with sglang() as engine:
        answer = await engine.client.post("/v1/completions", content=content, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["object"]) == (400, "error")


@pytest.mark.parametrize(("model", "version", "page"), [("llama-70b", "0.5.8", 16), ("qwen3-8b", "0.5.23", 64)])
async def test_name_version_and_page_size_are_the_engines_own(model, version, page):
    core = type(SMALL)(block_size=page, num_blocks=100, max_model_len=1024)
    async with sglang(model=model, version=version, core=core) as engine:
        for _ in range(2):
            answer = await engine.complete(prompt=list(range(130)), max_tokens=1)
        card = (await engine.client.get("/v1/models")).json()["data"][0]
        shown = [(await engine.client.get(path)).json() for path in ("/server_info", "/get_server_info")]
        known = [(await engine.client.get(path)).json() for path in ("/model_info", "/get_model_info")]
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 128
    assert (card["id"], card["owned_by"], card["max_model_len"]) == (model, "sglang", 1024)
    assert shown[0] == shown[1]
    assert (shown[0]["version"], shown[0]["page_size"], shown[0]["max_total_num_tokens"]) == (version, page, 99 * page)
    assert shown[0]["kv_events"] is None
    assert known[0] == known[1]
    assert (known[0]["served_model_name"], known[0]["is_generation"]) == (model, True)


async def test_subscribers_learn_where_events_are_and_get_what_was_promised():
    async with sglang(events=True) as engine, listening(engine) as listener:
        told = (await engine.client.get("/server_info")).json()["kv_events"]
        await engine.complete(prompt=list(range(70)), max_tokens=1)
        (batch,) = await listener.batches(1)
        replayed = await listener.replay(f"tcp://{HOST}:{told['replay_endpoint_port_base']}", 0)
    assert (told["publisher"], told["endpoint_host"], told["topic"], told["block_size"], told["dp_size"]) == ("zmq", HOST, "", 32, 1)
    assert engine.server.publisher.endpoint == f"tcp://{HOST}:{told['endpoint_port_base']}"
    assert replayed[0][-1] == batch[-1]
    (event,) = events_of(batch[-1])
    assert (event["type"], len(event["block_hashes"]), len(event["token_ids"]), event["medium"]) == ("BlockStored", 2, 64, "GPU")


async def test_a_wildcard_stays_one_for_subscribers():
    async with sglang(kv_events=PublisherSettings(endpoint="tcp://*:0", host=HOST)) as engine:
        port = int(engine.server.publisher.endpoint.rpartition(":")[2])
    assert port > 0
    wanted = PublisherSettings(endpoint=f"tcp://*:{port}", host=HOST)
    async with sglang(kv_events=wanted) as engine:
        told = (await engine.client.get("/server_info")).json()["kv_events"]
    assert (told["endpoint_host"], told["endpoint_port_base"], "replay_endpoint_port_base" in told) == ("*", port, False)


@pytest.mark.parametrize(("version", "frames"), [("0.5.20", 3), ("0.5.22", 4)], ids=["without_topic", "with_topic"])
async def test_a_replay_is_framed_as_the_version_does(version, frames):
    async with sglang(events=True, version=version) as engine, listening(engine) as listener:
        await engine.complete(prompt=list(range(70)), max_tokens=1)
        replayed = await listener.replay(engine.server.publisher.replay_endpoint, 0)
    assert {len(answer) for answer in replayed} == {frames}


def values(text):
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


async def test_metrics_have_sglangs_names_and_labels_and_tell_what_happened():
    async with sglang() as engine:
        for _ in range(2):
            await engine.complete(prompt=list(range(65)), max_tokens=3)
        answer = await engine.client.get("/metrics")
    value = values(answer.text)
    rank = '{engine_type="unified",model_name="tiny",moe_ep_rank="0",pp_rank="0",tp_rank="0"}'
    assert value[f"sglang:num_running_reqs{rank}"] == 0
    assert value[f"sglang:token_usage{rank}"] == 0
    assert value[f"sglang:max_total_num_tokens{rank}"] == 63 * 32
    assert value[f"sglang:cache_hit_rate{rank}"] == pytest.approx(64 / 65)
    assert value['sglang:prompt_tokens_total{model_name="tiny"}'] == 130
    assert value['sglang:cached_tokens_total{model_name="tiny"}'] == 64
    assert value['sglang:generation_tokens_total{model_name="tiny"}'] == 6
    assert value['sglang:num_requests_total{model_name="tiny"}'] == 2
    assert value['sglang:time_to_first_token_seconds_count{model_name="tiny"}'] == 2
    assert value['sglang:inter_token_latency_seconds_count{model_name="tiny"}'] == 4
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert all(name.startswith("sglang:") for name in value)


NAMES = [
    *("num_running_reqs", "num_queue_reqs", "token_usage", "num_used_tokens", "max_total_num_tokens", "cache_hit_rate"),
    *("gen_throughput", "num_prefill_bootstrap_queue_reqs", "num_prefill_inflight_queue_reqs"),
    *("num_decode_prealloc_queue_reqs", "num_decode_transfer_queue_reqs", "num_retracted_reqs", "kv_transfer_latency_ms"),
    *("kv_transfer_speed_gb_s", "num_transfer_failed_reqs_total", "page_size", "time_to_first_token_seconds"),
    *("inter_token_latency_seconds", "e2e_request_latency_seconds", "queue_time_seconds", "prompt_tokens_total"),
    *("generation_tokens_total", "cached_tokens_total", "num_requests_total", "num_aborted_requests_total"),
    "evicted_tokens_total",
]


@pytest.mark.parametrize(("role", "told"), [("both", "unified"), ("prefill", "prefill"), ("decode", "decode")])
async def test_the_metrics_of_every_role_have_the_names_of_the_contract(role, told):
    async with sglang(role=role) as engine:
        text = (await engine.client.get("/metrics")).text
    assert set(NAMES) <= set(re.findall(r"# TYPE sglang:(\S+)", text))
    assert f'engine_type="{told}"' in text


async def test_evictions_are_counted_and_told_in_one_event_a_step():
    async with sglang(events=True) as engine, listening(engine) as listener:
        for start in range(0, 6000, 600):
            await engine.complete(prompt=list(range(start, start + 450)), max_tokens=1)
        events = [event for batch in await listener.batches(10) for event in events_of(batch[-1])]
        evicted = [line for line in (await engine.client.get("/metrics")).text.splitlines() if line.startswith("sglang:evicted")]
    removed = [event for event in events if event["type"] == "BlockRemoved"]
    assert max(len(event["block_hashes"]) for event in removed) > 1
    assert float(evicted[0].rpartition(" ")[2]) == 32 * sum(len(event["block_hashes"]) for event in removed)


async def test_a_flush_is_refused_while_requests_run_and_told_late():
    async with sglang(events=True, speed=1.0) as engine, listening(engine) as listener:
        running = asyncio.create_task(engine.complete(prompt=list(range(40)), max_tokens=40))
        assert await until(lambda: engine.server.driver.core.running)
        assert (await engine.client.post("/flush_cache")).status_code == 400
        await running
        assert (await engine.client.post("/flush_cache")).status_code == 200
        await engine.complete(prompt=list(range(40)), max_tokens=1)
        batches = [events_of(batch[-1]) for batch in await listener.batches(3)]
    assert [event["type"] for event in batches[-1]] == ["AllBlocksCleared", "BlockStored"]


async def test_a_health_check_waits_for_its_token():
    async with sglang(health_generates=True) as engine:
        began = time.monotonic()
        assert (await engine.client.get("/health")).status_code == 200
    assert 0.9 < time.monotonic() - began < 2


async def test_while_it_drains_health_says_so_and_requests_are_served_until_none_is_left():
    async with sglang(shutdown_timeout_s=float("inf"), speed=1.0) as engine:
        running = asyncio.create_task(engine.complete(prompt=list(range(40)), max_tokens=60))
        assert await until(lambda: engine.server.driver.core.running)
        engine.server.stop()
        assert [(await engine.client.get(path)).status_code for path in ("/health", "/ready")] == [503, 503]
        late = await engine.complete(prompt=[1, 2, 3], max_tokens=1)
        assert late["choices"][0]["finish_reason"] == "length"
        assert (await running)["usage"]["completion_tokens"] == 60
        await asyncio.wait_for(engine.server.run(), 2)


@pytest.mark.parametrize("named", [{"rid": "mine"}, {"abort_all": True}], ids=["by_name", "all"])
async def test_an_aborted_request_ends_with_what_it_has(named):
    async with sglang(speed=1.0) as engine:
        asked = asyncio.create_task(engine.complete(prompt=[1, 2, 3], max_tokens=400, rid="mine"))
        assert await until(lambda: engine.server.driver.core.running and engine.server.driver.core.running[0].generated > 2)
        await engine.client.post("/abort_request", json={"rid": "another"})
        assert not asked.done()
        await engine.client.post("/abort_request", json=named)
        answer = await asked
        assert engine.server.driver.core.idle
    assert answer["choices"][0]["finish_reason"] == "abort"
    assert 0 < answer["usage"]["completion_tokens"] < 400


async def test_paused_engines_generate_nothing_until_they_go_on():
    async with sglang() as engine:
        await engine.client.post("/pause_generation", json={})
        waiting = asyncio.create_task(engine.complete(prompt=[1, 2], max_tokens=1))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await engine.client.post("/continue_generation", json={})
        await waiting


async def test_tokens_of_a_prompt_and_back():
    async with sglang() as engine:
        ids = (await engine.client.post("/tokenize", json={"prompt": "two words"})).json()
        text = (await engine.client.post("/detokenize", json={"tokens": ids["tokens"]})).json()
        loads = (await engine.client.get("/v1/loads")).json()["loads"]
    assert (ids["count"], text) == (len(ids["tokens"]), {"text": "two words"})
    assert loads[0]["num_running_reqs"] == 0
