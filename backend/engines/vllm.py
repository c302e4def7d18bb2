"""vLLM 0.8 to 0.32: metric names with their renames, KV event sources, tokenize call, the answer that means draining."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from backend.core.errors import WireError
from backend.engines.base import DecodeRequest, EngineAdapter, EventSourceInfo, Legs, MetricNames, PrefillPod
from backend.engines.bodies import one_token, top_level
from backend.engines.endpoints import on_host
from backend.engines.prometheus import LoadParser

METRICS = MetricNames(
    running=("vllm:num_requests_running",),
    waiting=("vllm:num_requests_waiting",),
    # 0.9.2 to 0.11.2 have both spellings, 0.12.0 dropped the gpu_* ones.
    kv_usage=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    prefix_queries=("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    prefix_hits=("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    prompt_tokens=("vllm:prompt_tokens_total",),
    generation_tokens=("vllm:generation_tokens_total",),
    requests_finished=("vllm:request_success_total",),
    preemptions=("vllm:num_preemptions_total",),
    ttft=("vllm:time_to_first_token_seconds",),
    # time_per_output_token_seconds is gone since 0.15.1; both exist from 0.10.2 on.
    itl=("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    e2e=("vllm:e2e_request_latency_seconds",),
)

# Request fields that change the tokens of a prompt and that /tokenize knows.
_TOKENIZE_FIELDS = (
    "add_generation_prompt",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "tools",
)


_PARAMS = "kv_transfer_params"
_ASK_FOR_TRANSFER = msgspec.Raw(
    b'{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,'
    b'"remote_block_ids":null,"remote_host":null,"remote_port":null}'
)
# Hosts of vLLM's side channel that lead nowhere from another pod: its default is "localhost". Any other address was set on purpose.
_NOWHERE = (
    None,
    *(msgspec.Raw(b'"%b"' % host) for host in (b"", b"localhost", b"127.0.0.1", b"0.0.0.0", b"::1", b"::")),
    msgspec.Raw(b"null"),
)


class _Source(msgspec.Struct):
    enable_kv_cache_events: bool = False
    endpoint: str = ""
    replay_endpoint: str | None = None
    topic: str = ""


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Prefilled(msgspec.Struct):
    """`kv_transfer_params`: null when the engine runs without a KV connector. Its values are passed on as they came."""

    kv_transfer_params: dict[str, msgspec.Raw] | None = None


_sources = msgspec.json.Decoder(dict[str, _Source])
_tokens = msgspec.json.Decoder(_Tokens)
_prefilled = msgspec.json.Decoder(_Prefilled)
_load = LoadParser(METRICS)


class VllmAdapter:
    """Stateless; one object serves the process."""

    name = "vllm"
    metrics = METRICS
    event_paths = ("/kv_event_sources",)
    legs: Legs = "sequential"
    serves_alone = True

    def parse_load(self, text: bytes) -> dict[str, float]:
        return _load.parse(text)

    def event_sources(self, payload: bytes, host: str) -> list[EventSourceInfo]:
        try:
            listed = _sources.decode(payload)
            return [
                _source(int(rank), source, host)
                for rank, source in sorted(listed.items(), key=lambda item: int(item[0]))
                if source.enable_kv_cache_events and source.endpoint
            ]
        except (msgspec.DecodeError, ValueError) as error:
            raise WireError("event_sources", f"vLLM's list of KV event sources cannot be read: {error}") from error

    def tokenize_request(self, body: Mapping[str, Any]) -> tuple[str, bytes]:
        asked = {name: body[name] for name in _TOKENIZE_FIELDS if name in body}
        if body.get("model") is not None:
            asked["model"] = body["model"]
        asked["messages" if "messages" in body else "prompt"] = body["messages"] if "messages" in body else body.get("prompt", "")
        return "/tokenize", msgspec.json.encode(asked)

    def tokenize_response(self, payload: bytes) -> list[int]:
        try:
            return _tokens.decode(payload).tokens
        except msgspec.DecodeError as error:
            raise WireError("tokenize", f"vLLM's token list cannot be read: {error}") from error

    def prefill_request(self, body: bytes, pod: PrefillPod) -> bytes:
        fields = top_level(body)
        one_token(fields)
        fields[_PARAMS] = _ASK_FOR_TRANSFER
        return msgspec.json.encode(fields)

    def decode_request(self, body: bytes, pod: PrefillPod, answer: bytes) -> DecodeRequest:
        fields = top_level(body)
        fields.pop(_PARAMS, None)  # a client's own would name blocks that are not its
        try:
            params = _prefilled.decode(answer).kv_transfer_params
        except msgspec.MsgspecError as error:
            raise WireError("kv_transfer_params", f"vLLM's answer to a prefill cannot be used: {error}") from error
        if params is None:
            return DecodeRequest(msgspec.json.encode(fields), transfers=False)
        if params.get("remote_host") in _NOWHERE:
            params["remote_host"] = msgspec.Raw(msgspec.json.encode(pod.host))
        fields[_PARAMS] = params
        return DecodeRequest(msgspec.json.encode(fields), transfers=True)

    def is_draining(self, finish_reason: str | None, completion_tokens: int) -> bool:
        # A draining vLLM still answers 200 on /health and on new requests, but generates nothing.
        return finish_reason == "abort" and completion_tokens == 0


def _source(rank: int, source: _Source, host: str) -> EventSourceInfo:
    endpoint, wildcard = on_host(source.endpoint, host)
    replay = on_host(source.replay_endpoint, host)[0] if source.replay_endpoint else ""
    binds = wildcard or not endpoint.startswith("tcp://") or endpoint.startswith(f"tcp://{host}:")
    return EventSourceInfo(rank=rank, endpoint=endpoint, replay_endpoint=replay, topic=source.topic, engine_binds=binds)


ADAPTER: EngineAdapter = VllmAdapter()
