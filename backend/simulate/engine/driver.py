"""Runs the engine core against the clock: one timer a step, tokens to their answers, events to the publisher, figures to metrics.

Holds no decision of its own. Steps follow each other at their planned ends, so that coarse timers do not slow the engine down;
after a stall it catches up by at most `LONGEST_LAG_S`.
"""

from __future__ import annotations

import asyncio
import time

from backend.simulate.engine.answers import Answer
from backend.simulate.engine.dialect import Dialect
from backend.simulate.engine.metrics import EngineMetrics
from backend.simulate.engine.model import Event, Sequence, Step, StepResult
from backend.simulate.engine.publisher import Publisher
from backend.simulate.engine.scheduler import EngineCore

LONGEST_LAG_S = 0.05


class Driver:
    """Owns the core while the process runs."""

    def __init__(self, core: EngineCore, metrics: EngineMetrics, publisher: Publisher | None, dialect: Dialect | None) -> None:
        self.core = core
        self.metrics = metrics
        self.paused = False
        self._publisher = publisher
        self._dialect = dialect
        self._answers: dict[int, Answer] = {}
        self._stepping = False
        self._loop = asyncio.get_running_loop()
        self.idle = asyncio.Event()
        """Set while no request is being answered."""
        self.idle.set()

    @property
    def answering(self) -> int:
        return len(self._answers)

    def submit(self, answer: Answer) -> None:
        sequence = answer.sequence
        self._answers[id(sequence)] = answer
        self.idle.clear()
        answer.exchange.on_gone = lambda: self._client_left(sequence)
        self.core.add(sequence)
        self._kick()

    def abort_all(self) -> None:
        """End every answer with what it has, as a vLLM that is told to stop."""
        for answer in list(self._answers.values()):
            self.core.abort(answer.sequence)
            self._ended(answer.sequence, time.monotonic())
            answer.end(aborted=True)
        self._answers.clear()
        self.idle.set()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._kick()

    def _kick(self) -> None:
        """Start stepping unless a step is running; requests of the same loop turn share it."""
        if not self._stepping:
            self._stepping = True
            self._loop.call_soon(self._begin, time.monotonic())

    def _begin(self, at: float) -> None:
        step = None if self.paused else self.core.begin_step(time.monotonic())
        if step is None:
            self._stepping = False
            return
        self._loop.call_later(max(0.0, at + step.seconds - time.monotonic()), self._complete, step, at + step.seconds)

    def _complete(self, step: Step, end: float) -> None:
        now = time.monotonic()
        result = self.core.finish_step(step, now)
        self._publish(result.events)
        self._record(step, result, now)
        for sequence, token in result.tokens:
            answer = self._answers.get(id(sequence))
            if answer is not None:
                answer.token(token)
        for sequence in result.finished:
            self._ended(sequence, now)
            answer = self._forget(sequence)
            if answer is not None:
                answer.end()
        self._begin(max(end, now - LONGEST_LAG_S))

    def _client_left(self, sequence: Sequence) -> None:
        self._forget(sequence)
        if self.core.abort(sequence):
            self._ended(sequence, time.monotonic())

    def _forget(self, sequence: Sequence) -> Answer | None:
        answer = self._answers.pop(id(sequence), None)
        if not self._answers:
            self.idle.set()
        return answer

    def _publish(self, events: list[Event]) -> None:
        if events and self._publisher is not None and self._dialect is not None:
            self._publisher.publish(self._dialect.encode(time.time(), events, block_size=self.core.settings.block_size))

    def _record(self, step: Step, result: StepResult, now: float) -> None:
        metrics = self.metrics
        for sequence in step.admitted:
            for prefix in ("", "gpu_"):
                metrics.add(f"{prefix}prefix_cache_queries", sequence.prompt_tokens)
                metrics.add(f"{prefix}prefix_cache_hits", sequence.cached_tokens)
            metrics.add("prompt_tokens_cached_by_source", sequence.cached_tokens, "device")
        if step.preempted:
            metrics.add("num_preemptions", step.preempted)
        metrics.add("generation_tokens", len(result.tokens))
        metrics.observe("iteration_tokens_total", step.prefill_tokens + len(result.tokens))
        for sequence, _ in result.tokens:
            if sequence.first_token_at is None:
                sequence.first_token_at = now
                self._first_token(sequence, now)
            elif sequence.last_token_at is not None:
                gap = now - sequence.last_token_at
                metrics.observe("inter_token_latency_seconds", gap)
                metrics.observe("time_per_output_token_seconds", gap)
            sequence.last_token_at = now

    def _first_token(self, sequence: Sequence, now: float) -> None:
        metrics = self.metrics
        metrics.observe("time_to_first_token_seconds", now - sequence.arrived_at)
        metrics.add("prompt_tokens", sequence.prompt_tokens)
        metrics.add("prompt_tokens_cached", sequence.cached_tokens)
        metrics.add("prompt_tokens_by_source", sequence.prompt_tokens - sequence.cached_tokens, "local_compute")
        metrics.add("prompt_tokens_by_source", sequence.cached_tokens, "local_cache_hit")

    def _ended(self, sequence: Sequence, now: float) -> None:
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
        metrics.observe("request_prefill_kv_computed_tokens", sequence.prompt_tokens - sequence.cached_tokens)
        metrics.observe("request_num_preemptions", sequence.preemptions)
        metrics.observe("request_max_num_generation_tokens", sequence.generated)
        metrics.observe("request_params_n", 1)
        metrics.observe("request_params_max_tokens", sequence.max_tokens)
