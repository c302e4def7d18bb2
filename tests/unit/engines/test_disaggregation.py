"""The two legs of a disaggregated request as each family wants them: vLLM's against recorded exchanges, SGLang's against its contract."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.core.errors import WireError
from backend.engines import adapter, known_engines
from backend.engines.base import PrefillPod

DATA = Path(__file__).parents[2] / "data" / "engines" / "pd_nixl"
VLLM, SGLANG = adapter("vllm"), adapter("sglang")
POD = PrefillPod("10.0.0.7", 0, 2**63 - 5)


def recorded(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text())


@pytest.mark.parametrize(("prefill", "decode"), [("01_prefill", "02_decode"), ("03_chat_prefill", "04_chat_decode_stream")])
def test_vllm_gets_the_legs_that_were_seen_to_work(prefill: str, decode: str) -> None:
    first, second = recorded(prefill), recorded(decode)["request"]["json"]
    asked = {name: value for name, value in second.items() if name != "kv_transfer_params"}
    body = json.dumps(asked).encode()
    sent = json.loads(VLLM.prefill_request(body, POD))
    wanted = {**first["request"]["json"], **{name: value for name, value in asked.items() if name in ("return_token_ids", "ignore_eos")}}
    assert sent == wanted
    leg = VLLM.decode_request(body, PrefillPod("127.0.0.1"), first["response"]["body"].encode())
    assert (json.loads(leg.body), leg.transfers) == (second, True)


HOSTS = [
    pytest.param('"localhost"', "10.0.0.7", id="the_default_leads_nowhere"),
    pytest.param('"0.0.0.0"', "10.0.0.7", id="every_interface_is_no_address"),
    pytest.param("null", "10.0.0.7", id="none_at_all"),
    pytest.param('"192.168.7.7"', "192.168.7.7", id="another_network_was_meant"),
]


@pytest.mark.parametrize(("told", "expected"), HOSTS)
def test_vllms_side_channel_is_found_at_the_prefill_pod(told: str, expected: str) -> None:
    answer = b'{"kv_transfer_params":{"remote_host":%b,"remote_block_ids":[[9007199254740993]]}}' % told.encode()
    params = json.loads(VLLM.decode_request(b'{"model":"m"}', POD, answer).body)["kv_transfer_params"]
    assert params == {"remote_host": expected, "remote_block_ids": [[9007199254740993]]}


@pytest.mark.parametrize("answer", [b'{"kv_transfer_params":null}', b'{"choices":[]}'])
def test_a_prefill_without_a_connector_hands_nothing_over_and_what_the_client_named_is_dropped(answer: bytes) -> None:
    leg = VLLM.decode_request(b'{"model":"m","kv_transfer_params":{"remote_block_ids":[[1]]}}', POD, answer)
    assert (json.loads(leg.body), leg.transfers) == ({"model": "m"}, False)


@pytest.mark.parametrize("answer", [b"<html>", b'{"kv_transfer_params":[1]}', b"[]"])
def test_a_prefill_answer_of_no_use_is_refused(answer: bytes) -> None:
    with pytest.raises(WireError):
        VLLM.decode_request(b'{"model":"m"}', POD, answer)


def test_sglangs_legs_meet_in_one_room_at_the_prefill_pod() -> None:
    body = b'{"model":"m","stream":true,"max_tokens":9,"stream_options":{},"min_tokens":3,"bootstrap_room":1,"prompt":[1, 2]}'
    place = {"bootstrap_host": "10.0.0.7", "bootstrap_port": 8998, "bootstrap_room": 2**63 - 5}
    assert json.loads(SGLANG.prefill_request(body, POD)) == {"model": "m", "stream": False, "max_tokens": 1, "prompt": [1, 2], **place}
    assert json.loads(SGLANG.decode_request(body, POD, b"").body) == {**json.loads(body), **place}
    assert json.loads(SGLANG.prefill_request(body, PrefillPod("h", 9001, 7)))["bootstrap_port"] == 9001


@pytest.mark.parametrize("name", known_engines())
def test_what_stands_below_the_top_level_keeps_its_bytes(name: str) -> None:
    messages = b'[ {"role" : "user","content":"\\u00e9\\/ x"} , {"n":1e3} ]'
    body = b'{"messages":%b,"model":"m"}' % messages
    assert messages in adapter(name).prefill_request(body, POD)
    assert messages in adapter(name).decode_request(body, POD, b'{"kv_transfer_params":{"a":1}}').body


@pytest.mark.parametrize("name", known_engines())
@given(fields=st.dictionaries(st.text(), st.none() | st.integers(-(2**63), 2**63) | st.text() | st.lists(st.booleans()), max_size=8))
def test_a_prefill_makes_one_token_whatever_was_asked(name: str, fields: dict[str, Any]) -> None:
    asked = {**fields, "max_tokens": 500, "stream": True}
    sent = json.loads(adapter(name).prefill_request(json.dumps(asked).encode(), POD))
    assert (sent["max_tokens"], sent["stream"]) == (1, False)
    kept = {key: value for key, value in fields.items() if key not in sent.keys() - fields.keys() | {"stream_options", "min_tokens"}}
    assert kept.items() <= sent.items() or {"max_tokens", "stream", "max_completion_tokens"} & fields.keys()


@pytest.mark.parametrize("body", [b"[1]", b"{", b'{"a":' + b"[" * 5000, b'"x"'])
@pytest.mark.parametrize("name", known_engines())
def test_a_body_that_is_no_object_is_refused(name: str, body: bytes) -> None:
    with pytest.raises(WireError):
        adapter(name).prefill_request(body, POD)
