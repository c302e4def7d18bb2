"""Bodies of requests: JSON and YAML, and keys that come twice."""

from __future__ import annotations

from typing import Any

import msgspec
import yaml

from backend.localkube.api import status
from backend.localkube.api.status import ApiError, Json

LIMIT_BYTES = 3 * 1024 * 1024
OBJECT_TYPES = ("application/json", "application/yaml")
_decode = msgspec.json.Decoder().decode


class _Loader(yaml.CSafeLoader):
    """YAML without dates: times are text in Kubernetes."""

    yaml_implicit_resolvers = {
        first: [entry for entry in entries if entry[0] != "tag:yaml.org,2002:timestamp"]
        for first, entries in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }


class _Object(dict[str, Any]):
    """A JSON object that knows which of its keys came twice."""

    twice: list[str]


def read(data: bytes, content_type: str) -> Any:
    """The value in a body. Raises ApiError: 400 for what cannot be read, 415 for an unknown media type."""
    kind = content_type.partition(";")[0].strip()
    if kind in ("application/yaml", "application/apply-patch+yaml") and not data.lstrip().startswith((b"{", b"[", b'"')):
        try:
            return yaml.load(data, _Loader)
        except yaml.YAMLError as error:
            raise status.bad_request(f"error decoding YAML: {error}") from error
    try:
        return _decode(data)
    except msgspec.DecodeError as error:
        raise status.bad_request(f"the body is no JSON: {error}") from error


def read_object(data: bytes, content_type: str) -> Json:
    """The object in the body of a POST or PUT."""
    media = content_type.partition(";")[0].strip() or OBJECT_TYPES[0]  # the official Python client says nothing and sends JSON
    if media.endswith("protobuf"):
        message = f"unsupported media type {media}: this server reads JSON and YAML, as `kubectl apply` and `kubectl create -f` send"
        raise ApiError(415, "UnsupportedMediaType", message)
    if media not in OBJECT_TYPES:
        raise status.unknown_format(OBJECT_TYPES)
    value = read(data, content_type)
    if not isinstance(value, dict):
        raise status.bad_request("couldn't get version/kind; json parse error: the body is no object")
    return value


def twice(data: bytes) -> list[str]:
    """Paths of the keys that come twice in a JSON body."""
    import json

    def collect(pairs: list[tuple[str, Any]]) -> _Object:
        found = _Object(pairs)
        names = [name for name, _ in pairs]
        found.twice = sorted({name for name in names if names.count(name) > 1}) if len(found) < len(names) else []
        return found

    try:
        value = json.loads(data, object_pairs_hook=collect)
    except ValueError:
        return []
    return _twice(value, "")


def _twice(value: Any, path: str) -> list[str]:
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in _twice(item, f"{path}[{index}]")]
    if not isinstance(value, _Object):
        return []
    prefix = f"{path}." if path else ""
    found = [f"{prefix}{name}" for name in value.twice]
    return found + [below for name, item in value.items() for below in _twice(item, f"{prefix}{name}")]


def too_large() -> ApiError:
    return ApiError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {LIMIT_BYTES}")
