"""What an API server answers instead of doing it, and what keeps it from answering.

WorkbenchError
 ├─ ApiError                the server answered with a Status; the predicates say which
 │   ├─ ApiNotFound         404; also a NotFound
 │   ├─ ApiConflict         409 and 410; also a StaleState
 │   ├─ ApiForbidden        401 and 403; also an Unauthorized
 │   ├─ ApiInvalid          400, 413, 415 and 422; also a UsageError
 │   └─ ApiBusy             429 and 5xx; also a TransientError
 └─ TransientError > Unavailable
     └─ ClusterUnreachable  no answer at all
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from backend.core.errors import NotFound, StaleState, TransientError, Unauthorized, Unavailable, UsageError, WorkbenchError

_SHOWN_CHARACTERS = 300
"""Of an error page that is no Status, such as a proxy's HTML."""


class Cause(NamedTuple):
    """One violation: the field's path as the server writes it, and what is wrong with it."""

    field: str
    message: str


class ApiError(WorkbenchError):
    """The server refused. `status` is the HTTP code, `reason` the machine's word for it, `causes` names the fields.

    `retry_told` says that `retry_after` (seconds) is what the server asked for, not our default.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        reason: str = "",
        causes: tuple[Cause, ...] = (),
        retry_after: float | None = None,
        fix: str = "",
    ) -> None:
        WorkbenchError.__init__(self, message, fix=fix)
        self.status, self.reason, self.causes = status, reason, causes
        self.retry_told = retry_after is not None
        self.retry_after = 1.0 if retry_after is None else retry_after

    @property
    def not_found(self) -> bool:
        return self.status == 404

    @property
    def already_exists(self) -> bool:
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def conflict(self) -> bool:
        """Somebody changed the object first: read it again, decide again."""
        return self.status == 409 and self.reason != "AlreadyExists"

    @property
    def gone(self) -> bool:
        """The version or continue token is too old: list again."""
        return self.status == 410 or self.reason in ("Expired", "Gone")


class ApiNotFound(ApiError, NotFound):
    """No such object, or no such resource."""


class ApiConflict(ApiError, StaleState):
    """The state that the request was made from is not the server's any more."""


class ApiForbidden(ApiError, Unauthorized):
    """The credentials are not accepted, or their rights are too small."""


class ApiInvalid(ApiError, UsageError):
    """The request cannot be; trying again changes nothing."""


class ApiBusy(ApiError, TransientError):
    """The server cannot now; `retry_after` is what it asked for, in seconds."""


class ClusterUnreachable(Unavailable):
    """No answer. `unsent` says that the request cannot have reached the server, so that any request may be repeated."""

    def __init__(self, server: str, problem: str, *, unsent: bool = False, fix: str = "") -> None:
        super().__init__(
            f"The cluster at {server} does not answer: {problem}.",
            fix=fix or "Check that it runs and that the kubeconfig's server address is right (`kubectl get --raw /readyz`).",
        )
        self.server, self.unsent = server, unsent


_FIXES = {
    401: "The token or certificate of the kubeconfig is not accepted (any more): log in again, or choose another context.",
    403: "Ask for the missing permission, or choose a context whose user has it (`kubectl auth can-i --list`).",
    415: "The server does not know this form of patch.",
}


def api_error(status: int, body: bytes, *, what: str, retry_after: float | None = None) -> ApiError:
    """The error for an answer with `status` >= 400. `what` says what was asked, e.g. `GET /api/v1/pods`."""
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError:
        document = None
    if isinstance(document, dict) and document.get("kind") == "Status":
        return status_error(document, what=what, status=status, retry_after=retry_after)
    text = " ".join(body.decode(errors="replace").split())[:_SHOWN_CHARACTERS]
    return _build(status, "", f"{what} failed with status {status}: {text or 'empty answer'}", (), retry_after)


def status_error(document: Mapping[str, Any], *, what: str, status: int = 0, retry_after: float | None = None) -> ApiError:
    """The error for a Status object, as it comes in an answer or in an ERROR event of a watch."""
    details = document.get("details") or {}
    causes = tuple(Cause(cause.get("field", ""), cause.get("message", "")) for cause in details.get("causes") or ())
    code = int(document.get("code") or status or 500)
    told = details.get("retryAfterSeconds")
    message = document.get("message") or document.get("reason") or f"status {code} without a message"
    wait = retry_after if retry_after is not None else float(told) if told else None
    return _build(code, document.get("reason") or "", f"{what}: {message}", causes, wait)


def _build(status: int, reason: str, message: str, causes: tuple[Cause, ...], retry_after: float | None) -> ApiError:
    kind: type[ApiError] = ApiError
    if status == 404:
        kind = ApiNotFound
    elif status in (409, 410):
        kind = ApiConflict
    elif status in (401, 403):
        kind = ApiForbidden
    elif status == 429 or status >= 500:
        kind = ApiBusy
    elif 400 <= status < 500:
        kind = ApiInvalid
    return kind(message, status=status, reason=reason, causes=causes, retry_after=retry_after, fix=_FIXES.get(status, ""))
