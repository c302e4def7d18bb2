"""What an engine counts, and how vLLM shows it. The driver tells what happened; a family decides which of its metrics that moves."""

from __future__ import annotations

from typing import Protocol

from backend.simulate.engine.exposition import head, labels_text
from backend.simulate.engine.metrics import CONTENT_TYPE, EngineMetrics
from backend.simulate.engine.metrics_table import cache_config, families
from backend.simulate.engine.model import Sequence, Step, StepResult
from backend.simulate.engine.scheduler import EngineCore
from backend.simulate.engine.settings import EngineSettings


class Figures(Protocol):
    """One family's metrics. Times are seconds of the driver's clock."""

    content_type: bytes

    def step(self, step: Step, result: StepResult, now: float) -> None:
        """A step is computed; `mark_tokens` has not been called yet."""

    def ended(self, sequence: Sequence, now: float) -> None:
        """A request is over, however it ended."""

    def fetched(self, blocks: int, seconds: float, size: int) -> None:
        """So many blocks and bytes of a prompt's KV came from another engine."""

    def fetch_failed(self) -> None: ...

    def expired(self, requests: int) -> None:
        """Held KV was given up."""

    def fetched_too_late(self) -> None:
        """Somebody says he fetched what is not held any more."""

    def http(self, handler: str, method: str, status: int, seconds: float, received: int, sent: int) -> None:
        """An answer went out."""

    def render(self, core: EngineCore) -> bytes: ...


def mark_tokens(result: StepResult, now: float) -> None:
    """Note when each sequence of a step got its first and its latest token."""
    for sequence, _ in result.tokens:
        sequence.last_token_at = now
        if sequence.first_token_at is None:
            sequence.first_token_at = now


class VllmFigures:
    """The metrics of a vLLM of some version."""

    content_type = CONTENT_TYPE

    def __init__(self, settings: EngineSettings) -> None:
        core = settings.core
        labels = {"engine": "0", "model_name": settings.model}
        info = {
            **cache_config(
                block_size=core.block_size,
                num_blocks=core.num_blocks,
                max_model_len=core.max_model_len,
                algorithm=settings.hash_algorithm,
            ),
            "engine": "0",
        }
        tail = "".join(head("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", "gauge"))
        tail += f"vllm:cache_config_info{labels_text(info)} 1.0\n"
        listed = families(settings.version_numbers, core.max_model_len, connector=settings.disaggregated)
        self.metrics = EngineMetrics("vllm:", listed, labels, tail=tail)
        self.metrics.set("engine_sleep_state", 1.0, "awake")
        self.http = self.metrics.http

    def step(self, step: Step, result: StepResult, now: float) -> None:
        metrics = self.metrics
        for sequence in step.admitted:
            self._admitted(sequence)
        if step.preempted:
            metrics.add("num_preemptions", step.preempted)
        metrics.add("generation_tokens", len(result.tokens))
        metrics.observe("iteration_tokens_total", step.prefill_tokens + len(result.tokens))
        for sequence, _ in result.tokens:
            if sequence.first_token_at is None:
                self._first_token(sequence, now)
            elif sequence.last_token_at is not None:
                gap = now - sequence.last_token_at
                metrics.observe("inter_token_latency_seconds", gap)
                metrics.observe("time_per_output_token_seconds", gap)

    def ended(self, sequence: Sequence, now: float) -> None:
        metrics = self.metrics
        metrics.add("request_success", 1, sequence.finish_reason or "abort")
        scheduled = sequence.scheduled_at if sequence.scheduled_at is not None else now
        first = sequence.first_token_at if sequence.first_token_at is not None else now
        metrics.observe("e2e_request_latency_seconds", now - sequence.arrived_at)
        metrics.observe("request_queue_time_seconds", max(0.0, scheduled - sequence.arrived_at))
        metrics.observe("request_inference_time_seconds", now - scheduled)
        metrics.observe("request_prefill_time_seconds", first - scheduled)
        metrics.observe("request_decode_time_seconds", now - first)
        metrics.observe("request_time_per_output_token_seconds", (now - first) / max(1, sequence.generated - 1))
        metrics.observe("request_prompt_tokens", sequence.prompt_tokens)
        metrics.observe("request_generation_tokens", sequence.generated)
        metrics.observe("request_prefill_kv_computed_tokens", sequence.prompt_tokens - sequence.cached_tokens - sequence.external_tokens)
        metrics.observe("request_num_preemptions", sequence.preemptions)
        metrics.observe("request_max_num_generation_tokens", sequence.generated)
        metrics.observe("request_params_n", 1)
        metrics.observe("request_params_max_tokens", sequence.max_tokens)

    def fetched(self, blocks: int, seconds: float, size: int) -> None:
        metrics = self.metrics
        metrics.observe("nixl_xfer_time_seconds", seconds)
        metrics.observe("nixl_post_time_seconds", 0.0)
        metrics.observe("nixl_bytes_transferred", size)
        metrics.observe("nixl_num_descriptors", blocks)

    def fetch_failed(self) -> None:
        self.metrics.add("nixl_num_failed_transfers")

    def expired(self, requests: int) -> None:
        self.metrics.add("nixl_num_kv_expired_reqs", requests)

    def fetched_too_late(self) -> None:
        self.metrics.add("nixl_num_notifications_after_expiry")

    def render(self, core: EngineCore) -> bytes:
        metrics = self.metrics
        metrics.set("num_requests_running", len(core.running))
        metrics.set("num_requests_waiting", len(core.waiting) + len(core.fetching))
        metrics.set("num_requests_waiting_by_reason", len(core.waiting), "capacity")
        metrics.set("num_requests_waiting_by_reason", len(core.fetching), "deferred")
        metrics.set("num_requests_kv_fetch_by_stage", sum(sequence.fetch for sequence in core.waiting), "waiting_to_start")
        metrics.set("num_requests_kv_fetch_by_stage", len(core.fetching), "in_progress")
        metrics.set("num_requests_kv_fetch_by_stage", sum(bool(sequence.blocks) for sequence in core.waiting), "completed_waiting")
        for name in ("kv_cache_usage_perc", "gpu_cache_usage_perc"):
            metrics.set(name, core.kv_usage)
        return metrics.render()

    def _admitted(self, sequence: Sequence) -> None:
        metrics = self.metrics
        for prefix in ("", "gpu_"):
            metrics.add(f"{prefix}prefix_cache_queries", sequence.prompt_tokens)
            metrics.add(f"{prefix}prefix_cache_hits", sequence.cached_tokens)
        metrics.add("prompt_tokens_cached_by_source", sequence.cached_tokens, "device")
        if sequence.external_tokens:
            metrics.add("external_prefix_cache_queries", sequence.external_tokens)
            metrics.add("external_prefix_cache_hits", sequence.external_tokens)
            metrics.add("prompt_tokens_cached_by_source", sequence.external_tokens, "p2p")

    def _first_token(self, sequence: Sequence, now: float) -> None:
        metrics = self.metrics
        known = sequence.cached_tokens + sequence.external_tokens
        metrics.observe("time_to_first_token_seconds", now - sequence.arrived_at)
        metrics.add("prompt_tokens", sequence.prompt_tokens)
        metrics.add("prompt_tokens_cached", known)
        metrics.add("prompt_tokens_by_source", sequence.prompt_tokens - known, "local_compute")
        metrics.add("prompt_tokens_by_source", sequence.cached_tokens, "local_cache_hit")
        metrics.add("prompt_tokens_by_source", sequence.external_tokens, "external_kv_transfer")
