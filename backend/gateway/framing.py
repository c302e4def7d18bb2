"""Where an engine's HTTP answer begins and ends: strict, and without copying or changing a byte of its body.

Owns the reading of response heads and the walk over chunks. What two readers could understand differently is refused (WireError),
because the bytes are passed on to a client whose reading decides where the next answer starts. No I/O.
"""

from __future__ import annotations

import re

import msgspec

from backend.core.errors import WireError

HEAD_LIMIT = 65_536
CHUNKED = -1
UNTIL_CLOSE = -2

HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"upgrade")
)
OWN_HEADERS = frozenset(
    (b"request-id", b"routing-strategy", b"target-pod", b"target-pod-ip", b"prefill-target-pod", b"prefill-target-pod-ip")
)
"""Set by the gateway; an engine's own are dropped."""

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?\Z")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*\Z")
_LENGTH = re.compile(rb"[0-9]{1,18}\Z")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\Z")


class ResponseHead(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    status: int
    forward: bytes
    """Status line and the headers that may pass, each with its line end; no empty line."""
    length: int
    """Body bytes; CHUNKED or UNTIL_CLOSE."""
    keep_alive: bool
    event_stream: bool
    plain: bool = False
    """A 200 of known length that is no stream: the usual whole answer."""
    retry_after: bytes = b""

    def without_framing(self) -> ResponseHead:
        """The same answer for a client that knows no chunks (HTTP/1.0): the connection's end is the body's."""
        lines = [line for line in self.forward.split(b"\r\n") if line and not line.lower().startswith(b"transfer-encoding:")]
        return msgspec.structs.replace(self, forward=b"".join(line + b"\r\n" for line in lines), length=UNTIL_CLOSE, plain=False)


def parse_head(raw: bytes) -> ResponseHead:
    """`raw` is everything before the empty line. Raises WireError with the reason `bad_status_line`, `bad_header` or `bad_length`."""
    lines = raw.split(b"\r\n")
    found = _STATUS_LINE.match(lines[0])
    if found is None:
        raise WireError("bad_status_line", "the pod's answer does not begin with an HTTP/1.1 status line")
    keep_alive = found[1] == b"1"
    status = int(found[2])
    kept = [b"HTTP/1.1 ", lines[0][9:], b"\r\n"]
    length: bytes | None = None
    chunked = event_stream = False
    retry_after = b""
    dropped = _named_by_connection(lines)
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        lower = name.lower()
        if not colon or not _NAME.match(name) or not _VALUE.match(value):
            raise WireError("bad_header", "a header of the pod's answer cannot be read")
        value = value.strip(b" \t")
        if lower == b"content-length":
            if length is not None or not _LENGTH.match(value):
                raise WireError("bad_length", "the pod's answer has an unclear Content-Length")
            length = value
        elif lower == b"transfer-encoding":
            if chunked or value.lower() != b"chunked" or found[1] == b"0":
                raise WireError("bad_length", "the pod's answer has a Transfer-Encoding other than chunked")
            chunked = True
        elif lower == b"connection":
            options = value.lower()
            keep_alive = b"close" not in options and (keep_alive or b"keep-alive" in options)
        if lower in HOP_BY_HOP or lower in OWN_HEADERS or lower in dropped:
            continue
        if lower == b"content-type":
            event_stream = value.lower().startswith(b"text/event-stream")
        elif lower == b"retry-after":
            retry_after = value
        kept += (name, b": ", value, b"\r\n")
    body_length = _body_length(status, length, chunked)
    return ResponseHead(
        status=status,
        forward=b"".join(kept),
        length=body_length,
        keep_alive=keep_alive,
        event_stream=event_stream,
        plain=status == 200 and body_length > 0 and not event_stream,
        retry_after=retry_after,
    )


def _body_length(status: int, length: bytes | None, chunked: bool) -> int:
    if chunked and length is not None:
        raise WireError("bad_length", "the pod's answer has both Content-Length and Transfer-Encoding")
    if status in (204, 304) or status < 200:
        return 0
    if chunked:
        return CHUNKED
    return UNTIL_CLOSE if length is None else int(length)


def _named_by_connection(lines: list[bytes]) -> frozenset[bytes]:
    """Headers that a `Connection` header declares to be for this hop only."""
    named: set[bytes] = set()
    for line in lines[1:]:
        if line[:11].lower() == b"connection:":
            named.update(option.strip().lower() for option in line[11:].split(b","))
    return frozenset(named - {b"content-length", b"transfer-encoding"}) if named else frozenset()


_BURST_BYTES = 1024
_LAST_CHUNK = [b"0", b""]


class ChunkWalker:
    """Finds the end of a chunked body over any number of packets. One object a body."""

    __slots__ = ("_partial", "_skip", "_trailer")

    # Engines send the same few sizes over and over; the dictionary spares the check of the digits. Bounded, shared.
    _sizes: dict[bytes, int] = {}

    def __init__(self) -> None:
        self._partial = b""
        self._skip = 0
        self._trailer = False

    def feed(self, data: bytes) -> int:
        """Position in `data` right behind the body's end, or -1 when more must come. Raises WireError (`bad_chunk`)."""
        offset = 0
        position = 0
        if self._skip:
            # What is left of a chunk, its line end included; the line end is checked once it is whole.
            if len(data) < self._skip:
                self._keep_line_end(data)
                return -1
            position = self._skip
            line_end = data[position - 2 : position] if position > 1 else self._partial + data[:1]
            if line_end != b"\r\n":
                raise _bad_chunk()
            self._skip, self._partial = 0, b""
        elif self._partial:
            offset = len(self._partial)
            data, self._partial = self._partial + data, b""
        elif len(data) >= _BURST_BYTES and (end := self._whole_chunks(data)):
            return end
        end = self._walk(data, position)
        return end - offset if end >= 0 else -1

    def _whole_chunks(self, data: bytes) -> int:
        """What `_walk` would answer for a packet of whole chunks, or 0 when `data` is something else or cannot be told to be that.

        A burst of a stream's chunks costs a few calls here instead of a turn of a loop for each. Exact: between two line ends stands a
        size, then as many bytes as it says, and so on; a payload that holds a line end itself makes the lengths differ.
        """
        lines = data.split(b"\r\n")
        if lines.pop():
            return 0
        end = -1
        if lines[-2:] == _LAST_CHUNK:
            del lines[-2:]
            end = len(data)
        return end if list(map(len, lines[1::2])) == list(map(self._sizes.get, lines[::2])) else 0

    def _keep_line_end(self, data: bytes) -> None:
        self._skip -= len(data)
        # Only when the line end itself is split over packets is its first half worth remembering.
        self._partial = data[-1:] if self._skip == 1 else b""

    def _walk(self, data: bytes, position: int) -> int:
        size_of, total = self._sizes, len(data)
        while not self._trailer:
            line_end = data.find(b"\r\n", position)
            if line_end < 0:
                return self._wait(data[position:], 256)
            line = data[position:line_end]
            size = size_of.get(line)
            if size is None:
                size = self._size(line)
            if size == 0:
                self._trailer = True
                position = line_end + 2
                break
            following = line_end + 2 + size + 2
            if following > total:
                self._skip = following - total
                self._partial = data[-1:] if self._skip == 1 else b""
                return -1
            if data[following - 2 : following] != b"\r\n":
                raise _bad_chunk()
            position = following
            if position == total:
                return -1
        return self._walk_trailer(data, position)

    def _walk_trailer(self, data: bytes, position: int) -> int:
        while True:
            line_end = data.find(b"\r\n", position)
            if line_end < 0:
                return self._wait(data[position:], 8192)
            if line_end == position:
                return line_end + 2
            name, colon, value = data[position:line_end].partition(b":")
            if not colon or not _NAME.match(name) or not _VALUE.match(value):
                raise _bad_chunk()
            position = line_end + 2

    def _wait(self, partial: bytes, limit: int) -> int:
        if len(partial) > limit:
            raise _bad_chunk()
        self._partial = partial
        return -1

    def _size(self, line: bytes) -> int:
        found = _CHUNK_SIZE.match(line)
        if found is None:
            raise _bad_chunk()
        size = int(found[1], 16)
        if size and len(line) <= 4:
            self._sizes[line] = size
        return size


def _bad_chunk() -> WireError:
    return WireError("bad_chunk", "a chunk of the pod's answer has a broken frame")


# Two patterns: one that begins with a literal is searched for at memchr speed, an alternation with the text's start is not.
_FRAME = re.compile(rb"\r\n[0-9A-Fa-f]{1,15}(?:;[^\r\n]*)?\r\n")
_FIRST_FRAME = re.compile(rb"[0-9A-Fa-f]{1,15}(?:;[^\r\n]*)?\r\n")


def without_frames(raw: bytes) -> bytes:
    """Payload of a piece of a chunked *event stream*: JSON and event fields never hold a line of hex digits alone."""
    first = _FIRST_FRAME.match(raw)
    return _FRAME.sub(b"", raw[first.end() :] if first else raw)


def dechunked(raw: bytes) -> bytes:
    """The payload of a chunked body whose frames were checked; of a body cut off, what is there."""
    parts: list[bytes] = []
    position = 0
    while True:
        line_end = raw.find(b"\r\n", position)
        if line_end < 0:
            return b"".join(parts)
        size = int(raw[position:line_end].partition(b";")[0], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(raw[line_end + 2 : line_end + 2 + size])
        position = line_end + 4 + size
