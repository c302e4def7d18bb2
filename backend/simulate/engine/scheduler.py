"""Continuous batching: which requests get how many tokens in the next step, and what the step leaves behind.

Owns requests, queue and cache of one engine; never a clock, a socket or a random source. A server calls `begin_step`, waits
`Step.seconds`, calls `finish_step`; virtual time does the same without waiting. Behaviour: vLLM's V1 scheduler (first come first
served, chunked prefill, preemption of the youngest), as `specs/engines.md` 3 measured it.
"""

from __future__ import annotations

from collections import deque

from backend.engines.cost import StepCost
from backend.simulate.engine.blocks import BlockPool
from backend.simulate.engine.hashing import BlockHasher, extra_keys
from backend.simulate.engine.model import BlockStored, CoreSettings, Event, FinishReason, Sampler, Sequence, Step, StepResult


class EngineCore:
    """One engine. `add`, `abort` and `clear_cache` may be called between `begin_step` and `finish_step`."""

    def __init__(self, settings: CoreSettings, hasher: BlockHasher, sampler: Sampler, cost: StepCost, *, speed: float = 1.0) -> None:
        self.settings = settings
        self.blocks = BlockPool(settings.num_blocks)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._hasher = hasher
        self._sampler = sampler
        self._cost = cost
        self._speed = speed

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    @property
    def kv_usage(self) -> float:
        """Share 0..1 of blocks that requests in the batch hold."""
        return self.blocks.used / self.blocks.usable

    def add(self, sequence: Sequence) -> None:
        """Queue a request. Its prompt must be shorter than `max_model_len` and not empty."""
        self._extend_hashes(sequence)
        self.waiting.append(sequence)

    def abort(self, sequence: Sequence) -> bool:
        """Take a request out and free its blocks; False when it had ended before."""
        if sequence.finish_reason is not None:
            return False
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._finish(sequence, "abort")
        return True

    def clear_cache(self) -> bool:
        """Empty the prefix cache; False while any block is in use. The event leaves with the next step that is scheduled."""
        return self.blocks.clear()

    def cached_tokens(self, tokens: list[int], *, cache_salt: str | None = None) -> int:
        """Leading tokens of a prompt that are in the cache now, in whole blocks; nothing is changed."""
        hashes: list[bytes] = []
        self._hasher.extend(hashes, tokens, self.settings.block_size, cache_salt=cache_salt)
        return len(self.blocks.find(hashes)) * self.settings.block_size

    def begin_step(self, now: float) -> Step | None:
        """Choose the batch and give it its blocks. None when there is nothing to do."""
        work: list[tuple[Sequence, int]] = []
        admitted: list[Sequence] = []
        budget = self.settings.max_num_batched_tokens
        preempted = 0
        at = 0
        while at < len(self.running) and budget > 0:
            sequence = self.running[at]
            count = min(len(sequence.tokens) - sequence.computed, budget)
            lost = self._make_room(sequence, count)
            preempted += lost
            if at >= len(self.running):
                break  # it had to preempt itself
            work.append((sequence, count))
            budget -= count
            at += 1
        if not preempted:
            admitted = self._admit(work, budget, now)
        return self._step(work, admitted, preempted) if work else None

    def finish_step(self, step: Step, now: float) -> StepResult:
        """Account for a computed step: next tokens, requests that are done, events of this step."""
        tokens: list[tuple[Sequence, int]] = []
        finished: list[Sequence] = []
        events, self.blocks.events = self.blocks.events, []
        for sequence, count in step.work:
            if sequence.finish_reason is not None:
                continue  # aborted while the step ran
            sequence.computed += count
            if sequence.computed < len(sequence.tokens):
                continue  # a chunk of its prompt
            token = self._sampler(sequence)
            sequence.tokens.append(token)
            tokens.append((sequence, token))
            reason = self._end_of(sequence)
            if reason is not None:
                self.running.remove(sequence)
                self._finish(sequence, reason)
                finished.append(sequence)
        return StepResult(tokens, finished, events)

    def _admit(self, work: list[tuple[Sequence, int]], budget: int, now: float) -> list[Sequence]:
        """Move requests from the queue into the batch, in order, until tokens, seats or blocks run out; those that are new there."""
        admitted: list[Sequence] = []
        while self.waiting and budget > 0 and len(self.running) < self.settings.max_num_seqs:
            sequence = self.waiting[0]
            # At least the last token is computed again: the step must give logits.
            hit = self.blocks.find(sequence.hashes[: (len(sequence.tokens) - 1) // self.settings.block_size])
            cached = len(hit) * self.settings.block_size
            count = min(len(sequence.tokens) - cached, budget)
            needed = self._blocks_for(cached + count) - len(hit)
            if needed + self.blocks.unreferenced(hit) > self.blocks.free_count:
                break
            self.waiting.popleft()
            self.running.append(sequence)
            self._use_hit(sequence, hit, cached)
            if sequence.scheduled_at is None:
                sequence.scheduled_at = now
                sequence.cached_tokens = cached
                admitted.append(sequence)
            sequence.blocks += self.blocks.take(needed)
            self._register(sequence, cached + count)
            work.append((sequence, count))
            budget -= count
        return admitted

    def _use_hit(self, sequence: Sequence, hit: list[int], cached: int) -> None:
        self.blocks.acquire(hit)
        sequence.blocks = list(hit)
        sequence.computed = cached
        sequence.registered = len(hit)
        if hit and sequence.report_hits:
            self._tell_stored(sequence, 0, len(hit))

    def _make_room(self, sequence: Sequence, count: int) -> int:
        """Blocks for `count` more tokens of a running request, preempting the youngest ones for them; how many were preempted."""
        preempted = 0
        needed = self._blocks_for(sequence.computed + count) - len(sequence.blocks)
        while needed > self.blocks.free_count:
            victim = self.running.pop()
            self.blocks.release(victim.blocks)
            victim.blocks, victim.computed, victim.registered = [], 0, 0
            victim.preemptions += 1
            self.waiting.appendleft(victim)
            preempted += 1
            if victim is sequence:
                return preempted
        if needed > 0:
            sequence.blocks += self.blocks.take(needed)
        self._register(sequence, sequence.computed + count)
        return preempted

    def _register(self, sequence: Sequence, computed: int) -> None:
        """Put blocks that this step fills into the prefix cache, also when another block holds the same already."""
        first, last = sequence.registered, computed // self.settings.block_size
        if last <= first:
            return
        self._extend_hashes(sequence)
        for block in range(first, last):
            self.blocks.register(sequence.blocks[block], sequence.hashes[block])
        sequence.registered = last
        self._tell_stored(sequence, first, last)

    def _tell_stored(self, sequence: Sequence, first: int, last: int) -> None:
        size = self.settings.block_size
        event: Event = BlockStored(
            hashes=sequence.hashes[first:last],
            parent=sequence.hashes[first - 1] if first else None,
            tokens=sequence.tokens[first * size : last * size],
            extra_keys=[extra_keys(block, sequence.cache_salt) for block in range(first, last)],
            session_id=sequence.session_id,
        )
        self.blocks.events.append(event)

    def _step(self, work: list[tuple[Sequence, int]], admitted: list[Sequence], preempted: int) -> Step:
        # One token to compute is a decode, also where a cached prompt has just its last token left.
        prefill = sum(count for sequence, count in work if len(sequence.tokens) - sequence.computed > 1)
        kv_tokens = sum(sequence.computed + count for sequence, count in work)
        return Step(work, prefill, kv_tokens, self._cost.seconds(kv_tokens, prefill) / self._speed, admitted, preempted)

    def _end_of(self, sequence: Sequence) -> FinishReason | None:
        if sequence.generated >= sequence.max_tokens:
            return sequence.limit_reason
        return "length" if len(sequence.tokens) >= self.settings.max_model_len else None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
        sequence.finish_reason = reason

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.settings.block_size)

    def _extend_hashes(self, sequence: Sequence) -> None:
        self._hasher.extend(sequence.hashes, sequence.tokens, self.settings.block_size, cache_salt=sequence.cache_salt)
