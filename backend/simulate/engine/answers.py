"""One request's answer on its way to the client: token by token for a stream, at the end for a whole body."""

from __future__ import annotations

from backend.simulate.engine import bodies
from backend.simulate.engine.http import Exchange
from backend.simulate.engine.model import Sequence
from backend.simulate.engine.requests import Asked
from backend.simulate.engine.tokenizer import Detokenizer, Tokenizer


class Answer:
    """Tells one client what its sequence gave. The driver calls `token` after each step, and `end` once."""

    def __init__(
        self,
        exchange: Exchange,
        asked: Asked,
        sequence: Sequence,
        head: bodies.AnswerHead,
        tokenizer: Tokenizer,
        block_size: int,
        *,
        details: bool,
    ) -> None:
        self.exchange = exchange
        self.asked = asked
        self.sequence = sequence
        self._head = head
        self._tokenizer = tokenizer
        self._block_size = block_size
        self._details = details
        self._chunks = bodies.ChunkWriter(head, asked) if asked.stream else None
        self._detokenizer = Detokenizer(tokenizer)
        self._started = False

    def open(self) -> None:
        """A stream's status line and headers go out at once, before the first token."""
        if self._chunks is not None:
            self.exchange.begin_stream(bodies.EVENT_STREAM)

    def token(self, token: int) -> None:
        if self._chunks is None:
            return
        piece = self._detokenizer.push(token)
        self._send(self._chunks.text(self.sequence, piece, token, self.sequence.finish_reason, self._running_counts()))

    def end(self, *, aborted: bool = False) -> None:
        """The answer is complete. `aborted`: it ends without a token of its own, and says so with status 200."""
        if self._chunks is None:
            text = self._tokenizer.decode(self.sequence.tokens[self.sequence.prompt_tokens :])
            self.exchange.reply(200, bodies.whole_body(self._head, self.asked, self.sequence, text, self._counts(whole=True)))
            return
        if aborted:
            self._send(self._chunks.text(self.sequence, "", None, "abort", self._running_counts()))
        if self.asked.include_usage:
            self._send(self._chunks.usage(self._counts(whole=False)))
        self.exchange.send(bodies.DONE)
        self.exchange.end_stream()

    def _send(self, chunk: bytes) -> None:
        if not self._started:
            self._started = True
            if self.asked.chat and self._chunks is not None:
                self.exchange.send(self._chunks.role(self.sequence, bodies.running_usage(self.asked, self.sequence, 0)))
        self.exchange.send(chunk)

    def _running_counts(self) -> dict[str, object] | None:
        return bodies.running_usage(self.asked, self.sequence, self.sequence.generated)

    def _counts(self, *, whole: bool) -> dict[str, object]:
        return bodies.usage(self.asked, self.sequence, block_size=self._block_size, details=self._details, whole=whole)
