"""Steady requests through a gateway in a thread of their own, with every answer kept: what chaos tests check their kills against."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import uvloop

from backend.simulate import loadgen
from backend.simulate.traces import BLOCK_TOKENS, TraceRequest

OUTPUT_TOKENS = 8
CONVERSATIONS = 30


@dataclass(frozen=True)
class Answer:
    """One request's result, what it asked for, and when it ended (seconds since 1970)."""

    asked: TraceRequest
    result: loadgen.RequestResult
    ended_at: float

    @property
    def wrong(self) -> str:
        """What is wrong with an answer that claims to be fine; empty when nothing is."""
        if self.result.error:
            return ""
        if self.result.prompt_tokens != self.asked.input_length:
            return f"{self.result.prompt_tokens} prompt tokens counted, {self.asked.input_length} sent"
        if self.result.completion_tokens != OUTPUT_TOKENS:
            return f"{self.result.completion_tokens} tokens answered, {OUTPUT_TOKENS} asked for"
        return ""


class Load:
    """`with Load(url, seed=1) as load: ...`; afterwards `load.answers` holds all of them."""

    def __init__(self, gateway: str, *, seed: int, rate: float = 25.0, model: str = "qwen3-8b") -> None:
        self.answers: list[Answer] = []
        self.failure: BaseException | None = None
        self._options = loadgen.LoadOptions(url=gateway, model=model, rate=rate, max_in_flight=64, timeout_s=20.0)
        self._asked: list[TraceRequest] = []
        self._random = random.Random(seed)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more and wait for what is under way."""
        self._stopping.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "requests were never answered"
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            uvloop.run(self._send())
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            self.failure = error

    async def _send(self) -> None:
        def keep(result: loadgen.RequestResult) -> None:
            self.answers.append(Answer(self._asked[result.index], result, time.time()))

        await asyncio.wait_for(loadgen.run(self._requests(), self._options, keep), 600)

    def _requests(self) -> Iterator[TraceRequest]:
        """Conversations that grow turn by turn, so that caches matter; a new one takes an old one's place now and then."""
        next_id = self._random.randrange(10**6, 10**9)
        conversations: list[list[int]] = [[] for _ in range(CONVERSATIONS)]
        began = time.monotonic()
        while not self._stopping.is_set():
            turns = self._random.choice(conversations)
            if len(turns) >= 5:
                turns.clear()
            next_id += 1
            turns.append(next_id)
            length = len(turns) * BLOCK_TOKENS - self._random.randrange(BLOCK_TOKENS - 1)
            request = TraceRequest((time.monotonic() - began) * 1000, length, OUTPUT_TOKENS, tuple(turns))
            self._asked.append(request)
            yield request
