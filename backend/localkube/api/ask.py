"""What a request asks for, from its path, query and headers. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from backend.localkube.api import selectors, status
from backend.localkube.api.kinds import Kind, Kinds
from backend.localkube.api.status import INVALID, UNSUPPORTED, ApiError, Cause, Json
from backend.localkube.api.store import Key
from backend.localkube.api.writing import Deletion, Write

Form = Literal["object", "Table", "Metadata"]
_VALIDATIONS = ("Ignore", "Strict", "Warn")


@dataclass(frozen=True)
class Place:
    """What a path names. `namespace` None means all namespaces, an empty `name` the collection."""

    kind: Kind
    namespace: str | None
    name: str
    sub: str
    watch: bool

    @property
    def home(self) -> str:
        return self.namespace or ""


def place(kinds: Kinds, path: str) -> Place | None:
    """The place of an API path; None when there is no such group version. Raises ApiError (404) for an unknown resource."""
    parts = path.strip("/").split("/")
    group, version, rest = ("", parts[1], parts[2:]) if parts[0] == "api" else (parts[1], parts[2], parts[3:])
    watch = rest[:1] == ["watch"]
    rest = rest[1:] if watch else rest
    namespace: str | None = None
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    kind = kinds.find(group, version, rest[0])
    if kind is None or len(rest) > 3 or (namespace is not None and not kind.namespaced):
        if any(not served.custom for served in kinds.of_group(group)):
            raise status.no_such_resource()
        return None
    if kind.namespaced and namespace is None and len(rest) > 1:
        raise status.no_such_resource()
    name, sub = [*rest[1:], "", ""][:2]
    return Place(kind, namespace, name, sub, watch)


def form(accept: str) -> tuple[Form, bool]:
    """In which form the answer is wanted, and whether as YAML. Raises ApiError (406)."""
    for part in accept.split(","):
        kind, *parameters = [item.strip() for item in part.split(";")]
        asked = next((item.removeprefix("as=") for item in parameters if item.startswith("as=")), "")
        if kind == "application/yaml":
            return "object", True
        if kind in ("application/json", "*/*", "application/*", ""):
            if asked == "Table":
                return "Table", False
            if asked in ("PartialObjectMetadata", "PartialObjectMetadataList"):
                return "Metadata", False
            if not asked:
                return "object", False
    known = "only the following media types are accepted: application/json, application/yaml"
    raise ApiError(406, "NotAcceptable", known)


def write(query: Mapping[str, str], options: str, *, patch: bool = False) -> Write:
    """How a POST, PUT or PATCH is to be done. Raises ApiError (422)."""
    validation = query.get("fieldValidation") or "Warn"
    if validation not in _VALIDATIONS:
        message = f'Unsupported value: "{validation}": supported values: "", "Ignore", "Strict", "Warn"'
        raise status.invalid_options(options, [Cause(UNSUPPORTED, "fieldValidation", message)])
    return Write(
        dry_run=is_dry(query.get("dryRun"), options),
        validation=validation,
        patch=patch,
    )


def is_dry(value: object, options: str) -> bool:
    values = value if isinstance(value, list) else [value] if value else []
    if not values:
        return False
    if values != ["All"]:
        raise status.invalid_options(options, [Cause(UNSUPPORTED, "dryRun", f'Unsupported value: {values}: supported values: "All"')])
    return True


def deletion(query: Mapping[str, str], body: Json) -> Deletion:
    """DeleteOptions from the body, else from the query. Raises ApiError (422)."""
    grace = body.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
    policy = body.get("propagationPolicy", query.get("propagationPolicy")) or ""
    if policy not in ("", "Orphan", "Background", "Foreground"):
        message = f'Unsupported value: "{policy}": supported values: "Background", "Foreground", "Orphan"'
        raise status.invalid_options("DeleteOptions", [Cause(UNSUPPORTED, "propagationPolicy", message)])
    if body.get("orphanDependents"):
        policy = "Orphan"
    conditions = body.get("preconditions") or {}
    return Deletion(
        grace_s=number(str(grace), "gracePeriodSeconds") if grace is not None else None,
        propagation=policy,
        uid=conditions.get("uid", ""),
        version=conditions.get("resourceVersion", ""),
        dry_run=is_dry(body.get("dryRun") or query.get("dryRun"), "DeleteOptions"),
    )


def number(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise status.bad_request(f'invalid value for "{name}": {text!r} is no whole number') from error


@dataclass(frozen=True)
class Listing:
    """Which objects of a collection are asked for, and of when."""

    matches: selectors.Matcher | None
    version: int | None
    match: str
    limit: int
    start: Key | None
    """The key after which a further page begins."""
    send_initial: bool


def listing(query: Mapping[str, str], at: Place) -> Listing:
    """Raises ApiError: 400 for selectors and tokens that cannot be read, 422 for parameters that do not go together."""
    labels = selectors.parse_labels(query.get("labelSelector", ""))
    fields = selectors.parse_fields(query.get("fieldSelector", ""), at.kind)
    version = number(query["resourceVersion"], "resourceVersion") if query.get("resourceVersion") else None
    match, initial = query.get("resourceVersionMatch", ""), query.get("sendInitialEvents") == "true"
    watch = at.watch or query.get("watch") in ("1", "true")
    _check_match(match, version, watch=watch, initial=initial)
    start = None
    if token := query.get("continue"):
        if version:
            raise status.bad_request("specifying resource version is not allowed when using continue")
        version, start = _read_token(token)
        match = "Exact"
    tests = [test for test in (labels, fields) if test is not None]
    if at.name:
        name = at.name
        tests.append(lambda value: value["metadata"]["name"] == name)
    matches = None if not tests else tests[0] if len(tests) == 1 else lambda value: all(test(value) for test in tests)
    return Listing(matches, version, match, number(query.get("limit") or "0", "limit"), start, initial)


def _check_match(match: str, version: int | None, *, watch: bool, initial: bool) -> None:
    reason, message = status.FORBIDDEN, ""
    if watch and initial and match != "NotOlderThan":
        message = "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
    elif watch and match and not initial:
        message = "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
    elif not watch and match not in ("", "Exact", "NotOlderThan"):
        reason, message = UNSUPPORTED, f'Unsupported value: "{match}": supported values: "Exact", "NotOlderThan", ""'
    elif not watch and match and version is None:
        message = "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
    elif not watch and match == "Exact" and version == 0:
        message = 'Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
    if message:
        raise status.invalid_options("ListOptions", [Cause(reason, "resourceVersionMatch", message)])


def token(version: int, last: Key) -> str:
    """A continue token: the version of the list and the last key of the page."""
    return base64.urlsafe_b64encode(json.dumps([version, *last]).encode()).decode()


def _read_token(text: str) -> tuple[int, Key]:
    try:
        version, namespace, name = json.loads(base64.urlsafe_b64decode(text))
        return int(version), (str(namespace), str(name))
    except (ValueError, TypeError, binascii.Error) as error:
        raise status.bad_request("continue key is not valid: the token was not made by this server") from error


def log_options(query: Mapping[str, str]) -> dict[str, str]:
    """The options of a pod's log. Raises ApiError (422) for numbers out of range."""
    causes = []
    for name, least in (("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)):
        if name in query and number(query[name], name) < least:
            causes.append(Cause(INVALID, name, f"Invalid value: {query[name]}: must be greater than or equal to {least}"))
    if causes:
        raise status.invalid("PodLogOptions", "", "", causes)
    return {name: text for name, text in query.items() if name != "container"}
