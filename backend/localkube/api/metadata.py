"""The metadata of objects: names, labels, owners, finalizers; and the identity that the server gives."""

from __future__ import annotations

import re
import secrets
import uuid
from datetime import UTC, datetime

from backend.localkube.api.status import FORBIDDEN, INVALID, REQUIRED, TOO_LONG, Cause, Json

_LABEL = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_NAME_PART = re.compile(_LABEL)
_LABEL_VALUE = re.compile(f"({_LABEL})?")
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_ANNOTATIONS_BYTES = 256 * 1024
_STANDARD_FINALIZERS = frozenset({"orphan", "foregroundDeletion", "kubernetes"})
SHORT_NAMES = frozenset({"namespaces", "services"})
"""Resources whose names are DNS labels: 63 characters, no dots."""

SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an "
    "alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*"
    "[a-z0-9])?)*')"
)
LABEL_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
    "alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)


def timestamp(seconds: float) -> str:
    """Whole seconds in RFC 3339, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def generated_name(base: str) -> str:
    """`base`, cut so that the name has 63 characters at most, and five characters that are hard to misread."""
    return base[:58] + "".join(secrets.choice(_ALPHABET) for _ in range(5))


def new_uid() -> str:
    return str(uuid.uuid4())


def is_label_value(text: str) -> bool:
    return len(text) <= 63 and _LABEL_VALUE.fullmatch(text) is not None


def is_label_key(text: str) -> bool:
    prefix, slash, name = text.rpartition("/")
    if slash and not (_SUBDOMAIN.fullmatch(prefix) and len(prefix) <= 253):
        return False
    return len(name) <= 63 and _NAME_PART.fullmatch(name) is not None


def check(metadata: Json, plural: str, old: Json | None = None) -> list[Cause]:
    """What is wrong with metadata whose types are right; parts that did not change since `old` are not looked at again."""
    before = old or {}
    causes = [] if old is not None else _check_name(metadata, plural)
    for part, look in (
        ("labels", _check_labels), ("annotations", _check_annotations),
        ("ownerReferences", _check_owners), ("finalizers", _check_finalizers),
    ):  # fmt: skip
        value = metadata.get(part)
        if value and value != before.get(part):
            causes += look(value)
    if "deletionTimestamp" in before:
        added = sorted(set(metadata.get("finalizers") or ()) - set(before.get("finalizers") or ()))
        if added:
            message = f"Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers {added}"
            causes.append(Cause(FORBIDDEN, "metadata.finalizers", message))
    return causes


def _check_name(metadata: Json, plural: str) -> list[Cause]:
    name = metadata.get("name", "")
    if not name:
        return [Cause(REQUIRED, "metadata.name", "Required value: name or generateName is required")]
    longest, grammar = (63, _DNS_LABEL) if plural in SHORT_NAMES else (253, _SUBDOMAIN)
    if len(name) > longest:
        return [Cause(INVALID, "metadata.name", f'Invalid value: "{name}": must be no more than {longest} characters')]
    if not grammar.fullmatch(name):
        return [Cause(INVALID, "metadata.name", f'Invalid value: "{name}": {SUBDOMAIN_RULE}')]
    return []


def _check_labels(labels: dict[str, str]) -> list[Cause]:
    causes = []
    for key, value in labels.items():
        if not is_label_key(key):
            causes.append(Cause(INVALID, "metadata.labels", f'Invalid value: "{key}": name part must consist of alphanumeric characters'))
        if len(value) > 63:
            causes.append(Cause(INVALID, "metadata.labels", f'Invalid value: "{value}": must be no more than 63 bytes'))
        elif not is_label_value(value):
            causes.append(Cause(INVALID, "metadata.labels", f'Invalid value: "{value}": {LABEL_RULE}'))
    return causes


def _check_annotations(annotations: dict[str, str]) -> list[Cause]:
    causes = [
        Cause(INVALID, "metadata.annotations", f'Invalid value: "{key}": name part must consist of alphanumeric characters')
        for key in annotations
        if not is_label_key(key.lower())
    ]
    if sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) > _ANNOTATIONS_BYTES:
        causes.append(Cause(TOO_LONG, "metadata.annotations", f"Too long: may not be more than {_ANNOTATIONS_BYTES} bytes"))
    return causes


def _check_owners(owners: list[Json]) -> list[Cause]:
    causes = [
        Cause(INVALID, f"metadata.ownerReferences[{index}].{field}", 'Invalid value: "": must not be empty')
        for index, owner in enumerate(owners)
        for field in ("apiVersion", "kind", "name", "uid")
        if owner.get(field) == ""
    ]
    controllers = [owner.get("name") for owner in owners if owner.get("controller")]
    if len(controllers) > 1:
        message = f"Invalid value: {controllers}: Only one reference can have Controller set to true"
        causes.append(Cause(INVALID, "metadata.ownerReferences", message))
    return causes


def _check_finalizers(finalizers: list[str]) -> list[Cause]:
    return [
        Cause(
            INVALID, "metadata.finalizers", f'Invalid value: "{name}": name is neither a standard finalizer name nor is it fully qualified'
        )
        for name in finalizers
        if name not in _STANDARD_FINALIZERS and not ("/" in name and is_label_key(name)) and not _looks_qualified(name)
    ]


def _looks_qualified(name: str) -> bool:
    """`customresourcecleanup.apiextensions.k8s.io` and the like: a domain without a slash is accepted with a warning by the real server."""
    return "." in name and _SUBDOMAIN.fullmatch(name) is not None
