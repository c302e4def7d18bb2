"""What a Kubernetes API server answers when it refuses: a Status with code, reason, message and causes.

The words follow those of the real server, because clients (kubectl, client libraries, controllers) match on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from backend.core.errors import PermanentError

Json = dict[str, Any]

MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"

INVALID = "FieldValueInvalid"
REQUIRED = "FieldValueRequired"
DUPLICATE = "FieldValueDuplicate"
FORBIDDEN = "FieldValueForbidden"
TOO_LONG = "FieldValueTooLong"
WRONG_TYPE = "FieldValueTypeInvalid"
UNSUPPORTED = "FieldValueNotSupported"


class Cause(NamedTuple):
    """One thing that is wrong with an object: reason from the closed set above, path of the field, sentence."""

    reason: str
    field: str
    message: str


class Named(Protocol):
    """What an error has to know of a kind."""

    @property
    def group(self) -> str: ...
    @property
    def plural(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def key(self) -> str: ...


class ApiError(PermanentError):
    """A request that the server refuses; `status()` is the body of the answer."""

    def __init__(self, code: int, reason: str, message: str, *, details: Json | None = None, continues: str = "") -> None:
        super().__init__(message)
        self.code, self.reason, self.details, self.continues = code, reason, details, continues

    def status(self) -> Json:
        metadata = {"continue": self.continues} if self.continues else {}
        body: Json = {"kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure", "message": self.message}
        if self.reason:
            body["reason"] = self.reason
        if self.details is not None:
            body["details"] = self.details
        return {**body, "code": self.code}


def about(kind: Named, name: str, **more: Any) -> Json:
    """`details` of a Status that speaks of one object by its resource."""
    details: Json = {"name": name}
    if kind.group:
        details["group"] = kind.group
    return {**details, "kind": kind.plural, **more}


def success(kind: Named, name: str, uid: str) -> Json:
    details = about(kind, name, uid=uid)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def not_found(kind: Named, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{kind.key} "{name}" not found', details=about(kind, name))


def already_exists(kind: Named, name: str) -> ApiError:
    return ApiError(409, "AlreadyExists", f'{kind.key} "{name}" already exists', details=about(kind, name))


def conflict(kind: Named, name: str, why: str = MODIFIED) -> ApiError:
    return ApiError(409, "Conflict", f'Operation cannot be fulfilled on {kind.key} "{name}": {why}', details=about(kind, name))


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def no_such_resource() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource", details={})


def not_allowed() -> ApiError:
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", details={})


def unknown_format(known: Sequence[str]) -> ApiError:
    message = f"the body of the request was in an unknown format - accepted media types include: {', '.join(known)}"
    return ApiError(415, "UnsupportedMediaType", message)


def expired(version: int, oldest: int, continues: str = "") -> ApiError:
    return ApiError(410, "Expired", f"too old resource version: {version} ({oldest})", continues=continues)


def forbidden(kind: Named, name: str, why: str, causes: Sequence[Cause] = ()) -> ApiError:
    details = about(kind, name)
    if causes:
        details["causes"] = _listed(causes)
    return ApiError(403, "Forbidden", f'{kind.key} "{name}" is forbidden: {why}', details=details)


def invalid(subject: str, group: str, name: str, causes: Sequence[Cause]) -> ApiError:
    """422; `subject` is the kind as it stands in details.kind."""
    texts = [f"{cause.field}: {cause.message}" for cause in causes]
    text = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    details: Json = {"name": name} if name else {}
    if group:
        details["group"] = group
    details |= {"kind": subject, "causes": _listed(causes)}
    head = f"{subject}.{group}" if group else subject
    return ApiError(422, "Invalid", f'{head} "{name}" is invalid: {text}', details=details)


def invalid_object(kind: Named, name: str, causes: Sequence[Cause]) -> ApiError:
    return invalid(kind.kind, kind.group, name, causes)


def invalid_options(options: str, causes: Sequence[Cause]) -> ApiError:
    """422 about query parameters: `options` is ListOptions, CreateOptions, ..."""
    return invalid(options, "meta.k8s.io", "", causes)


def _listed(causes: Sequence[Cause]) -> list[Json]:
    return [{"reason": cause.reason, "message": cause.message, "field": cause.field} for cause in causes]
