"""A fake admission webhook: an HTTPS server in this process which answers as the test tells it."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.contract.kubernetes.kubecontract.client import Json

Answer = Callable[[Json], Json]
"""From the `request` of an AdmissionReview to the `response` without its uid."""


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, made by the openssl command."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=webhook", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


class WebhookServer:
    """Serves on a free port of 127.0.0.1; `answers` maps a path to what it does, `seen` keeps the requests."""

    def __init__(self, folder: Path) -> None:
        cert, key = make_certificate(folder)
        self.ca_bundle = base64.b64encode(cert.read_bytes()).decode()
        self.answers: dict[str, Answer] = {}
        self.seen: list[Json] = []
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(cert, key)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def client_config(self, path: str) -> Json:
        return {"url": f"https://127.0.0.1:{self._server.server_port}{path}", "caBundle": self.ca_bundle}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.seen.append(body)
                path = self.path.partition("?")[0]
                response = {"uid": body["request"]["uid"], **owner.answers[path](body["request"])}
                review = {"apiVersion": body["apiVersion"], "kind": "AdmissionReview", "response": response}
                data = json.dumps(review).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the base class's
                """Keep the test output clean."""

        return Handler


def json_patch_answer(operations: list[Json]) -> Json:
    """An allowing response with a JSON patch."""
    patch = base64.b64encode(json.dumps(operations).encode()).decode()
    return {"allowed": True, "patchType": "JSONPatch", "patch": patch}
