"""What the gateway notes of an answer in passing: first token, number of tokens, usage. The bytes themselves go by untouched.

Cheap by rule: until the first token each event is looked at; after it a packet costs one count of event ends and one append to a
short tail, and only at the end is the tail searched for the usage. JSON is never parsed per event.
"""

from __future__ import annotations

import re

import msgspec

from backend.gateway.framing import without_frames
from backend.gateway.model import Answer, Usage

TAIL_BYTES = 4096
_USAGE_KEY = re.compile(rb'"usage"\s*:\s*(?=\{)')
_BRACES = re.compile(rb"[{}]")
_usage = msgspec.json.Decoder(Usage)
_answer = msgspec.json.Decoder(Answer)
_any = msgspec.json.Decoder()


class StreamNotes:
    """One streamed answer. `token_at` and `last_at` are the caller's clock, 0.0 before the first token."""

    __slots__ = ("_early", "_tail", "_tail_bytes", "events", "last_at", "token_at")

    def __init__(self) -> None:
        self._early: bytes | None = b""
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self.events = 0
        """Events from the first token on."""
        self.token_at = 0.0
        self.last_at = 0.0

    def packet(self, data: bytes, now: float) -> None:
        if self._early is not None:
            self._before_first_token(data, now)
        else:
            ends = data.count(b"\n\n")
            if ends:
                self.events += ends
                self.last_at = now
        self._tail.append(data)
        self._tail_bytes += len(data)
        if self._tail_bytes > 4 * TAIL_BYTES:
            kept = b"".join(self._tail)[-TAIL_BYTES:]
            self._tail, self._tail_bytes = [kept], len(kept)

    def _before_first_token(self, data: bytes, now: float) -> None:
        seen = (self._early or b"") + data
        start = 0
        while True:
            end = seen.find(b"\n\n", start)
            if end < 0:
                break
            if _holds_token(without_frames(seen[start:end])):
                self.token_at = self.last_at = now
                self.events = 1 + seen.count(b"\n\n", end + 2)
                self._early = None
                return
            start = end + 2
        # Kept with its frames, since the next packet may complete one.
        self._early = seen[start:][-TAIL_BYTES:]

    def usage(self) -> Usage | None:
        """The last usage that the engine told, from the end of the stream."""
        return find_usage(without_frames(b"".join(self._tail)[-TAIL_BYTES:]))


def _holds_token(event: bytes) -> bool:
    """Chat's first event carries the role and no token; comments, usage-only events and the end mark carry none either."""
    data = event.find(b"data:")
    if data < 0 or event.startswith(b"[DONE]", data + 6) or event.startswith(b"[DONE]", data + 5):
        return False
    if b'"choices":[]' in event or b'"choices": []' in event:
        return False
    return not (b'"role"' in event and re.search(rb'"content"\s*:\s*(""|null)', event) and b'"tool_calls":[{' not in event)


def find_usage(text: bytes) -> Usage | None:
    """The last object `usage` in `text`. The quotes of generated text are escaped, so the bare key is never part of it."""
    starts = [found.end() for found in _USAGE_KEY.finditer(text)]
    for start in reversed(starts):
        depth = 0
        for brace in _BRACES.finditer(text, start):
            depth += 1 if brace[0] == b"{" else -1
            if depth == 0:
                try:
                    return _usage.decode(text[start : brace.end()])
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    break
    return None


def read_answer(body: bytes) -> Answer | None:
    """A whole JSON answer; None when it is not JSON. Fields of unexpected types count as absent."""
    try:
        return _answer.decode(body)
    except msgspec.ValidationError:
        return _loose(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _loose(body: bytes) -> Answer | None:
    try:
        value = _any.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    error = value.get("error") if isinstance(value, dict) else None
    return Answer(usage=find_usage(body), error=msgspec.Raw(msgspec.json.encode(error)) if error else None)
