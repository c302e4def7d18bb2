"""One request's head, checked and made ready to pass on: what may go to an engine, what the gateway itself reads, what is refused.

llhttp has parsed it strictly (conflicting lengths, bare line ends, folded lines, control bytes are refused there); here stands what
it leaves to its user. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from backend.gateway import answers
from backend.gateway.body import PATHS, Api
from backend.gateway.framing import HOP_BY_HOP

Header = tuple[bytes, bytes]

_DROPPED = HOP_BY_HOP | {
    b"content-length",  # written anew, for the body that was read
    b"transfer-encoding",
    b"expect",
    b"host",  # the pod's own address
    b"x-request-id",  # replaced, as AIBrix does
    b"target-pod",  # never the client's choice
    b"target-pod-ip",
    b"prefill-target-pod",
    b"prefill-target-pod-ip",
    b"routing-strategy",
    b"accept-encoding",  # usage is read from the answer: it must not be compressed
}
_UNSUPPORTED = (b"config-profile", b"x-session-id")
"""AIBrix's headers that change its routing and not ours: passed on, and counted so that it shows."""
_READ = _DROPPED | {b"traceparent", b"authorization", b"user", b"external-filter", *_UNSUPPORTED}


class RequestHead(msgspec.Struct, gc=False, kw_only=True):
    """`forward` are the header lines that may pass to an engine, each with its line end."""

    method: bytes
    target: bytes
    """As sent, query string included."""
    path: bytes
    forward: bytes
    path_text: str = ""
    api: Api | None = None
    upstream: bytes = b""
    """The request's first lines for an engine: the request line, `forward`, and the length where the client gave one."""
    has_length: bool = False
    http10: bool = False
    keep_alive: bool = True
    content_length: int = 0
    expects_continue: bool = False
    strategy: str = ""
    selector: str = ""
    """Of `external-filter`: labels that a pod must have."""
    ignored: tuple[str, ...] = ()
    """Names of headers that ask for something that this gateway does not do."""
    user: str = ""
    trace_id: bytes = b""
    authorization: bytes = b""


class Request(msgspec.Struct, gc=False):
    """A whole request. `began` is the monotonic clock (perf_counter) when it was complete."""

    head: RequestHead
    body: bytes
    began: float


def read_head(method: bytes, target: bytes, version: str, headers: Iterable[Header], keep_alive: bool) -> RequestHead:
    """Raises Problem for what cannot be passed on safely."""
    if version not in ("1.1", "1.0"):
        raise answers.version_not_supported()
    kept: list[bytes] = []
    special: dict[bytes, bytes] = {}
    for name, value in headers:
        lower = name.lower()
        if lower in _READ:
            value = value.strip()
            if lower in special:
                if lower == b"host":
                    raise answers.bad_request("more than one Host")
                if lower in (b"connection", b"external-filter"):
                    value = special[lower] + b"," + value
            special[lower] = value
            if lower in _DROPPED:
                continue
        kept += (name, b": ", value, b"\r\n")
    head = RequestHead(method=method, target=target, path=target, forward=b"".join(kept), keep_alive=keep_alive, http10=version == "1.0")
    _origin_form(head)
    _apply(head, special)
    head.api = PATHS.get(head.path)
    head.path_text = head.path.decode("latin-1")
    length = b"content-length: %d\r\n" % head.content_length if head.has_length else b""
    head.upstream = b"POST %b HTTP/1.1\r\n%b%b" % (head.target, head.forward, length)
    return head


def _origin_form(head: RequestHead) -> None:
    """Split off the query; accept the absolute form that proxies are sent."""
    target = head.target
    if not target.startswith(b"/"):
        scheme, separator, rest = target.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            return
        slash = rest.find(b"/")
        head.target = target = rest[slash:] if slash >= 0 else b"/"
    query = target.find(b"?")
    head.path = target[:query] if query >= 0 else target


def _apply(head: RequestHead, special: dict[bytes, bytes]) -> None:
    if b"host" not in special and not head.http10:
        raise answers.bad_request("no Host")
    coding = special.get(b"transfer-encoding")
    if coding is not None and (head.http10 or coding.lower() != b"chunked"):
        # `gzip, chunked` is legal, but nobody behind us would undo the first.
        raise answers.bad_request("Transfer-Encoding other than chunked")
    length = special.get(b"content-length")
    if length is not None:
        head.content_length = int(length)
        head.has_length = True
    if len(special) > (length is not None) + (b"host" in special):
        _apply_rare(head, special)


def _apply_rare(head: RequestHead, special: dict[bytes, bytes]) -> None:
    expectation = special.get(b"expect")
    if expectation is not None:
        if expectation.lower() != b"100-continue":
            raise answers.unmet_expectation(expectation.decode("latin-1"))
        head.expects_continue = not head.http10
    head.strategy = special.get(b"routing-strategy", b"").decode("latin-1")
    head.selector = special.get(b"external-filter", b"").decode("latin-1")
    head.ignored = tuple(name.decode() for name in _UNSUPPORTED if name in special)
    head.user = special.get(b"user", b"").decode("latin-1")
    head.authorization = special.get(b"authorization", b"")
    head.trace_id = trace_id(special.get(b"traceparent", b""))
    connection = special.get(b"connection", b"").lower()
    if connection not in (b"", b"keep-alive", b"close"):
        head.forward = _without(head.forward, {option.strip() for option in connection.split(b",")})


def trace_id(traceparent: bytes) -> bytes:
    """The 32 hex digits of a W3C trace id, or nothing."""
    parts = traceparent.split(b"-")
    if len(parts) != 4 or len(parts[1]) != 32 or parts[1].strip(b"0123456789abcdef"):
        return b""
    return parts[1]


def _without(forward: bytes, names: set[bytes]) -> bytes:
    """Drop the headers that `Connection` declares to be for this hop only."""
    lines = [line for line in forward.split(b"\r\n") if line and line.partition(b":")[0].lower() not in names]
    return b"".join(line + b"\r\n" for line in lines)
