"""Answers as SGLang writes them: OpenAI's two, and those of /generate, whose streams repeat the whole text with every chunk."""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec

from backend.simulate.engine.model import Sequence
from backend.simulate.engine.requests import Asked
from backend.simulate.engine.sglang.requests import SglangRefused

_json = msgspec.json.Encoder().encode
_METADATA = {"weight_version": "default"}
_EMPTY_DELTA = {"role": None, "content": None, "reasoning_content": None, "tool_calls": None}


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of one answer share."""

    id: str
    created: int
    model: str


def failed(why: str) -> tuple[int, bytes]:
    """Status and body of a request that cannot go on; SGLang tells the reason, and the status as its type."""
    return 500, SglangRefused(500, "500", why).body


class OpenAiWriter:
    """SGLang's answer to one of OpenAI's requests. `details`: usage tells cached tokens (--enable-cache-report)."""

    head_first = False

    def __init__(self, head: Head, asked: Asked, *, details: bool) -> None:
        self.stream = asked.stream
        self._head = head
        self._asked = asked
        self._details = details
        self._begun = False

    def whole(self, sequence: Sequence, text: str) -> bytes:
        ended = {"logprobs": None, "finish_reason": sequence.finish_reason, "matched_stop": None, **self._ids(sequence)}
        if self._asked.chat:
            message = {"role": "assistant", "content": text, "reasoning_content": None, "tool_calls": None}
            choice: dict[str, object] = {"index": 0, "message": message, **ended}
        else:
            choice = {"index": 0, "text": text, **ended}
        kind = "chat.completion" if self._asked.chat else "text_completion"
        return _json({**self._shared(kind), "choices": [choice], "usage": self._usage(sequence), "metadata": _METADATA})

    def chunk(self, sequence: Sequence, piece: str, token: int) -> bytes:
        """Chat says why it ended in a chunk of its own, a completion with its last text."""
        counts = self._usage(sequence) if self._asked.continuous_usage else None
        if self._asked.chat:
            return self._role() + self._event({"delta": {**_EMPTY_DELTA, "content": piece}}, None, counts)
        return self._event({"text": piece}, sequence.finish_reason, counts)

    def tail(self, sequence: Sequence, *, aborted: bool) -> bytes:
        reason = "abort" if aborted else sequence.finish_reason
        out = b""
        if self._asked.chat:
            out = self._role() + self._event({"delta": _EMPTY_DELTA}, reason, None)
        elif aborted:
            out = self._event({"text": ""}, reason, None)
        if self._asked.include_usage:
            out += b"data: " + _json({**self._shared(self._chunk_kind), "choices": [], "usage": self._usage(sequence)}) + b"\n\n"
        return out

    def failure(self, why: str) -> tuple[int, bytes]:
        return failed(why)

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._asked.chat else "text_completion"

    def _role(self) -> bytes:
        """Chat's first chunk."""
        begun, self._begun = self._begun, True
        return b"" if begun else self._event({"delta": {**_EMPTY_DELTA, "role": "assistant", "content": ""}}, None, None)

    def _event(self, content: dict[str, object], reason: str | None, counts: dict[str, object] | None) -> bytes:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": reason, "matched_stop": None}
        return b"data: " + _json({**self._shared(self._chunk_kind), "choices": [choice], "usage": counts}) + b"\n\n"

    def _shared(self, kind: str) -> dict[str, object]:
        return {"id": self._head.id, "object": kind, "created": self._head.created, "model": self._head.model}

    def _ids(self, sequence: Sequence) -> dict[str, object]:
        if not self._asked.return_token_ids:
            return {}
        prompt = sequence.prompt_tokens
        return {"token_ids": sequence.tokens[prompt:], "prompt_token_ids": sequence.tokens[:prompt]}

    def _usage(self, sequence: Sequence) -> dict[str, object]:
        return {
            "prompt_tokens": sequence.prompt_tokens,
            "total_tokens": sequence.prompt_tokens + sequence.generated,
            "completion_tokens": sequence.generated,
            "prompt_tokens_details": {"cached_tokens": sequence.cached_tokens} if self._details else None,
            "reasoning_tokens": 0,
        }


class GenerateWriter:
    """SGLang's answer to its own request."""

    head_first = False

    def __init__(self, head: Head, *, stream: bool) -> None:
        self.stream = stream
        self._head = head
        self._text = ""

    def whole(self, sequence: Sequence, text: str) -> bytes:
        return self._state(sequence, text, sequence.finish_reason)

    def chunk(self, sequence: Sequence, piece: str, token: int) -> bytes:
        self._text += piece
        return b"data: " + self._state(sequence, self._text, sequence.finish_reason) + b"\n\n"

    def tail(self, sequence: Sequence, *, aborted: bool) -> bytes:
        return b"data: " + self._state(sequence, self._text, "abort") + b"\n\n" if aborted else b""

    def failure(self, why: str) -> tuple[int, bytes]:
        return failed(why)

    def _state(self, sequence: Sequence, text: str, reason: str | None) -> bytes:
        ended: dict[str, object] | None = None
        if reason is not None:
            ended = {"type": reason}
            ended |= {"length": sequence.generated} if reason == "length" else {}
        meta = {
            "id": self._head.id,
            "finish_reason": ended,
            "prompt_tokens": sequence.prompt_tokens,
            "weight_version": "default",
            "completion_tokens": sequence.generated,
            "cached_tokens": sequence.cached_tokens,
            "e2e_latency": time.monotonic() - sequence.arrived_at,
        }
        return _json({"text": text, "output_ids": sequence.tokens[sequence.prompt_tokens :], "meta_info": meta})
