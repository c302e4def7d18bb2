"""The vLLM adapter against recorded answers, and against the spellings of older versions."""

import json
from pathlib import Path

import pytest

from backend.core.errors import UsageError, WireError
from backend.engines import adapter, known_engines
from tests.fakes.engines import running_engine

DATA = Path(__file__).parents[2] / "data" / "engines"
VLLM = adapter("vllm")


def test_all_figures_of_a_recorded_scrape_under_load_are_found():
    load = VLLM.parse_load((DATA / "metrics_vllm_0.32.0_under_load.txt").read_bytes())
    assert (load["running"], load["waiting"], round(load["kv_usage"], 3)) == (8, 8, 0.635)
    assert (load["prefix_queries"], load["prefix_hits"]) == (8143, 576)
    assert (load["prompt_tokens"], load["generation_tokens"]) == (8143, 5182)
    assert load["requests_finished"] == 89, "the sum over reasons"
    assert (load["ttft_count"], round(load["ttft_sum"], 3)) == (97, 35.614)
    assert (load["itl_count"], load["e2e_count"]) == (5085, 89)


SPELLINGS = [
    ("gpu_names_before_0_12", b'vllm:gpu_cache_usage_perc{model_name="m"} 0.5\n', {"kv_usage": 0.5}),
    ("both_names_count_once", b"vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.25\n", {"kv_usage": 0.25}),
    (
        "old_itl",
        b"vllm:time_per_output_token_seconds_sum 3.0\nvllm:time_per_output_token_seconds_count 4.0\n",
        {"itl_sum": 3, "itl_count": 4},
    ),
    ("ranks_are_summed", b'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 3.0\n', {"running": 5}),
    (
        "usage_of_ranks_is_averaged",
        b'vllm:kv_cache_usage_perc{engine="0"} 0.2\nvllm:kv_cache_usage_perc{engine="1"} 0.4\n',
        {"kv_usage": 0.3},
    ),
    ("a_longer_name_is_another", b'vllm:num_requests_waiting_by_reason{reason="x"} 7.0\nvllm:num_requests_waiting 1.0\n', {"waiting": 1}),
    ("braces_in_a_label", b'vllm:num_requests_running{model_name="a} 9"} 2.0\n', {"running": 2}),
    ("large_numbers", b"vllm:prompt_tokens_total 1.234567e+06\n", {"prompt_tokens": 1234567}),
    ("nothing", b"", {}),
    ("a_cut_off_line", b"vllm:num_requests_running 12", {}),
]


@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in SPELLINGS], ids=[case[0] for case in SPELLINGS])
def test_figures_are_read_in_every_spelling_and_never_invented(text, expected):
    assert VLLM.parse_load(text) == pytest.approx(expected)


@pytest.mark.parametrize("version", ["0.8.5", "0.11.2", "0.15.0", "0.32.0"])
async def test_the_simulated_engine_of_each_version_shows_all_figures(version):
    async with running_engine(version=version) as engine:
        await engine.complete(prompt="a", max_tokens=2)
        load = VLLM.parse_load((await engine.client.get("/metrics")).content)
    assert load["itl_count"] == 1
    assert {"running", "waiting", "kv_usage", "prefix_queries", "prefix_hits", "ttft_sum", "requests_finished"} <= set(load)


def test_event_sources_are_told_as_seen_from_outside():
    body = json.loads((DATA / "http" / "kv_event_sources.json").read_text())["response"]["body"]
    (source,) = VLLM.event_sources(body.encode(), "10.1.2.3")
    assert (source.rank, source.endpoint, source.topic) == (0, "tcp://10.1.2.3:18157", "kv@127.0.0.1:18100@tiny")
    assert source.engine_binds


SOURCES = [
    ("every_rank", {"1": {"endpoint": "tcp://*:2"}, "0": {"endpoint": "tcp://*:1"}}, [(0, "tcp://pod:1", True), (1, "tcp://pod:2", True)]),
    ("any_address", {"0": {"endpoint": "tcp://0.0.0.0:5"}}, [(0, "tcp://pod:5", True)]),
    ("any_v6_address", {"0": {"endpoint": "tcp://[::]:5"}}, [(0, "tcp://pod:5", True)]),
    ("a_concrete_host_means_the_engine_connects", {"0": {"endpoint": "tcp://collector:5"}}, [(0, "tcp://collector:5", False)]),
    ("its_own_address", {"0": {"endpoint": "tcp://pod:5"}}, [(0, "tcp://pod:5", True)]),
    ("switched_off", {"0": {"endpoint": "tcp://*:5", "enable_kv_cache_events": False}}, []),
    ("none", {}, []),
]


@pytest.mark.parametrize(("listed", "expected"), [case[1:] for case in SOURCES], ids=[case[0] for case in SOURCES])
def test_event_sources(listed, expected):
    body = json.dumps({rank: {"enable_kv_cache_events": True, **source} for rank, source in listed.items()}).encode()
    assert [(found.rank, found.endpoint, found.engine_binds) for found in VLLM.event_sources(body, "pod")] == expected


@pytest.mark.parametrize("body", [b"", b"[]", b'{"zero":{"enable_kv_cache_events":true,"endpoint":"a"}}', b'{"0":{"endpoint":3}}'])
def test_event_sources_that_cannot_be_read_are_an_error(body):
    with pytest.raises(WireError):
        VLLM.event_sources(body, "pod")


@pytest.mark.parametrize(
    "body",
    [{"model": "tiny", "prompt": "hello fox", "max_tokens": 1}, {"messages": [{"role": "user", "content": "hello fox"}], "temperature": 0}],
    ids=["completion", "chat"],
)
async def test_the_tokenize_call_gives_the_tokens_that_the_engine_uses(body):
    path, payload = VLLM.tokenize_request(body)
    async with running_engine() as engine:
        answer = await engine.client.post(path, content=payload, headers={"content-type": "application/json"})
        tokens = VLLM.tokenize_response(answer.content)
        route = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        used = (await engine.client.post(route, json={**body, "max_tokens": 1})).json()["usage"]["prompt_tokens"]
    assert len(tokens) == used


def test_a_token_list_that_cannot_be_read_is_an_error():
    with pytest.raises(WireError):
        VLLM.tokenize_response(b'{"error":{}}')


@pytest.mark.parametrize(
    ("reason", "tokens", "draining"), [("abort", 0, True), ("abort", 3, False), ("length", 0, False), (None, 0, False)]
)
def test_an_abort_without_a_token_means_draining(reason, tokens, draining):
    assert VLLM.is_draining(reason, tokens) is draining


def test_an_unknown_engine_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"vllm"):
        adapter("tgi")
    assert "vllm" in known_engines()
