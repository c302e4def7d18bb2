"""SGLang 0.4.10 to 0.5.23: metric names, KV event sources from its server info, tokenize call, and the bootstrap exchange of its
disaggregated mode: both legs at once, meeting in a room at the prefill pod.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from backend.core.errors import WireError
from backend.engines.base import DecodeRequest, EngineAdapter, EventSourceInfo, Legs, MetricNames, PrefillPod
from backend.engines.bodies import Fields, one_token, top_level
from backend.engines.endpoints import WILDCARDS, on_host
from backend.engines.prometheus import LoadParser

BOOTSTRAP_PORT = 8998
"""SGLang's default for --disaggregation-bootstrap-port."""

METRICS = MetricNames(
    running=("sglang:num_running_reqs",),
    waiting=("sglang:num_queue_reqs",),
    kv_usage=("sglang:token_usage",),
    # Every prompt is looked up in the radix cache, so its tokens are the queries.
    prefix_queries=("sglang:prompt_tokens_total",),
    prefix_hits=("sglang:cached_tokens_total",),
    prompt_tokens=("sglang:prompt_tokens_total",),
    generation_tokens=("sglang:generation_tokens_total",),
    requests_finished=("sglang:num_requests_total",),
    ttft=("sglang:time_to_first_token_seconds",),
    itl=("sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds"),
    e2e=("sglang:e2e_request_latency_seconds",),
)


class _Events(msgspec.Struct):
    """`kv_events` of the server info: ports are those of rank 0."""

    endpoint_port_base: int
    endpoint_host: str = "*"
    publisher: str = "zmq"
    topic: str | None = None
    dp_size: int = 1
    replay_endpoint_port_base: int | None = None


class _Configured(msgspec.Struct):
    """`kv_events_config`, the command line's own words: what versions before the block `kv_events` tell."""

    publisher: str = "null"
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    topic: str | None = None


class _ServerInfo(msgspec.Struct):
    kv_events: _Events | None = None
    kv_events_config: str | None = None
    dp_size: int = 1


class _Tokens(msgspec.Struct):
    tokens: list[int]


_info = msgspec.json.Decoder(_ServerInfo)
_configured = msgspec.json.Decoder(_Configured)
_tokens = msgspec.json.Decoder(_Tokens)
_load = LoadParser(METRICS)


class SglangAdapter:
    """Stateless; one object serves the process."""

    name = "sglang"
    metrics = METRICS
    event_paths = ("/server_info", "/get_server_info")
    legs: Legs = "concurrent"
    # A server in disaggregation mode waits for its other half.
    serves_alone = False

    def parse_load(self, text: bytes) -> dict[str, float]:
        return _load.parse(text)

    def event_sources(self, payload: bytes, host: str) -> list[EventSourceInfo]:
        try:
            info = _info.decode(payload)
            if info.kv_events is not None:
                return _from_block(info.kv_events, host)
            if info.kv_events_config:
                return _from_configuration(_configured.decode(info.kv_events_config.encode()), info.dp_size, host)
        except (msgspec.MsgspecError, ValueError) as error:
            raise WireError("event_sources", f"SGLang's server info cannot be read: {error}") from error
        return []

    def tokenize_request(self, body: Mapping[str, Any]) -> tuple[str, bytes]:
        asked: dict[str, Any] = {"model": body.get("model")}
        if "messages" in body:
            # Versions that take only a prompt refuse it, and the request is routed without its tokens.
            asked["messages"] = body["messages"]
            asked.update({name: body[name] for name in ("tools", "chat_template_kwargs") if name in body})
        else:
            asked["prompt"] = body.get("prompt", "")
        return "/tokenize", msgspec.json.encode(asked)

    def tokenize_response(self, payload: bytes) -> list[int]:
        try:
            return _tokens.decode(payload).tokens
        except msgspec.DecodeError as error:
            raise WireError("tokenize", f"SGLang's token list cannot be read: {error}") from error

    def prefill_request(self, body: bytes, pod: PrefillPod) -> bytes:
        fields = top_level(body)
        one_token(fields)
        return msgspec.json.encode(_met(fields, pod))

    def decode_request(self, body: bytes, pod: PrefillPod, answer: bytes) -> DecodeRequest:
        return DecodeRequest(msgspec.json.encode(_met(top_level(body), pod)), transfers=True)

    def is_draining(self, finish_reason: str | None, completion_tokens: int) -> bool:
        # What waits in its queue when it stops is aborted; what it had begun is finished.
        return finish_reason == "abort" and completion_tokens == 0


def _met(fields: Fields, pod: PrefillPod) -> Fields:
    """With the place where the two legs meet; a client's own is replaced."""
    fields["bootstrap_host"] = msgspec.Raw(msgspec.json.encode(pod.host))
    fields["bootstrap_port"] = msgspec.Raw(b"%d" % (pod.bootstrap_port or BOOTSTRAP_PORT))
    fields["bootstrap_room"] = msgspec.Raw(b"%d" % pod.room)
    return fields


def _from_block(events: _Events, host: str) -> list[EventSourceInfo]:
    if events.publisher != "zmq":
        return []
    listens_at = host if events.endpoint_host in WILDCARDS else events.endpoint_host
    replay = events.replay_endpoint_port_base
    return [
        EventSourceInfo(
            rank=rank,
            endpoint=f"tcp://{listens_at}:{events.endpoint_port_base + rank}",
            replay_endpoint=f"tcp://{listens_at}:{replay + rank}" if replay else "",
            topic=events.topic or "",
        )
        for rank in range(events.dp_size)
    ]


def _from_configuration(events: _Configured, ranks: int, host: str) -> list[EventSourceInfo]:
    if events.publisher != "zmq":
        return []
    endpoint, wildcard = on_host(events.endpoint, host)
    replay = on_host(events.replay_endpoint, host)[0] if events.replay_endpoint else ""
    return [
        EventSourceInfo(
            rank=rank,
            endpoint=_of_rank(endpoint, rank),
            replay_endpoint=_of_rank(replay, rank),
            topic=events.topic or "",
            engine_binds=wildcard or endpoint.startswith(f"tcp://{host}:"),
        )
        for rank in range(ranks)
    ]


def _of_rank(endpoint: str, rank: int) -> str:
    """Each data-parallel rank has the port behind the one before."""
    address, _, port = endpoint.rpartition(":")
    return f"{address}:{int(port) + rank}" if endpoint else ""


ADAPTER: EngineAdapter = SglangAdapter()
