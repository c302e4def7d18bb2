"""vLLM 0.8 to 0.32: metric names with their renames, KV event sources, tokenize call, the answer that means draining."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from backend.core.errors import WireError
from backend.engines.base import EngineAdapter, EventSourceInfo, MetricNames

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

_WILDCARDS = ("*", "0.0.0.0", "[::]", "::")

# Request fields that change the tokens of a prompt and that /tokenize knows.
_TOKENIZE_FIELDS = (
    "add_generation_prompt",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "tools",
)


class _Source(msgspec.Struct):
    enable_kv_cache_events: bool = False
    endpoint: str = ""
    replay_endpoint: str | None = None
    topic: str = ""


class _Tokens(msgspec.Struct):
    tokens: list[int]


_sources = msgspec.json.Decoder(dict[str, _Source])
_tokens = msgspec.json.Decoder(_Tokens)


class VllmAdapter:
    """Stateless; one object serves the process."""

    name = "vllm"
    metrics = METRICS

    def __init__(self) -> None:
        self._wanted = [
            (key, [sample.encode() for sample in samples], field in MetricNames.MEANS)
            for field, spelled in METRICS.spellings().items()
            for key, samples in _samples(field, spelled)
        ]

    def parse_load(self, text: bytes) -> dict[str, float]:
        figures: dict[str, float] = {}
        for key, samples, mean in self._wanted:
            for sample in samples:
                values = _values(text, sample)
                if values:
                    figures[key] = sum(values) / len(values) if mean else sum(values)
                    break
        return figures

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

    def is_draining(self, finish_reason: str | None, completion_tokens: int) -> bool:
        # A draining vLLM still answers 200 on /health and on new requests, but generates nothing.
        return finish_reason == "abort" and completion_tokens == 0


def _samples(field: str, spelled: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    if field not in MetricNames.HISTOGRAMS:
        return [(field, list(spelled))]
    return [(f"{field}_{part}", [f"{name}_{part}" for name in spelled]) for part in ("sum", "count")]


def _values(text: bytes, sample: bytes) -> list[float]:
    """Values of all lines of one sample name. A scan for the name beats parsing: a scrape is 50 KB, we want 20 lines of it."""
    values: list[float] = []
    at = 0 if text.startswith(sample) else text.find(b"\n" + sample) + 1
    while text.startswith(sample, at):
        end = text.find(b"\n", at)
        if end < 0:
            break  # a cut-off last line: its figure counts as missing
        if text[at + len(sample)] in b"{ ":
            values.append(float(text[text.rindex(b" ", at, end) + 1 : end]))
        elif values:
            break
        # Samples of one name stand together; before the first, a longer name with the same beginning may be in between.
        at = end + 1 if values else text.find(b"\n" + sample, end) + 1
        if at == 0:
            break
    return values


def _source(rank: int, source: _Source, host: str) -> EventSourceInfo:
    endpoint, wildcard = _on_host(source.endpoint, host)
    replay = _on_host(source.replay_endpoint, host)[0] if source.replay_endpoint else ""
    binds = wildcard or not endpoint.startswith("tcp://") or endpoint.startswith(f"tcp://{host}:")
    return EventSourceInfo(rank=rank, endpoint=endpoint, replay_endpoint=replay, topic=source.topic, engine_binds=binds)


def _on_host(endpoint: str, host: str) -> tuple[str, bool]:
    """`endpoint` as seen from outside, and whether it named a wildcard host."""
    scheme, _, address = endpoint.partition("://")
    name, _, port = address.rpartition(":")
    if scheme != "tcp" or name not in _WILDCARDS:
        return endpoint, False
    return f"tcp://{host}:{port}", True


ADAPTER: EngineAdapter = VllmAdapter()
