"""One request's answer on its way to the client: token by token for a stream, at the end for a whole body.

What the bytes are is the family's matter (`Writer`); when they go out is the same for all.
"""

from __future__ import annotations

from typing import Protocol

from backend.simulate.engine.http import Exchange
from backend.simulate.engine.model import Sequence
from backend.simulate.engine.tokenizer import Detokenizer, Tokenizer

EVENT_STREAM = b"text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"


class Writer(Protocol):
    """Writes the parts of one answer as an engine family does."""

    stream: bool
    head_first: bool
    """A stream's status line goes out before its first token."""

    def whole(self, sequence: Sequence, text: str) -> bytes:
        """The body of an answer that is not a stream."""

    def chunk(self, sequence: Sequence, piece: str, token: int) -> bytes:
        """What a stream sends for a token; with its first one, whatever stands before it."""

    def tail(self, sequence: Sequence, *, aborted: bool) -> bytes:
        """What a stream sends after its last token. `aborted`: it ends without a token of its own."""

    def failure(self, why: str) -> tuple[int, bytes]:
        """Status and body for a request that cannot go on; a stream that has begun sends the body as its last event."""


class Answer:
    """Tells one client what its sequence gave. The driver calls `token` after each step, and `end` or `fail` once."""

    def __init__(self, exchange: Exchange, sequence: Sequence, writer: Writer, tokenizer: Tokenizer) -> None:
        self.exchange = exchange
        self.sequence = sequence
        self.writer = writer
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._begun = False

    def open(self) -> None:
        """Where the family does so, a stream's status line and headers go out at once."""
        if self.writer.stream and self.writer.head_first:
            self._begin()

    def token(self, token: int) -> None:
        if self.writer.stream:
            if not self._begun:
                self._begin()
            self.exchange.send(self.writer.chunk(self.sequence, self._detokenizer.push(token), token))

    def end(self, *, aborted: bool = False) -> None:
        """The answer is complete. `aborted`: it ends without a token of its own, and says so with status 200."""
        if not self.writer.stream:
            text = self._tokenizer.decode(self.sequence.tokens[self.sequence.prompt_tokens :])
            self.exchange.reply(200, self.writer.whole(self.sequence, text))
            return
        if not self._begun:
            self._begin()
        self.exchange.send(self.writer.tail(self.sequence, aborted=aborted) + DONE)
        self.exchange.end_stream()

    def fail(self, why: str) -> None:
        """The request ended with an error that is the engine's."""
        status, body = self.writer.failure(why)
        if not self._begun:
            self.exchange.reply(status, body)
            return
        self.exchange.send(b"data: " + body + b"\n\n" + DONE)
        self.exchange.end_stream()

    def _begin(self) -> None:
        self._begun = True
        self.exchange.begin_stream(EVENT_STREAM)
