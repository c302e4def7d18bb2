"""The SGLang adapter against the contract of its versions: figures, event sources, tokenizing, draining."""

import json
from typing import Any

import pytest

from backend.core.errors import WireError
from backend.engines import adapter
from backend.engines.base import EventSourceInfo

SGLANG = adapter("sglang")
LABELS = 'model_name="m",engine_type="unified",tp_rank="0",pp_rank="0",moe_ep_rank="0"'


def test_figures_are_found_under_their_labels_and_ranks_are_summed_or_averaged() -> None:
    text = "".join(
        f'sglang:{name}{{{LABELS},dp_rank="{rank}"}} {value}\n'
        for name, values in (
            ("num_running_reqs", (3.0, 2.0)),
            ("num_queue_reqs", (1.0, 0.0)),
            ("token_usage", (0.25, 0.75)),
            ("prompt_tokens_total", (1000.0, 24.0)),
            ("cached_tokens_total", (500.0, 12.0)),
            ("generation_tokens_total", (40.0, 2.0)),
            ("num_requests_total", (7.0, 1.0)),
            ("time_to_first_token_seconds_sum", (0.5, 0.25)),
            ("time_to_first_token_seconds_count", (7.0, 1.0)),
        )
        for rank, value in enumerate(values)
    )
    assert SGLANG.parse_load(text.encode()) == {
        "running": 5, "waiting": 1, "kv_usage": 0.5, "prompt_tokens": 1024, "prefix_queries": 1024, "prefix_hits": 512,
        "generation_tokens": 42, "requests_finished": 8, "ttft_sum": 0.75, "ttft_count": 8,
    }  # fmt: skip


BLOCK = {"publisher": "zmq", "endpoint_host": "*", "endpoint_port_base": 5557, "topic": "kv", "block_size": 64, "dp_size": 1}
OLD = json.dumps({"publisher": "zmq", "endpoint": "tcp://*:5557", "topic": "kv"})
BOTH = json.dumps({"publisher": "zmq", "endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5600"})


def source(port: int, rank: int = 0, *, host: str = "10.0.0.1", **more: Any) -> EventSourceInfo:
    return EventSourceInfo(rank=rank, endpoint=f"tcp://{host}:{port}", **more)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        pytest.param({"kv_events": BLOCK}, [source(5557, topic="kv")], id="one_rank"),
        pytest.param(
            {"kv_events": {**BLOCK, "dp_size": 2, "replay_endpoint_port_base": 5600}},
            [source(5557 + n, n, topic="kv", replay_endpoint=f"tcp://10.0.0.1:{5600 + n}") for n in (0, 1)],
            id="two_ranks_with_replay",
        ),
        pytest.param({"kv_events": {**BLOCK, "endpoint_host": "10.9.9.9"}}, [source(5557, host="10.9.9.9", topic="kv")], id="own_host"),
        pytest.param({"kv_events": {**BLOCK, "publisher": "null"}}, [], id="another_publisher"),
        pytest.param({"kv_events": None}, [], id="switched_off"),
        pytest.param({"model_path": "x"}, [], id="nothing_told"),
        pytest.param({"kv_events_config": OLD}, [source(5557, topic="kv")], id="an_older_version_tells_its_configuration"),
        pytest.param(
            {"kv_events_config": BOTH, "dp_size": 2},
            [source(5557 + n, n, replay_endpoint=f"tcp://10.0.0.1:{5600 + n}") for n in (0, 1)],
            id="an_older_version_with_two_ranks",
        ),
        pytest.param({"kv_events_config": "{}"}, [], id="an_older_version_without_events"),
    ],
)
def test_event_sources_are_read_from_the_server_info(info: dict[str, Any], expected: list[EventSourceInfo]) -> None:
    assert SGLANG.event_sources(json.dumps(info).encode(), "10.0.0.1") == expected


@pytest.mark.parametrize("payload", [b"<html>", b'{"kv_events":{"endpoint_port_base":"x"}}', b'{"kv_events_config":"{"}', b"[]"])
def test_an_unreadable_server_info_is_said(payload: bytes) -> None:
    with pytest.raises(WireError, match="SGLang"):
        SGLANG.event_sources(payload, "h")


def test_prompts_and_chats_are_tokenized_by_the_engine() -> None:
    path, body = SGLANG.tokenize_request({"model": "m", "prompt": "hello", "max_tokens": 4})
    assert (path, json.loads(body)) == ("/tokenize", {"model": "m", "prompt": "hello"})
    chat = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [{}], "temperature": 1}
    assert json.loads(SGLANG.tokenize_request(chat)[1]) == {name: chat[name] for name in ("model", "messages", "tools")}
    assert SGLANG.tokenize_response(b'{"tokens":[1,2],"count":2,"max_model_len":-1}') == [1, 2]
    with pytest.raises(WireError):
        SGLANG.tokenize_response(b'{"error":"no"}')


def test_an_abort_before_the_first_token_means_draining() -> None:
    assert SGLANG.is_draining("abort", 0)
    assert not SGLANG.is_draining("abort", 3)
    assert not SGLANG.is_draining("stop", 0)
