"""What the fleet needs to know of an engine family, as one small Protocol, and the table of families.

Adding a family is one module with an `ADAPTER`, one row in `_MODULES` and its recorded fixtures. Nothing here opens a socket:
callers hand over bytes that they read and send bytes that they get.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Protocol, cast

from backend.core.errors import UsageError

_MODULES: dict[str, str] = {"sglang": "backend.engines.sglang", "vllm": "backend.engines.vllm"}

Legs = Literal["sequential", "concurrent"]
"""How the two legs of a disaggregated request run: the decode leg needs the prefill's answer, or both meet at the prefill pod."""


@dataclass(frozen=True, kw_only=True)
class MetricNames:
    """Spellings of each figure on the engine's /metrics, today's first; versions before and after a rename are both read.

    Counters carry their `_total`, histograms stand without `_sum` and `_count`. An empty tuple: this family has no such figure.
    """

    running: tuple[str, ...] = ()
    """Gauge: requests in the batch."""
    waiting: tuple[str, ...] = ()
    """Gauge: requests in the queue."""
    kv_usage: tuple[str, ...] = ()
    """Gauge 0..1: share of KV blocks that running requests hold."""
    prefix_queries: tuple[str, ...] = ()
    """Counter: prompt tokens looked up in the prefix cache."""
    prefix_hits: tuple[str, ...] = ()
    """Counter: prompt tokens found there."""
    prompt_tokens: tuple[str, ...] = ()
    """Counter: prompt tokens processed."""
    generation_tokens: tuple[str, ...] = ()
    """Counter: tokens generated."""
    requests_finished: tuple[str, ...] = ()
    """Counter, summed over its reasons: requests answered."""
    preemptions: tuple[str, ...] = ()
    """Counter: requests thrown out of the batch for want of blocks."""
    ttft: tuple[str, ...] = ()
    """Histogram, seconds: time to first token."""
    itl: tuple[str, ...] = ()
    """Histogram, seconds: time between two tokens of a request."""
    e2e: tuple[str, ...] = ()
    """Histogram, seconds: whole request."""

    HISTOGRAMS = ("ttft", "itl", "e2e")
    MEANS = ("kv_usage",)
    """Figures that are averaged over data-parallel ranks; all others are summed."""

    def spellings(self) -> dict[str, tuple[str, ...]]:
        """Field name to spellings, without the fields that this family has not."""
        named = {field.name: cast("tuple[str, ...]", getattr(self, field.name)) for field in fields(self)}
        return {name: spelled for name, spelled in named.items() if spelled}


@dataclass(frozen=True, kw_only=True)
class EventSourceInfo:
    """Where one data-parallel rank of an engine publishes its KV events."""

    rank: int
    endpoint: str
    """ZeroMQ endpoint of the PUB socket."""
    replay_endpoint: str = ""
    """ZeroMQ endpoint of the replay ROUTER; empty: none."""
    topic: str = ""
    engine_binds: bool = True
    """False: the engine's PUB connects to `endpoint`, and the subscriber has to bind there."""


class PrefillPod(NamedTuple):
    """What the two legs of a request have to be told of the pod that computes its prompt."""

    host: str
    """Its address, without a port."""
    bootstrap_port: int = 0
    """Port at which decode pods ask for its KV blocks, where the family has one."""
    room: int = 0
    """Random number of 63 bits that both legs carry, drawn by the caller: another one for each try."""


class DecodeRequest(NamedTuple):
    body: bytes
    transfers: bool
    """False: the prefill pod handed nothing over (it runs without a KV connector), so the decode pod computes the prompt again."""


class EngineAdapter(Protocol):
    """One engine family."""

    @property
    def name(self) -> str: ...

    @property
    def metrics(self) -> MetricNames: ...

    @property
    def event_paths(self) -> tuple[str, ...]:
        """Where the engine lists its KV event sources (GET); the next one is for versions that don't know the one before."""

    @property
    def legs(self) -> Legs: ...

    @property
    def serves_alone(self) -> bool:
        """Whether a pod started for prefill or for decode also answers a request that names no other pod."""

    def parse_load(self, text: bytes) -> dict[str, float]:
        """Figures found in a /metrics text, by the field names of `MetricNames`; histograms as `<name>_sum` and `<name>_count`.

        A figure that the text does not have is missing in the answer, never zero.
        """

    def event_sources(self, payload: bytes, host: str) -> list[EventSourceInfo]:
        """Event sources from the engine's own list (its JSON body); wildcard hosts become `host`. Raises WireError."""

    def tokenize_request(self, body: Mapping[str, Any]) -> tuple[str, bytes]:
        """Path and body of the engine's own tokenize call for the prompt or messages of an OpenAI request `body`."""

    def tokenize_response(self, payload: bytes) -> list[int]:
        """Token ids from the answer to it. Raises WireError."""

    def prefill_request(self, body: bytes, pod: PrefillPod) -> bytes:
        """The prefill leg's body for a client's `body`: one token, no stream, the KV blocks kept for somebody else. Raises WireError."""

    def decode_request(self, body: bytes, pod: PrefillPod, answer: bytes) -> DecodeRequest:
        """The decode leg's body; `answer` is the prefill leg's (sequential legs only). Raises WireError for an answer of no use."""

    def is_draining(self, finish_reason: str | None, completion_tokens: int) -> bool:
        """Whether an answer with status 200 says "I am about to stop, ask another engine"."""


def adapter(name: str) -> EngineAdapter:
    """The adapter of a family. Raises UsageError for one that we don't know."""
    module = _MODULES.get(name)
    if module is None:
        raise UsageError(f"Engine {name!r} is not known.", fix=f"Known engines: {', '.join(sorted(_MODULES))}.")
    return cast(EngineAdapter, importlib.import_module(module).ADAPTER)


def known_engines() -> tuple[str, ...]:
    return tuple(sorted(_MODULES))
