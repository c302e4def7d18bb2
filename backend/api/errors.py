"""Errors as they cross the wire, and the one tree of errors for those who may not reach into `backend.core`.

The control API and the index's query API answer `{"error": {"message", "type", "fix"}}`; `from_response` makes the same class
of error on the client's side again.
"""

from __future__ import annotations

import msgspec

from backend.core.errors import (
    ConfigError,
    DiskFull,
    EnvironmentProblem,
    InvalidRequest,
    NotFound,
    PermanentError,
    PortInUse,
    StaleState,
    StateFolderError,
    TransientError,
    Unauthorized,
    Unavailable,
    UsageError,
    WorkbenchError,
)

__all__ = [
    "ConfigError",
    "DiskFull",
    "EnvironmentProblem",
    "ErrorBody",
    "ErrorResponse",
    "InvalidRequest",
    "NotFound",
    "PermanentError",
    "PortInUse",
    "StaleState",
    "StateFolderError",
    "TransientError",
    "Unauthorized",
    "Unavailable",
    "UsageError",
    "WorkbenchError",
    "from_response",
]


class ErrorBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`type` is the class name in the tree of `backend.core.errors`."""

    message: str
    type: str = ""
    fix: str = ""


class ErrorResponse(msgspec.Struct, kw_only=True):
    error: ErrorBody


_BY_STATUS: dict[int, type[WorkbenchError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: StaleState,
    413: InvalidRequest,
    422: InvalidRequest,
    429: TransientError,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def from_response(status: int, body: bytes, *, what: str = "The server") -> WorkbenchError:
    """The error that an answer with an error status stands for; a foreign body (a proxy's page) keeps its first line.

    >>> from_response(404, b'{"error": {"message": "No pod vllm-9.", "type": "NotFound"}}')
    NotFound('No pod vllm-9.')
    """
    try:
        error = msgspec.json.decode(body, type=ErrorResponse).error
    except msgspec.MsgspecError:
        first_line = body[:200].decode(errors="replace").strip().partition("\n")[0]
        error = ErrorBody(message=f"{what} answered {status}{f': {first_line}' if first_line else ''}.")
    kind = _BY_STATUS.get(status, PermanentError if status < 500 else TransientError)
    return kind(error.message, fix=error.fix)
