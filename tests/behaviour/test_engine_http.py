"""The simulated engine over real sockets against recorded answers of vLLM 0.32.0: bodies, streams, errors, metrics.

Ids, times and fingerprints differ from run to run and are replaced before the comparison; everything else must be equal, also the
order of keys.
"""

import json
import re
from pathlib import Path

import pytest

from backend.simulate.engine.publisher import PublisherSettings
from tests.fakes.engines import HOST, SMALL, always, free_ports, in_order, running_engine

DATA = Path(__file__).parents[1] / "data" / "engines"
TOKENIZER = DATA / "tiny_model" / "tokenizer.json"
CHAT = "/v1/chat/completions"
_MADE_UP = re.compile(
    r'"(id)":"((?:chat)?cmpl|modelperm)-[0-9a-f]{16}"|"(created)":\d+|"(system_fingerprint)":"vllm-([0-9.]+)-[0-9a-f]{8}"'
)


def recorded(name):
    return json.loads((DATA / "http" / f"{name}.json").read_text())


def normal(text):
    return _MADE_UP.sub(lambda found: f'"{found[1] or found[3] or found[4]}":"{found[2] or ""}{found[5] or ""}"', text)


async def send(engine, request):
    headers = {"content-type": "application/json", **request["headers"]} if request["method"] == "POST" else {}
    content = request.get("content") or (json.dumps(request["json"]) if request["json"] is not None else None)
    return await engine.client.request(request["method"], request["url"], content=content, headers=headers)


WHOLE = [
    ("completion_basic", always(226)),
    ("completion_token_ids", in_order([992, 587])),
    ("chat_basic", always(992)),
    ("tokenize_chat", None),
    ("tokenize_prompt", None),
    ("detokenize", None),
    ("health", None),
    ("load", None),
    ("version", None),
    ("models", None),
    ("err_bad_json", None),
    ("err_missing_field", None),
    ("err_too_long", None),
    ("err_unknown_model", None),
]


@pytest.mark.parametrize(("name", "sampler"), WHOLE, ids=[case[0] for case in WHOLE])
async def test_an_answer_is_the_recorded_one(name, sampler):
    golden = recorded(name)
    async with running_engine(sampler=sampler, tokenizer=TOKENIZER, model_root="/models/tiny") as engine:
        answer = await send(engine, golden["request"])
    expected = golden["response"]
    assert answer.status_code == expected["status"]
    assert normal(answer.text) == normal(expected["body"])
    assert {*answer.headers} == {*expected["headers"]}
    assert answer.headers.get("content-type") == expected["headers"].get("content-type")


async def test_a_repeated_prompt_reports_the_recorded_cached_tokens():
    async with running_engine(sampler=always(226), tokenizer=TOKENIZER) as engine:
        await send(engine, recorded("completion_basic")["request"])
        answer = await send(engine, recorded("completion_cached")["request"])
    assert normal(answer.text) == normal(recorded("completion_cached")["response"]["body"])


async def test_a_chat_stream_has_the_recorded_lines_in_the_recorded_order():
    golden = recorded("chat_stream_usage")
    async with running_engine(sampler=always(992), tokenizer=TOKENIZER) as engine:
        await send(engine, recorded("chat_basic")["request"])
        lines = await engine.stream(CHAT, **golden["request"]["json"])
    expected = [line for _, line in golden["response"]["lines"] if line]
    assert [normal(line) for line in lines] == [normal(line) for line in expected]


async def test_the_event_sources_are_listed_as_recorded():
    golden = recorded("kv_event_sources")["response"]["json"]["0"]
    ports = iter(free_ports(2))
    here = {name: re.sub(r"\d+$", lambda _: str(next(ports)), golden[name]) for name in ("endpoint", "replay_endpoint")}
    here["replay_endpoint"] = here["replay_endpoint"].replace("127.0.0.1", HOST)
    wanted = PublisherSettings(**here, topic=golden["topic"], host=HOST)
    async with running_engine(kv_events=wanted) as engine:
        answer = await engine.client.get("/kv_event_sources")
    assert answer.text == json.dumps({"0": {**golden, **here}}, separators=(",", ":"))


def payloads(lines):
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def test_a_completion_stream_gives_one_chunk_a_token_and_the_reason_with_the_last():
    async with running_engine() as engine:
        lines = await engine.stream("/v1/completions", prompt="Once upon a time", max_tokens=4)
        whole = await engine.complete(prompt="Once upon a time", max_tokens=4)
    assert lines[-1] == "data: [DONE]"
    chunks = [chunk["choices"][0] for chunk in payloads(lines)]
    assert [chunk["finish_reason"] for chunk in chunks] == [None, None, None, "length"]
    assert "".join(chunk["text"] for chunk in chunks) == whole["choices"][0]["text"]


async def test_continuous_usage_counts_in_every_chunk():
    async with running_engine() as engine:
        options = {"include_usage": True, "continuous_usage_stats": True}
        lines = await engine.stream(CHAT, messages=[{"role": "user", "content": "hi"}], max_tokens=2, stream_options=options)
    counts = [chunk["usage"] for chunk in payloads(lines)]
    assert [usage["completion_tokens"] for usage in counts] == [0, 1, 2, 2]
    assert "prompt_tokens_details" not in counts[0], "details come with the last chunk only"
    assert counts[-1]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_a_limit_beyond_the_room_is_cut_down_to_it():
    async with running_engine() as engine:
        answer = await engine.complete(prompt=[1] * 500, max_tokens=100)
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (12, "length")


@pytest.mark.parametrize("include_usage", [True, False])
async def test_the_fingerprint_stands_in_the_last_json_of_a_stream(include_usage):
    async with running_engine() as engine:
        chunks = payloads(await engine.stream("/v1/completions", prompt="a", max_tokens=3, stream_options={"include_usage": include_usage}))
    assert ["system_fingerprint" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


async def test_token_ids_come_with_a_stream_that_asks_for_them():
    async with running_engine(sampler=in_order([5, 6])) as engine:
        chunks = payloads(await engine.stream("/v1/completions", prompt=[1, 2, 3], max_tokens=2, return_token_ids=True))
    assert chunks[0]["choices"][0]["prompt_token_ids"] == [1, 2, 3]
    assert [chunk["choices"][0]["token_ids"] for chunk in chunks] == [[5], [6]]


async def test_an_answer_without_a_limit_ends_by_itself():
    async with running_engine() as engine:
        body = {"messages": [{"role": "user", "content": "tell me"}]}
        first, second = [(await engine.client.post(CHAT, json=body)).json() for _ in range(2)]
    assert first["choices"][0]["finish_reason"] == "stop"
    assert first["choices"][0]["message"] == second["choices"][0]["message"]


async def test_what_an_assistant_said_is_a_prefix_hit_in_the_next_turn():
    async with running_engine() as engine:
        turns = [{"role": "user", "content": "tell me a long story about a fox"}]
        first = (await engine.client.post(CHAT, json={"messages": turns, "max_tokens": 100})).json()
        turns += [first["choices"][0]["message"], {"role": "user", "content": "and then?"}]
        second = (await engine.client.post(CHAT, json={"messages": turns, "max_tokens": 1})).json()
    known = first["usage"]["total_tokens"] - 1
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == known // SMALL.block_size * SMALL.block_size


REFUSED = [
    # id, body, status, type, param
    ("negative_limit", {"prompt": "a", "max_tokens": -1}, 400, "BadRequestError", "max_tokens"),
    ("limit_beyond_the_context", {"prompt": "a", "max_tokens": 10_000}, 400, "BadRequestError", "max_tokens"),
    ("no_room_for_an_answer", {"prompt": [1] * 512}, 400, "BadRequestError", "max_tokens"),
    ("too_many_token_ids", {"prompt": [1] * 600}, 400, "BadRequestError", "input_tokens"),
    ("too_high_temperature", {"prompt": "a", "temperature": 3}, 400, "BadRequestError", "temperature"),
    ("negative_temperature", {"prompt": "a", "temperature": -1}, 400, "BadRequestError", "temperature"),
    ("empty_prompt", {"prompt": ""}, 400, "BadRequestError", "prompt"),
    ("no_prompt", {}, 400, "BadRequestError", "prompt"),
    ("two_prompts", {"prompt": ["a", "b"]}, 400, "BadRequestError", "prompt"),
    ("a_negative_token", {"prompt": [1, -2]}, 400, "Bad Request", "body.prompt"),
    ("a_limit_in_words", {"prompt": "a", "max_tokens": "many"}, 400, "Bad Request", "body.max_tokens"),
    ("a_list", ["prompt"], 400, "Bad Request", "body"),
    ("another_model_streamed", {"prompt": "a", "model": "nope", "stream": True}, 404, "NotFoundError", "model"),
]


@pytest.mark.parametrize(("body", "status", "kind", "param"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
async def test_a_wrong_request_is_refused_as_vllm_does(body, status, kind, param):
    async with running_engine() as engine:
        answer = await engine.client.post("/v1/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"], error["code"]) == (status, kind, param, status)


async def test_a_body_that_is_not_declared_as_json_is_refused():
    async with running_engine() as engine:
        answer = await engine.client.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, None)


async def test_unknown_paths_and_methods_have_a_detail_and_no_error_object():
    async with running_engine() as engine:
        lost, wrong = await engine.client.get("/nope"), await engine.client.get("/v1/completions")
    assert (lost.status_code, lost.json()) == (404, {"detail": "Not Found"})
    assert (wrong.status_code, wrong.json()) == (405, {"detail": "Method Not Allowed"})


async def test_a_request_id_is_part_of_the_answers_id():
    async with running_engine() as engine:
        answer = await engine.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers={"X-Request-Id": "r-1"})
    assert answer.json()["id"] == "cmpl-r-1"


@pytest.mark.parametrize(("model", "version", "block_size"), [("llama-70b", "0.31.0", 16), ("qwen3-8b", "0.32.0", 64)])
async def test_name_version_and_block_size_are_the_engines_own(model, version, block_size):
    limits = type(SMALL)(block_size=block_size, num_blocks=100, max_model_len=1024)
    async with running_engine(model=model, version=version, core=limits) as engine:
        prompt = list(range(130))
        await engine.complete(prompt=prompt, model=model, max_tokens=1)
        again = await engine.complete(prompt=prompt, max_tokens=1)
        info = (await engine.client.get("/server_info?config_format=json")).json()
    assert again["model"] == model
    assert again["system_fingerprint"].startswith(f"vllm-{version}-")
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 128
    assert info["vllm_config"]["cache_config"]["block_size"] == block_size


def shape(text, name="tiny"):
    """Metric lines without their numbers; handlers of HTTP metrics depend on what was asked before."""
    lines = [line if line.startswith("#") else line.rpartition(" ")[0] for line in text.splitlines()]
    return {re.sub(r'kv_cache_memory_bytes="\w+"', "", line) for line in lines if not line.startswith("http_")}


async def test_metrics_have_the_recorded_names_labels_help_types_and_buckets():
    async with running_engine() as engine:
        answer = await engine.client.get("/metrics")
    golden = (DATA / "metrics_vllm_0.32.0_idle.txt").read_text()
    assert answer.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
    assert shape(answer.text) == shape(golden)


def http_lines(text):
    """HTTP metrics of the completion route, without numbers."""
    return {
        line.rpartition(" ")[0]
        for line in text.splitlines()
        if line.startswith("http_") and '"/v1/completions"' in line and "4xx" not in line
    }


async def test_http_metrics_have_the_recorded_names_and_labels():
    async with running_engine() as engine:
        await engine.complete(prompt="a", max_tokens=1)
        text = (await engine.client.get("/metrics")).text
    assert http_lines(text) == http_lines((DATA / "metrics_vllm_0.32.0_under_load.txt").read_text())


async def test_metrics_tell_what_happened():
    async with running_engine(model='a"b') as engine:
        for _ in range(2):
            await engine.complete(prompt=list(range(65)), max_tokens=3)
        text = (await engine.client.get("/metrics")).text
    value = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if not line.startswith("#")}
    labels = 'engine="0",model_name="a\\"b"'
    assert value[f"vllm:prefix_cache_queries_total{{{labels}}}"] == 130
    assert value[f"vllm:prefix_cache_hits_total{{{labels}}}"] == 64
    assert value[f"vllm:generation_tokens_total{{{labels}}}"] == 6
    assert value[f"vllm:time_to_first_token_seconds_count{{{labels}}}"] == 2
    assert value[f"vllm:inter_token_latency_seconds_count{{{labels}}}"] == 4
    assert value['vllm:request_success_total{engine="0",finished_reason="length",model_name="a\\"b"}'] == 2
    assert value[f"vllm:kv_cache_usage_perc{{{labels}}}"] == 0


RENAMED = [
    ("0.8.5", {"gpu_cache_usage_perc", "time_per_output_token_seconds"}, {"kv_cache_usage_perc", "inter_token_latency_seconds"}),
    ("0.11.2", {"gpu_cache_usage_perc", "kv_cache_usage_perc", "inter_token_latency_seconds"}, {"prompt_tokens_by_source_total"}),
    ("0.16.0", {"kv_cache_usage_perc", "prompt_tokens_by_source_total"}, {"gpu_cache_usage_perc", "time_per_output_token_seconds"}),
]


@pytest.mark.parametrize(("version", "has", "has_not"), RENAMED, ids=[case[0] for case in RENAMED])
async def test_metric_names_are_those_of_the_version(version, has, has_not):
    async with running_engine(version=version) as engine:
        text = (await engine.client.get("/metrics")).text
    names = set(re.findall(r"# TYPE vllm:(\S+)", text))
    assert has <= names
    assert not has_not & names
