"""Continuous batching: which requests get how many tokens in the next step, and what the step leaves behind.

Owns requests, queue and cache of one engine; never a clock, a socket or a random source. A server calls `begin_step`, waits
`Step.seconds`, calls `finish_step`; virtual time does the same without waiting. Behaviour: vLLM's V1 scheduler (first come first
served, chunked prefill, preemption of the youngest), as `specs/engines.md` 3 measured it.

Prefill and decode apart: a prefill's blocks stay `held` when it ends, until they were fetched or their lease is over. A decode
first gets the blocks of its whole prompt and waits in `fetching` for their content; only then it competes for a seat. Whoever
moves the KV learns from `fetch_starts` that blocks are there, and answers with `fetched` or `fetch_failed`.
"""

from __future__ import annotations

from collections import deque

from backend.engines.cost import StepCost
from backend.simulate.engine.blocks import BlockPool
from backend.simulate.engine.hashing import Hasher, extra_keys
from backend.simulate.engine.held import HeldBlocks
from backend.simulate.engine.model import BlockStored, CoreSettings, Event, FinishReason, Sampler, Sequence, Step, StepResult


class EngineCore:
    """One engine. `add`, `abort` and `clear_cache` may be called between `begin_step` and `finish_step`."""

    def __init__(self, settings: CoreSettings, hasher: Hasher, sampler: Sampler, cost: StepCost, *, speed: float = 1.0) -> None:
        self.settings = settings
        self.blocks = BlockPool(settings.num_blocks, tell_copies=settings.tell_copies)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.fetching: list[Sequence] = []
        """They have blocks for their prompt, which another engine computed and whose KV is on its way."""
        self.fetch_starts: list[Sequence] = []
        """Those of `fetching` that are new there; the caller takes them out."""
        self.held = HeldBlocks(self.blocks, settings.lease_s)
        """Blocks of ended requests that wait to be fetched."""
        self._hasher = hasher
        self._sampler = sampler
        self._cost = cost
        self._speed = speed

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting and not self.fetching

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
        self._take_out(sequence)
        self._finish(sequence, "abort", 0.0)
        return True

    def fetched(self, sequence: Sequence) -> bool:
        """The KV of a prompt has come: its blocks are cached here from now on. False when the request had ended before."""
        if sequence not in self.fetching:
            return False
        self.fetching.remove(sequence)
        sequence.fetch = False
        # The last token is computed again, because its logits were not sent along.
        sequence.computed = len(sequence.tokens) - 1
        self._register(sequence, len(sequence.tokens))
        self.waiting.appendleft(sequence)
        return True

    def fetch_failed(self, sequence: Sequence) -> bool:
        """The KV of a prompt will not come: the request ends with an error. False when it had ended before."""
        if sequence.finish_reason is not None:
            return False
        self._take_out(sequence)
        self._finish(sequence, "error", 0.0)
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
                self._finish(sequence, reason, now)
                finished.append(sequence)
        return StepResult(tokens, finished, events)

    def _admit(self, work: list[tuple[Sequence, int]], budget: int, now: float) -> list[Sequence]:
        """Move requests from the queue into the batch, in order, until tokens, seats or blocks run out; those that are new there."""
        admitted: list[Sequence] = []
        while self.waiting and budget > 0 and len(self.running) < self.settings.max_num_seqs:
            sequence = self.waiting[0]
            if sequence.fetch:
                if self._begin_fetch(sequence) or self._fetched_first():
                    continue
                break
            if sequence.blocks:
                admitted += self._seat_fetched(sequence, work, now)
                budget -= 1
                continue
            # At least the last token is computed again: the step must give logits.
            hit = self.blocks.find(sequence.hashes[: (len(sequence.tokens) - 1) // self.settings.block_size])
            cached = len(hit) * self.settings.block_size
            count = min(len(sequence.tokens) - cached, budget)
            needed = self._blocks_for(cached + count) - len(hit)
            if needed + self.blocks.unreferenced(hit) > self.blocks.free_count:
                if self._fetched_first():
                    continue
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

    def _fetched_first(self) -> bool:
        """When the first in the queue lacks blocks, one behind it that has its blocks goes first: else each could wait for the other
        for ever. False when there is none."""
        for sequence in self.waiting:
            if sequence.blocks:
                self.waiting.remove(sequence)
                self.waiting.appendleft(sequence)
                return True
        return False

    def _begin_fetch(self, sequence: Sequence) -> bool:
        """Give a request the blocks that its prompt's KV will come into; False when there are not enough."""
        hit = self.blocks.find(sequence.hashes[: (len(sequence.tokens) - 1) // self.settings.block_size])
        needed = self._blocks_for(len(sequence.tokens)) - len(hit)
        if needed + self.blocks.unreferenced(hit) > self.blocks.free_count:
            return False
        self.waiting.popleft()
        self._use_hit(sequence, hit, len(hit) * self.settings.block_size)
        sequence.blocks += self.blocks.take(needed)
        sequence.cached_tokens = sequence.computed
        sequence.external_tokens = len(sequence.tokens) - sequence.computed
        self.fetching.append(sequence)
        self.fetch_starts.append(sequence)
        return True

    def _seat_fetched(self, sequence: Sequence, work: list[tuple[Sequence, int]], now: float) -> list[Sequence]:
        """A request whose KV has come joins the batch with its last prompt token."""
        self.waiting.popleft()
        self.running.append(sequence)
        sequence.scheduled_at = now
        work.append((sequence, len(sequence.tokens) - sequence.computed))
        return [sequence]

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
        if last <= first or not self.settings.prefix_cache:
            return
        self._extend_hashes(sequence)
        told = first
        for block in range(first, last):
            if not self.settings.tell_copies and self.blocks.holds(sequence.hashes[block]):
                self._tell_stored(sequence, told, block)
                told = block + 1
            self.blocks.register(sequence.blocks[block], sequence.hashes[block])
        sequence.registered = last
        self._tell_stored(sequence, told, last)

    def _tell_stored(self, sequence: Sequence, first: int, last: int) -> None:
        if first == last:
            return
        size = self.settings.block_size
        event: Event = BlockStored(
            hashes=sequence.hashes[first:last],
            parent=sequence.hashes[first - 1] if first else None,
            tokens=sequence.tokens[first * size : last * size],
            extra_keys=[extra_keys(block, sequence.cache_salt) for block in range(first, last)],
            session_id=sequence.session_id,
            cache_salt=sequence.cache_salt,
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

    def _finish(self, sequence: Sequence, reason: FinishReason, now: float) -> None:
        if sequence.hold and reason == "length":
            self.held.add(sequence.request_id, sequence.blocks, sequence.prompt_tokens, now)
        else:
            self.blocks.release(sequence.blocks)
        sequence.blocks = []
        sequence.finish_reason = reason

    def _take_out(self, sequence: Sequence) -> None:
        for place in (self.running, self.fetching, self.waiting):
            if sequence in place:
                place.remove(sequence)

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.settings.block_size)

    def _extend_hashes(self, sequence: Sequence) -> None:
        self._hasher.extend(sequence.hashes, sequence.tokens, self.settings.block_size, cache_salt=sequence.cache_salt)
