"""Runs the engine core against the clock: one timer a step, tokens to their answers, events to the publisher, figures to metrics.

Holds no decision of its own. Steps follow each other at their planned ends, so that coarse timers do not slow the engine down;
after a stall it catches up by at most `LONGEST_LAG_S`. Who moves KV between engines is told when there are blocks for it
(`Mover`), and calls back when it has come, or will not.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from backend.simulate.engine.answers import Answer
from backend.simulate.engine.dialect import EventDialect
from backend.simulate.engine.figures import Figures, mark_tokens
from backend.simulate.engine.model import Event, Sequence, Step
from backend.simulate.engine.publisher import Publisher
from backend.simulate.engine.scheduler import EngineCore

LONGEST_LAG_S = 0.05


class Mover(Protocol):
    """Moves KV between engines, in the way of one engine family."""

    def room(self, sequence: Sequence) -> None:
        """A decode has blocks for its prompt's KV."""

    def held(self, sequence: Sequence, answer: Answer) -> bool:
        """A prefill ended and its blocks are held. False: its answer waits until the mover ends it."""

    def gone(self, sequence: Sequence) -> None:
        """Nobody waits for this request any more."""


class Driver:
    """Owns the core while the process runs."""

    def __init__(self, core: EngineCore, figures: Figures, publisher: Publisher | None, dialect: EventDialect | None) -> None:
        self.core = core
        self.figures = figures
        self.mover: Mover | None = None
        self.paused = False
        self._publisher = publisher
        self._dialect = dialect
        self._answers: dict[int, Answer] = {}
        self._stepping = False
        self._lease: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.idle = asyncio.Event()
        """Set while no request is being answered and nothing is held for another engine."""
        self.idle.set()

    @property
    def answering(self) -> int:
        return len(self._answers)

    def submit(self, answer: Answer, *, start: bool = True) -> None:
        """Take a request in. Without `start` it waits outside of the engine, until `start` is called for it."""
        sequence = answer.sequence
        self._answers[id(sequence)] = answer
        self.idle.clear()
        answer.exchange.on_gone = lambda: self._client_left(sequence)
        if start:
            self.start(sequence)

    def start(self, sequence: Sequence) -> None:
        if id(sequence) in self._answers:
            self.core.add(sequence)
            self._kick()

    def fetched(self, sequence: Sequence, seconds: float, size: int) -> None:
        """The KV of a decode's prompt has come."""
        if self.core.fetched(sequence):
            self.figures.fetched(-(-sequence.external_tokens // self.core.settings.block_size), seconds, size)
            self._kick()

    def fail(self, sequence: Sequence, why: str) -> None:
        """A request cannot go on, because its KV did not come or was not fetched."""
        self.figures.fetch_failed()
        if self.core.fetch_failed(sequence):
            self._ended(sequence, time.monotonic())
        answer = self._forget(sequence)
        if answer is not None:
            answer.fail(why)
        self._kick()

    def fetch_over(self, request_id: str, *, fetched: bool) -> None:
        """Somebody who came for held blocks has them, or went away without."""
        if fetched and not self.core.held.release(request_id):
            self.figures.fetched_too_late()
        elif not fetched:
            self.core.held.unpin(request_id, time.monotonic())
        self._watch_leases()
        self._settle()
        self._kick()

    def give_up(self, request_id: str) -> None:
        """Nobody will fetch what is held."""
        self.core.held.release(request_id)
        self._settle()
        self._kick()

    def end(self, sequence: Sequence) -> None:
        """End an answer that had to wait until its blocks were fetched."""
        answer = self._forget(sequence)
        if answer is not None:
            answer.end()

    def abort_all(self, request_id: str | None = None) -> None:
        """End every answer with what it has, as an engine that is told to stop; or only that of one request."""
        for answer in list(self._answers.values()):
            sequence = answer.sequence
            if request_id not in (None, sequence.request_id):
                continue
            if self.core.abort(sequence):
                self._ended(sequence, time.monotonic())
            self._gone(sequence)
            self._forget(sequence)
            answer.end(aborted=True)
        self._settle()
        self._kick()

    def close(self) -> None:
        if self._lease is not None:
            self._lease.cancel()

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
        if self.core.fetch_starts and self.mover is not None:
            starts, self.core.fetch_starts = self.core.fetch_starts, []
            for sequence in starts:
                self.mover.room(sequence)
        if step is None:
            self._stepping = False
            return
        self._loop.call_later(max(0.0, at + step.seconds - time.monotonic()), self._complete, step, at + step.seconds)

    def _complete(self, step: Step, end: float) -> None:
        now = time.monotonic()
        result = self.core.finish_step(step, now)
        self._publish(result.events)
        self.figures.step(step, result, now)
        mark_tokens(result, now)
        for sequence, token in result.tokens:
            answer = self._answers.get(id(sequence))
            if answer is not None:
                answer.token(token)
        for sequence in result.finished:
            self._finished(sequence, now)
        self._begin(max(end, now - LONGEST_LAG_S))

    def _finished(self, sequence: Sequence, now: float) -> None:
        self._ended(sequence, now)
        answer = self._answers.get(id(sequence))
        if answer is None:
            self.core.held.release(sequence.request_id)
            return
        if sequence.request_id in self.core.held:
            self._watch_leases()
            if self.mover is not None and not self.mover.held(sequence, answer):
                return
        self._forget(sequence)
        answer.end()

    def _client_left(self, sequence: Sequence) -> None:
        self._forget(sequence)
        if self.core.abort(sequence):
            self._ended(sequence, time.monotonic())
        self._gone(sequence)
        self._kick()

    def _gone(self, sequence: Sequence) -> None:
        if self.mover is not None:
            self.mover.gone(sequence)

    def _ended(self, sequence: Sequence, now: float) -> None:
        self.figures.ended(sequence, now)

    def _settle(self) -> None:
        if not self._answers and not self.core.held:
            self.idle.set()

    def _watch_leases(self) -> None:
        """One timer for the lease that ends first."""
        if self._lease is not None:
            self._lease.cancel()
        end = self.core.held.next_expiry()
        self._lease = None if end is None else self._loop.call_later(max(0.0, end - time.monotonic()), self._expire)

    def _expire(self) -> None:
        expired = self.core.held.expire(time.monotonic())
        if expired:
            self.figures.expired(len(expired))
            self._settle()
            self._kick()
        self._watch_leases()

    def _forget(self, sequence: Sequence) -> Answer | None:
        answer = self._answers.pop(id(sequence), None)
        self._settle()
        return answer

    def _publish(self, events: list[Event]) -> None:
        if events and self._publisher is not None and self._dialect is not None:
            self._publisher.publish(self._dialect.encode(time.time(), events, block_size=self.core.settings.block_size))
