"""Answers to completion requests as vLLM writes them: whole bodies, and the chunks of a stream in their order.

A stream's constant beginning and end are built once; a chunk is three joins of bytes, because a busy engine sends thousands a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from backend.simulate.engine.model import FinishReason, Sequence
from backend.simulate.engine.requests import Asked, RequestRefused

_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What all parts of one answer share."""

    id: str
    created: int
    model: str
    fingerprint: str


def usage(asked: Asked, sequence: Sequence, *, block_size: int, details: bool, whole: bool) -> dict[str, object]:
    """Token counts. `whole` bodies carry empty fields too, chunks leave them out."""
    counts: dict[str, object] = {
        "prompt_tokens": sequence.prompt_tokens,
        "total_tokens": sequence.prompt_tokens + sequence.generated,
        "completion_tokens": sequence.generated,
    }
    # Only chat counts what it added to the cache: the prompt's full blocks that were not there.
    added = (
        (0 if sequence.external_tokens else sequence.prompt_tokens // block_size * block_size - sequence.cached_tokens)
        if asked.chat and sequence.scheduled_at is not None
        else None
    )
    if details:
        shown: dict[str, object] = {"cached_tokens": sequence.cached_tokens if sequence.shown_cached is None else sequence.shown_cached}
        if whole or added is not None:
            shown["created_cache_tokens"] = added
        counts["prompt_tokens_details"] = {**shown, "multimodal_tokens": None} if whole else shown
    elif whole:
        counts["prompt_tokens_details"] = None
    if whole:
        counts["completion_tokens_details"] = None
    return counts


def running_usage(asked: Asked, sequence: Sequence, generated: int) -> dict[str, object] | None:
    """Token counts so far, for a stream that wants them in every chunk; they have no details."""
    if not asked.continuous_usage:
        return None
    counts: dict[str, object] = {
        "prompt_tokens": sequence.prompt_tokens,
        "total_tokens": sequence.prompt_tokens + generated,
        "completion_tokens": generated,
    }
    return {**counts, "completion_tokens_details": None} if asked.chat else counts


def whole_body(
    head: AnswerHead, asked: Asked, sequence: Sequence, text: str, counts: dict[str, object], transfer: Mapping[str, object] | None
) -> bytes:
    """The answer to a request without `stream`. `transfer` tells a decode where this prefill's KV is."""
    ids = asked.return_token_ids
    prompt_ids = sequence.tokens[: sequence.prompt_tokens] if ids else None
    output_ids = sequence.tokens[sequence.prompt_tokens :] if ids else None
    ended: dict[str, object] = {"logprobs": None, "finish_reason": sequence.finish_reason, "stop_reason": None, "token_ids": output_ids}
    if asked.chat:
        message = {"role": "assistant", "content": text, "refusal": None, "annotations": None, "audio": None}
        message |= {"function_call": None, "reasoning": None}
        choice: dict[str, object] = {"index": 0, "message": message, **ended, "routed_experts": None}
        more: dict[str, object] = {"prompt_logprobs": None, "prompt_token_ids": prompt_ids, "prompt_text": None}
    else:
        choice = {"index": 0, "text": text, **ended, "prompt_logprobs": None, "prompt_token_ids": prompt_ids, "routed_experts": None}
        more = {}
    return _json(
        {
            "id": head.id,
            "object": "chat.completion" if asked.chat else "text_completion",
            "created": head.created,
            "model": head.model,
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": head.fingerprint,
            "usage": counts,
            **more,
            "kv_transfer_params": transfer,
            "ec_transfer_params": None,
            "metrics": None,
        }
    )


class ChunkWriter:
    """Writes the chunks of one stream."""

    def __init__(self, head: AnswerHead, asked: Asked) -> None:
        kind = "chat.completion.chunk" if asked.chat else "text_completion"
        shared = {"id": head.id, "object": kind, "created": head.created, "model": head.model}
        self._asked = asked
        self._stamp = b',"system_fingerprint":' + _json(head.fingerprint)
        self._open = b"data: " + _json(shared)[:-1] + b',"choices":['
        self._text_field = b'{"index":0,"delta":{"content":' if asked.chat else b'{"index":0,"text":'
        self._close_delta = b'},"logprobs":null,"finish_reason":' if asked.chat else b',"logprobs":null,"finish_reason":'
        self._first_completion = not asked.chat

    def role(self, sequence: Sequence, counts: dict[str, object] | None) -> bytes:
        """Chat's first chunk, sent with the first token."""
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        prompt = sequence.tokens[: sequence.prompt_tokens] if self._asked.return_token_ids else None
        return self._chunk(_json(choice), counts, b',"prompt_token_ids":' + _json(prompt) + b',"prompt_text":null')

    def text(
        self, sequence: Sequence, text: str, token: int | None, reason: FinishReason | None, counts: dict[str, object] | None
    ) -> bytes:
        """One token's chunk, also for a token without text; the last one carries why the answer ended."""
        ended = b"null" if reason is None else _json(reason)
        parts = [self._text_field, _json(text), self._close_delta, ended]
        if reason is not None or not self._asked.chat:
            parts.append(b',"stop_reason":null')
        if self._first_completion:
            prompt = sequence.tokens[: sequence.prompt_tokens] if self._asked.return_token_ids else None
            parts.append(b',"prompt_token_ids":' + _json(prompt))
            self._first_completion = False
        elif not self._asked.chat:
            parts.append(b',"prompt_token_ids":null')
        ids = b"[%d]" % token if self._asked.return_token_ids and token is not None else b"null"
        parts.append(b',"token_ids":' + ids + b"}")
        # A stream's last JSON carries the fingerprint: this chunk, unless one with the usage follows.
        last = reason is not None and not self._asked.include_usage
        return self._chunk(b"".join(parts), counts, self._stamp if last else b"")

    def usage(self, counts: dict[str, object]) -> bytes:
        """The chunk without choices that `include_usage` asks for."""
        return self._chunk(b"", counts, self._stamp)

    def _chunk(self, choice: bytes, counts: dict[str, object] | None, rest: bytes = b"") -> bytes:
        counted = b"" if counts is None else b',"usage":' + _json(counts)
        return b"".join((self._open, choice, b"]", counted, rest, b"}\n\n"))


class VllmWriter:
    """vLLM's answer to one completion request."""

    head_first = True

    def __init__(self, head: AnswerHead, asked: Asked, *, block_size: int, details: bool) -> None:
        self.stream = asked.stream
        self.transfer: Mapping[str, object] | None = None
        """Set when a prefill ended, for the decode that follows."""
        self._head = head
        self._asked = asked
        self._block_size = block_size
        self._details = details
        self._chunks = ChunkWriter(head, asked)
        self._begun = False

    def whole(self, sequence: Sequence, text: str) -> bytes:
        return whole_body(self._head, self._asked, sequence, text, self._counts(sequence, whole=True), self.transfer)

    def chunk(self, sequence: Sequence, piece: str, token: int) -> bytes:
        text = self._chunks.text(sequence, piece, token, sequence.finish_reason, running_usage(self._asked, sequence, sequence.generated))
        return text if self._begun else self._role(sequence) + text

    def tail(self, sequence: Sequence, *, aborted: bool) -> bytes:
        last = self._role(sequence) + self._chunks.text(sequence, "", None, "abort", self._running(sequence)) if aborted else b""
        return last + (self._chunks.usage(self._counts(sequence, whole=False)) if self._asked.include_usage else b"")

    def failure(self, why: str) -> tuple[int, bytes]:
        """vLLM keeps the reason for its log."""
        return 500, RequestRefused(500, "InternalServerError", "Internal server error").body

    def _role(self, sequence: Sequence) -> bytes:
        """Chat's first chunk, with whatever comes first."""
        begun, self._begun = self._begun, True
        return b"" if begun or not self._asked.chat else self._chunks.role(sequence, running_usage(self._asked, sequence, 0))

    def _running(self, sequence: Sequence) -> dict[str, object] | None:
        return running_usage(self._asked, sequence, sequence.generated)

    def _counts(self, sequence: Sequence, *, whole: bool) -> dict[str, object]:
        return usage(self._asked, sequence, block_size=self._block_size, details=self._details, whole=whole)
