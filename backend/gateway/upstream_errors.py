"""What clients see of an engine's error: the OpenAI shape, whatever shape the engine used.

Behaviour: AIBrix's normalisation (an object `error`, a flat object with `message`, else the text itself). Kept against upstream: the
engine's own message of a 401 or 500 when it has a known shape, `retry-after`, and other 2xx answers than 200.
"""

from __future__ import annotations

from typing import Any

import msgspec

from backend.gateway import answers

_FIXED = {401: "Incorrect API key provided", 500: "Internal server error"}
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_decode = msgspec.json.Decoder().decode


def normalise(status: int, body: bytes, retry_after: bytes = b"") -> tuple[int, bytes, bytes]:
    """(status, body, header lines) for an answer that is an error, or a 200 that holds one."""
    try:
        value = _decode(body)
    except _UNREADABLE:
        value = None
    found = _error_object(value)
    if found is None:
        text = _FIXED.get(status) or body[:8192].decode("utf-8", "replace").strip() or answers.error_type(status)
        status = status if status >= 400 else 500
        rendered = answers.error_body(status, text, code=answers.CODES.get(status))
    else:
        if status < 400:
            status = _status_in(found)
        code_value = found.get("code")
        if code_value is None and status == 401:
            code_value = answers.CODES[status]
        error = {
            "message": str(found.get("message", "unknown response")),
            "type": found.get("type") or answers.error_type(status),
            "param": found.get("param"),
            "code": code_value,
        }
        rendered = msgspec.json.encode({"error": error})
    lines = b"x-error-response-unknown: true\r\n"
    if retry_after:
        lines += b"retry-after: %b\r\n" % retry_after
    return status, rendered, lines


def message(body: bytes) -> str:
    """What an error says, for a record: at most a few hundred characters."""
    try:
        found = _error_object(_decode(body))
    except _UNREADABLE:
        found = None
    text = found.get("message") if found is not None else None
    return str(text)[:500] if text else "an error without a message"


def _error_object(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    inner = value.get("error")
    if isinstance(inner, dict):
        return inner
    if isinstance(inner, str) and inner:
        return {**value, "message": inner}
    return value if isinstance(value.get("message"), str) else None


def _status_in(error: dict[str, Any]) -> int:
    """A 200 that holds an error: its numeric code is the status, 500 without one."""
    code = error.get("code")
    if isinstance(code, str) and code.isdigit():
        code = int(code)
    return code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code <= 599 else 500
