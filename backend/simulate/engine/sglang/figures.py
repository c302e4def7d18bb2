"""What an SGLang shows on /metrics: names, labels and buckets of 0.5.23, of which it has some 170; those that a simulation computes."""

from __future__ import annotations

import time

from backend.simulate.engine.metrics import EngineMetrics
from backend.simulate.engine.metrics_table import Family, counter, gauge, histogram
from backend.simulate.engine.model import BlockRemoved, Sequence, Step, StepResult
from backend.simulate.engine.scheduler import EngineCore
from backend.simulate.engine.settings import EngineSettings

_CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
ENGINE_TYPES = {"both": "unified", "prefill": "prefill", "decode": "decode"}
# A throughput is told over so many decode steps, as the engine logs it.
_DECODE_STEPS = 40

_TTFT = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0, 400.0)
_E2E = (*_TTFT, 600.0, 1200.0, 1800.0, 2400.0)
_ITL = (
    *(0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1),
    *(0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0),
)
_QUEUE = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0, 200.0)
_LATENCY_MS = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0)
_SPEED_GB_S = (0.1, 0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0, 400.0)


def sglang_families() -> list[Family]:
    """Scheduler metrics have the labels of a rank, those of the HTTP side only the model's name."""
    return [
        gauge("num_running_reqs", "Requests in the running batch."),
        gauge("num_queue_reqs", "Requests that wait to be scheduled."),
        gauge("num_used_tokens", "Tokens of the KV cache in use."),
        gauge("token_usage", "Share of the KV cache's tokens in use."),
        gauge("max_total_num_tokens", "Tokens that the KV cache holds."),
        gauge("page_size", "Tokens a page of the KV cache."),
        gauge("cache_hit_rate", "Share of prompt tokens of the last prefill batch that were cached."),
        gauge("gen_throughput", "Tokens generated a second."),
        gauge("num_prefill_bootstrap_queue_reqs", "Prefills that wait for their decode."),
        gauge("num_prefill_inflight_queue_reqs", "Prefills whose KV is being fetched."),
        gauge("num_decode_prealloc_queue_reqs", "Decodes that wait for room for their KV."),
        gauge("num_decode_transfer_queue_reqs", "Decodes whose KV is on its way."),
        gauge("num_retracted_reqs", "Requests that lost their place to others."),
        histogram("kv_transfer_latency_ms", "Milliseconds of a KV transfer.", _LATENCY_MS),
        histogram("kv_transfer_speed_gb_s", "Gigabytes a second of a KV transfer.", _SPEED_GB_S),
        counter("num_transfer_failed_reqs", "Requests whose KV transfer failed."),
        counter("evicted_tokens", "Tokens that were evicted from the prefix cache."),
        histogram("queue_time_seconds", "Seconds in the queue.", _QUEUE),
        counter("prompt_tokens", "Prompt tokens processed.", by_engine=False),
        counter("generation_tokens", "Tokens generated.", by_engine=False),
        counter("cached_tokens", "Prompt tokens found in the cache.", by_engine=False),
        counter("num_requests", "Requests processed.", by_engine=False),
        counter("num_aborted_requests", "Requests aborted.", by_engine=False),
        histogram("time_to_first_token_seconds", "Seconds to the first token.", _TTFT, by_engine=False),
        histogram("inter_token_latency_seconds", "Seconds between tokens.", _ITL, by_engine=False),
        histogram("e2e_request_latency_seconds", "Seconds from a request to its end.", _E2E, by_engine=False),
    ]


class SglangFigures:
    """The metrics of one SGLang rank and of the HTTP side before it."""

    content_type = _CONTENT_TYPE

    def __init__(self, settings: EngineSettings) -> None:
        labels = {"engine_type": ENGINE_TYPES[settings.role], "model_name": settings.model}
        labels |= {"tp_rank": "0", "pp_rank": "0", "moe_ep_rank": "0"}
        self.metrics = EngineMetrics("sglang:", sglang_families(), labels, python_client=False)
        self.bootstrapping = 0
        """Prefills that wait for their decode; the connector counts them."""
        self._size = settings.core.block_size
        self._decode_steps = 0
        self._decode_tokens = 0
        self._decode_since = time.monotonic()
        self._retracted = 0

    def step(self, step: Step, result: StepResult, now: float) -> None:
        metrics = self.metrics
        prompts = sum(sequence.prompt_tokens for sequence in step.admitted)
        if prompts:
            metrics.set("cache_hit_rate", sum(sequence.cached_tokens for sequence in step.admitted) / prompts)
        self._retracted += step.preempted
        metrics.set("num_retracted_reqs", self._retracted)
        metrics.add("evicted_tokens", sum(len(event.hashes) for event in result.events if isinstance(event, BlockRemoved)) * self._size)
        self._throughput(step, result, now)
        for sequence, _ in result.tokens:
            if sequence.first_token_at is None:
                metrics.observe("time_to_first_token_seconds", now - sequence.arrived_at)
                scheduled = sequence.scheduled_at if sequence.scheduled_at is not None else now
                metrics.observe("queue_time_seconds", max(0.0, scheduled - sequence.arrived_at))
            elif sequence.last_token_at is not None:
                metrics.observe("inter_token_latency_seconds", now - sequence.last_token_at)

    def ended(self, sequence: Sequence, now: float) -> None:
        """SGLang counts a request's tokens when it is over."""
        metrics = self.metrics
        metrics.add("num_requests")
        metrics.add("prompt_tokens", sequence.prompt_tokens)
        metrics.add("generation_tokens", sequence.generated)
        metrics.add("cached_tokens", sequence.cached_tokens)
        if sequence.finish_reason in ("abort", "error"):
            metrics.add("num_aborted_requests")
        metrics.observe("e2e_request_latency_seconds", now - sequence.arrived_at)

    def fetched(self, blocks: int, seconds: float, size: int) -> None:
        self.metrics.observe("kv_transfer_latency_ms", seconds * 1000)
        self.metrics.observe("kv_transfer_speed_gb_s", size / 1e9 / max(seconds, 1e-9))

    def fetch_failed(self) -> None:
        self.metrics.add("num_transfer_failed_reqs")

    def expired(self, requests: int) -> None:
        """Nothing is leased: a prefill's KV waits as long as its request."""

    def fetched_too_late(self) -> None:
        """Cannot be: who fetches is known before the prompt is computed."""

    def http(self, handler: str, method: str, status: int, seconds: float, received: int, sent: int) -> None:
        """Not counted by route."""

    def render(self, core: EngineCore) -> bytes:
        metrics = self.metrics
        tokens = core.blocks.usable * self._size
        metrics.set("num_running_reqs", len(core.running))
        metrics.set("num_queue_reqs", sum(not sequence.fetch for sequence in core.waiting))
        metrics.set("num_used_tokens", core.blocks.used * self._size)
        metrics.set("token_usage", core.kv_usage)
        metrics.set("max_total_num_tokens", tokens)
        metrics.set("page_size", self._size)
        metrics.set("num_prefill_bootstrap_queue_reqs", self.bootstrapping)
        metrics.set("num_prefill_inflight_queue_reqs", len(core.held))
        metrics.set("num_decode_prealloc_queue_reqs", sum(sequence.fetch for sequence in core.waiting))
        metrics.set("num_decode_transfer_queue_reqs", len(core.fetching))
        if core.idle:
            metrics.set("gen_throughput", 0.0)
        return metrics.render()

    def _throughput(self, step: Step, result: StepResult, now: float) -> None:
        if step.prefill_tokens:
            return
        if not self._decode_steps:
            self._decode_since, self._decode_tokens = now - step.seconds, 0
        self._decode_steps = (self._decode_steps + 1) % _DECODE_STEPS
        self._decode_tokens += len(result.tokens)
        self.metrics.set("gen_throughput", self._decode_tokens / max(now - self._decode_since, 1e-9))
