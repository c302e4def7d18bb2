"""What the gateway notes of an answer in passing: how it opens and ends, first token, number of tokens, usage. Its bytes go by untouched.

Cheap by rule: until the first token each event is looked at; after it a packet costs one count of events and one append to a short
tail, and only at the end is the tail searched. JSON is never parsed per event.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import msgspec

from backend.gateway import upstream_errors
from backend.gateway.framing import without_frames
from backend.gateway.model import Answer, Usage

TAIL_BYTES = 4096
Opening = Literal["", "token", "abort", "error", "comment"]
"""The first event that says anything. token: text, or an end without any; abort: the engine ends before its first token; "": none yet."""

# Generated text has its quotes and line ends escaped, so neither of these can be part of it. A line end is enough to separate events:
# what is cut off before `data:` has no meaning here.
_EVENT_END = re.compile(rb"\n\r?\n")
_EVENT = b"\ndata:"
_EDGE, _D = len(_EVENT) - 1, _EVENT[1]
_ABORT = re.compile(rb'"finish_reason"\s*:\s*"abort"')
_TEXT = re.compile(rb'"(?:text|content|reasoning|reasoning_content|arguments)"\s*:\s*"[^"]|"token_ids"\s*:\s*\[\s*\d')
_ERROR = re.compile(rb'^data:[ \t]*(\{\s*"(?:error"\s*:\s*[{"]|object"\s*:\s*"error")[^\r\n]*)', re.MULTILINE)
_NO_CONTENT = re.compile(rb'"content"\s*:\s*(""|null)')
_USAGE_KEY = re.compile(rb'"usage"\s*:\s*(?=\{)')
_BRACES = re.compile(rb"[{}]")
_usage = msgspec.json.Decoder(Usage)
_answer = msgspec.json.Decoder(Answer)
_any = msgspec.json.Decoder()


class Ending(NamedTuple):
    usage: Usage | None
    aborted: bool
    """The engine stopped generating before it was done: it is draining."""
    error: str
    """The message of an error event; "" without one."""


class StreamNotes:
    """One streamed answer. `token_at` and `last_at` are the caller's clock, 0.0 before the first token."""

    __slots__ = ("_early", "_edge", "_tail", "_tail_bytes", "events", "last_at", "opening", "token_at")

    def __init__(self) -> None:
        self._early: bytes | None = b""
        self._edge = b""
        """The last bytes noted: an event may begin in them."""
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self.opening: Opening = ""
        self.events = 0
        """Events from the first token on."""
        self.token_at = 0.0
        self.last_at = 0.0

    def packet(self, data: bytes, now: float) -> None:
        """`data` is not empty."""
        if self._early is not None:
            self._before_first_token(data, now)
        else:
            events = data.count(_EVENT)
            edge = self._edge
            if data[0] == _D or edge[-1] != 10:
                events += (edge + data[:_EDGE]).count(_EVENT)
            self._edge = data[-_EDGE:] if len(data) >= _EDGE else (edge + data)[-_EDGE:]
            if events:
                self.events += events
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
            end = _EVENT_END.search(seen, start)
            if end is None:
                break
            says = _opening(without_frames(seen[start : end.start()]))
            self.opening = self.opening or says
            if says == "token":
                self.token_at = self.last_at = now
                self.events = 1 + seen.count(_EVENT, end.start())
                self._early, self._edge = None, seen[-_EDGE:]
                return
            start = end.end()
        # Kept with its frames, since the next packet may complete one.
        self._early = seen[start:][-TAIL_BYTES:]

    def usage(self) -> Usage | None:
        """The last usage that the engine told, from the end of the stream."""
        return find_usage(self._end())

    def ending(self) -> Ending:
        """For a stream that came to its own end."""
        text = self._end()
        # Looked for as plain bytes first: nearly no stream has either.
        aborted = b'"abort"' in text and _ABORT.search(text) is not None
        failed = _ERROR.search(text) if b'"error"' in text else None
        return Ending(find_usage(text), aborted, upstream_errors.message(failed[1]) if failed is not None else "")

    def _end(self) -> bytes:
        return without_frames(b"".join(self._tail)[-TAIL_BYTES:])


def _opening(event: bytes) -> Opening:
    """Chat's first event carries the role and no token; usage-only events and the end mark carry none either."""
    data = event.find(b"data:")
    if data < 0:
        return "comment" if event.lstrip(b"\r\n").startswith(b":") else ""
    if event.startswith(b"[DONE]", data + 6) or event.startswith(b"[DONE]", data + 5):
        return ""
    if b'"abort"' in event and _ABORT.search(event) and not _TEXT.search(event):
        return "abort"
    if b'"error"' in event and _ERROR.search(event):
        return "error"
    if b'"choices":[]' in event or b'"choices": []' in event:
        return ""
    return "" if b'"role"' in event and _NO_CONTENT.search(event) and b'"tool_calls":[{' not in event else "token"


def find_usage(text: bytes) -> Usage | None:
    """The last object `usage` in `text`. The quotes of generated text are escaped, so the bare key is never part of it."""
    if b'"usage"' not in text:  # told far quicker than by the pattern, and so it is with most streams
        return None
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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _loose(body: bytes) -> Answer | None:
    try:
        value = _any.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    error = value.get("error") if isinstance(value, dict) else None
    return Answer(usage=find_usage(body), error=msgspec.Raw(msgspec.json.encode(error)) if error else None)
