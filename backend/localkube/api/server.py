"""The API server as a part of a process: listens on loopback, writes the kubeconfig that clients log in with."""

from __future__ import annotations

import base64
import json
import logging
import secrets
from pathlib import Path

from aiohttp import web

from backend.core import files
from backend.core.errors import PortInUse
from backend.core.supervise import Supervisor
from backend.localkube.api import certificate
from backend.localkube.api.collector import Collector
from backend.localkube.api.front import Front, Logs
from backend.localkube.objects import Objects

log = logging.getLogger(__name__)

CONTEXT = "localkube"


class ApiServer:
    """Serves `objects` on 127.0.0.1 over TLS. `kubeconfig` is written (0600) once the server listens; the certificate lies
    beside it. Token and certificate stay the same over restarts, so clients go on."""

    def __init__(self, objects: Objects, *, port: int, kubeconfig: Path, token: str = "", logs: Logs | None = None) -> None:
        self.objects = objects
        self.kubeconfig = kubeconfig
        self.token = token or known_token(kubeconfig) or secrets.token_urlsafe(32)
        self._port = port
        self._front = Front(objects, token=self.token, logs=logs)
        self._tasks = Supervisor("Kubernetes API")
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listen. Raises PortInUse."""
        server = web.Server(self._front.handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        crt, key = certificate.ensure(self.kubeconfig.parent)
        tls = certificate.context(crt, key)
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=tls, reuse_address=True, backlog=1024)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise PortInUse("127.0.0.1", self._port, what="the Kubernetes API") from error
        self._port = int(self._runner.addresses[0][1])
        self._tasks.start("collector", Collector(self.objects).run)
        write_kubeconfig(self.kubeconfig, self._port, self.token, crt.read_bytes())
        log.info("Kubernetes API on %s, kubeconfig %s", self.url, self.kubeconfig)

    async def stop(self) -> None:
        """End: watches are closed, nothing is written any more by this server."""
        await self._tasks.close()
        if self._runner is not None:
            await self._runner.cleanup()


def known_token(file: Path) -> str:
    """The token of the server before: clients that know it go on after a restart."""
    try:
        return str(json.loads(file.read_text())["users"][0]["user"]["token"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def write_kubeconfig(file: Path, port: int, token: str, authority: bytes) -> None:
    """0600; the same content as long as port, token and certificate stay."""
    login = kubeconfig(f"https://127.0.0.1:{port}", token, authority)
    files.write_atomic(file, json.dumps(login, indent=2).encode(), mode=0o600)


def kubeconfig(url: str, token: str, authority: bytes) -> dict[str, object]:
    """A kubeconfig (JSON is YAML) with one cluster, one user and one context."""
    cluster = {"server": url, "certificate-authority-data": base64.b64encode(authority).decode()}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": CONTEXT, "cluster": cluster}],
        "users": [{"name": CONTEXT, "user": {"token": token}}],
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": CONTEXT, "namespace": "default"}}],
        "current-context": CONTEXT,
    }
