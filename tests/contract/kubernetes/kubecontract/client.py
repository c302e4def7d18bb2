"""A thin HTTP client for any Kubernetes API server.

It adds nothing to the protocol on purpose: a test states path, query, headers and body, and sees the answer as it came.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

Json = dict[str, Any]
Event = dict[str, Any]

JSON = "application/json"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
PROTOBUF = "application/vnd.kubernetes.protobuf"
AS_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
AS_METADATA_LIST = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json"
AS_METADATA = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io,application/json"


@dataclass(frozen=True)
class Target:
    """Where the server under test is and how to log in."""

    server: str
    token: str | None = None
    verify: ssl.SSLContext | bool = True
    kubeconfig: Path | None = None

    def with_token(self, token: str | None) -> Target:
        return Target(self.server, token, self.verify)


def target_from_environment(env: Mapping[str, str] = os.environ) -> Target | None:
    """CONTRACT_SERVER (+ CONTRACT_TOKEN, CONTRACT_CA) wins over CONTRACT_KUBECONFIG; None when neither is set."""
    if server := env.get("CONTRACT_SERVER"):
        ca = env.get("CONTRACT_CA")
        verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=ca) if ca else False
        return Target(server.rstrip("/"), env.get("CONTRACT_TOKEN"), verify)
    if path := env.get("CONTRACT_KUBECONFIG"):
        return target_from_kubeconfig(Path(path), env.get("CONTRACT_CONTEXT"))
    return None


def load_kubeconfig(path: Path) -> Json:
    """Read a kubeconfig; YAML through PyYAML when it is there, else through `kubectl config view`."""
    text = path.read_text()
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        import yaml
    except ImportError:
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            raise RuntimeError("a YAML kubeconfig needs PyYAML or kubectl; or set CONTRACT_SERVER") from None
        command = [kubectl, "--kubeconfig", str(path), "config", "view", "--raw", "-o", "json"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return yaml.safe_load(text)


def target_from_kubeconfig(path: Path, context: str | None = None) -> Target:
    """Token and client-certificate users are supported; exec plugins are not (use CONTRACT_TOKEN for those)."""
    config = load_kubeconfig(path)

    def named(kind: str, name: str) -> Json:
        return next(entry[kind] for entry in config[f"{kind}s"] if entry["name"] == name)

    chosen = named("context", context or config["current-context"])
    cluster, user = named("cluster", chosen["cluster"]), named("user", chosen["user"])
    server = cluster["server"].rstrip("/")
    if not server.startswith("https"):
        return Target(server, user.get("token"), False, path)
    if data := cluster.get("certificate-authority-data"):
        tls = ssl.create_default_context(cadata=base64.b64decode(data).decode())
    elif file := cluster.get("certificate-authority"):
        tls = ssl.create_default_context(cafile=str(path.parent / file))
    else:
        tls = ssl.create_default_context()
    if cluster.get("insecure-skip-tls-verify"):
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    _load_client_certificate(tls, user, path.parent)
    token = user.get("token")
    if token is None and (file := user.get("tokenFile")):
        token = (path.parent / file).read_text().strip()
    return Target(server, token, tls, path)


def _load_client_certificate(tls: ssl.SSLContext, user: Json, base: Path) -> None:
    if "client-certificate-data" in user:
        with tempfile.TemporaryDirectory() as folder:
            cert, key = Path(folder, "cert.pem"), Path(folder, "key.pem")
            cert.write_bytes(base64.b64decode(user["client-certificate-data"]))
            key.write_bytes(base64.b64decode(user["client-key-data"]))
            tls.load_cert_chain(cert, key)
    elif "client-certificate" in user:
        tls.load_cert_chain(base / user["client-certificate"], base / user["client-key"])


class Watch:
    """An open watch, read synchronously: the kernel buffers events until the test asks for them."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.response.close()

    def __iter__(self) -> Iterator[Event]:
        """All events until the server ends the stream."""
        for line in self._lines:
            yield json.loads(line)

    def next(self) -> Event:
        """The next event; httpx.ReadTimeout when there is none within the read timeout."""
        for event in self:
            return event
        raise AssertionError("the server ended the watch early")

    def take(self, count: int) -> list[Event]:
        return [self.next() for _ in range(count)]

    def until(self, kind: str, name: str) -> Event:
        """Skip to the event of this type for the object of this name."""
        while True:
            event = self.next()
            if event["type"] == kind and event["object"]["metadata"]["name"] == name:
                return event


class Api:
    """One logged-in connection pool."""

    def __init__(self, target: Target) -> None:
        self.target = target
        headers = {"Accept": JSON, "User-Agent": "kubecontract"}
        if target.token:
            headers["Authorization"] = f"Bearer {target.token}"
        self._http = httpx.Client(
            base_url=target.server,
            verify=target.verify,
            headers=headers,
            timeout=httpx.Timeout(15.0),
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=50),
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        accept: str = JSON,
        content: bytes | None = None,
    ) -> httpx.Response:
        headers = {"Accept": accept}
        if content is None and body is not None:
            content = json.dumps(body, separators=(",", ":")).encode()
        if content is not None:
            headers["Content-Type"] = content_type
        return self._http.request(method, path, content=content, params=params, headers=headers)

    def get(self, path: str, accept: str = JSON, **params: Any) -> httpx.Response:
        return self.call("GET", path, params=params or None, accept=accept)

    def post(self, path: str, body: Any, **params: Any) -> httpx.Response:
        return self.call("POST", path, body, params=params or None)

    def put(self, path: str, body: Any, **params: Any) -> httpx.Response:
        return self.call("PUT", path, body, params=params or None)

    def delete(self, path: str, options: Any = None, **params: Any) -> httpx.Response:
        return self.call("DELETE", path, options, params=params or None)

    def json_patch(self, path: str, operations: Any, **params: Any) -> httpx.Response:
        return self.call("PATCH", path, operations, params=params or None, content_type=JSON_PATCH)

    def merge(self, path: str, body: Any, **params: Any) -> httpx.Response:
        return self.call("PATCH", path, body, params=params or None, content_type=MERGE_PATCH)

    def strategic(self, path: str, body: Any, **params: Any) -> httpx.Response:
        return self.call("PATCH", path, body, params=params or None, content_type=STRATEGIC_PATCH)

    def apply(self, path: str, body: Any, manager: str | None = "contract", **params: Any) -> httpx.Response:
        """Server-side apply; JSON is valid YAML, so the body stays JSON."""
        if manager is not None:
            params["fieldManager"] = manager
        return self.call("PATCH", path, body, params=params or None, content_type=APPLY_PATCH)

    def watch(self, path: str, *, accept: str = JSON, encoding: str = "identity", read_timeout: float = 8.0, **params: Any) -> Watch:
        """Open a watch; the answer's headers have arrived when this returns.

        Compression is switched off: servers compress a watch with initial events as several gzip members in a row,
        and the decoder of httpx stops silently after the first.
        """
        query = {"watch": "true", "timeoutSeconds": 20, **params}
        request = self._http.build_request(
            "GET",
            path,
            params=query,
            headers={"Accept": accept, "Accept-Encoding": encoding},
            extensions={"timeout": httpx.Timeout(read_timeout).as_dict()},
        )
        response = self._http.send(request, stream=True)
        return Watch(response)


def expect(response: httpx.Response, code: int = 200) -> Json:
    """The JSON body of an answer that must have this code."""
    assert response.status_code == code, f"{response.request.method} {response.request.url}: {response.text[:2000]}"
    return response.json()


def refused(
    response: httpx.Response,
    code: int,
    reason: str | None = None,
    *,
    message: str | None = None,
    contains: str | None = None,
    causes: list[tuple[str, str]] | None = None,
) -> Json:
    """A Status failure with this code and reason; `causes` are (reason, field) pairs in any order."""
    status = expect(response, code)
    assert (status["kind"], status["apiVersion"], status["status"]) == ("Status", "v1", "Failure"), status
    assert status["code"] == code, status
    if reason is not None:
        assert status.get("reason") == reason, status
    if message is not None:
        assert status["message"] == message, status
    if contains is not None:
        assert contains in status["message"], status
    if causes is not None:
        seen = sorted((cause.get("reason"), cause.get("field")) for cause in status["details"]["causes"])
        assert seen == sorted(causes), status
    return status
