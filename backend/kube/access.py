"""Where a cluster is and how to prove who asks: kubeconfig or the pod's service account, read again when it rotates.

All ways of authentication come from the `kubernetes` package: tokens, token files, client certificates, exec plugins, OIDC.
Its import takes 0.3 s and is made on first use. Keys that a kubeconfig holds inline touch the disk only while the
package hands them to OpenSSL.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import ssl
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from backend.core.errors import ConfigError
from backend.kube import kubeconfig
from backend.kube.figures import KubeFigures

log = logging.getLogger(__name__)

FRESH_S = 60.0
"""Credentials are looked at again after this long: service-account tokens rotate about hourly, long before they expire."""
REFUSED_AGAIN_S = 5.0
"""Refused credentials are read anew at most this often, so that a plugin is not run for every request of a busy process."""
SERVICE_HOST = "KUBERNETES_SERVICE_HOST"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_TEMPORARY = threading.Lock()


@dataclass(frozen=True)
class Access:
    """One reading. Secrets are left out of its repr, since reprs end in logs."""

    server: str
    where: str
    namespace: str = "default"
    authorization: str = field(default="", repr=False)
    headers: tuple[tuple[str, str], ...] = ()
    context: ssl.SSLContext | None = field(default=None, repr=False, compare=False)
    fingerprint: str = field(default="", repr=False)
    server_name: str = ""
    proxy: str = field(default="", repr=False)

    @property
    def loopback(self) -> bool:
        host = urlsplit(self.server).hostname or ""
        return host == "localhost" or host == "::1" or host.startswith("127.")


Load = Callable[[bool], Access]
"""Reads; True says that what it read last was refused by the server, so that nothing remembered may be used. May block."""


class Credentials:
    """The current reading, kept fresh. `load` runs in a thread, but for the first time."""

    def __init__(self, load: Load, *, figures: KubeFigures | None = None) -> None:
        self._load = load
        self._figures = figures or KubeFigures()
        self._access = load(False)
        self._read_at = time.monotonic()
        self._refused_at = float("-inf")
        self._lock = asyncio.Lock()

    @property
    def latest(self) -> Access:
        return self._access

    async def current(self) -> Access:
        """The reading to use for a request, read again when a minute has gone; the old one when that fails."""
        if time.monotonic() - self._read_at < FRESH_S:
            return self._access
        async with self._lock:
            if time.monotonic() - self._read_at >= FRESH_S:
                self._read_at = time.monotonic()
                self._figures.reloads.labels("age").inc()
                try:
                    self._access = await asyncio.to_thread(self._load, False)
                except ConfigError as error:
                    log.warning("credentials could not be read again, the old ones are used meanwhile: %s", error)
        return self._access

    async def after_refusal(self, refused: Access) -> Access:
        """The server did not accept `refused` (401): a newer reading, or the same when there is none. Raises ConfigError."""
        async with self._lock:
            if self._access is not refused or time.monotonic() - self._refused_at < REFUSED_AGAIN_S:
                return self._access
            self._refused_at = self._read_at = time.monotonic()
            self._figures.reloads.labels("refused").inc()
            self._access = await asyncio.to_thread(self._load, True)
        return self._access


def loader(path: Path | str | None = None, context: str | None = None) -> Load:
    """How to read: the kubeconfig of `path`, KUBECONFIG or the home folder; inside a pod without any, its service account.

    Raises ConfigError when there is neither.
    """
    files = kubeconfig.files_of(path, os.environ)
    if files:
        return KubeconfigReader(files, context)
    if os.environ.get(SERVICE_HOST):
        return from_service_account
    raise ConfigError(
        "there is no kubeconfig, and this is no pod of a cluster",
        file=os.environ.get("KUBECONFIG", kubeconfig.DEFAULT),
        fix="Name a kubeconfig with --kubeconfig or KUBECONFIG, or start the laptop's cluster (`workbench up`).",
    )


class KubeconfigReader:
    """Reads one context of the files. A plugin runs again only when its token is about to expire or was refused."""

    def __init__(self, files: tuple[Path, ...], context: str | None) -> None:
        self._files, self._context = files, context
        self._from_plugin: tuple[Any, Access] | None = None

    def __call__(self, refused: bool) -> Access:
        """Raises ConfigError."""
        if self._from_plugin is not None and not refused:
            configuration, access = self._from_plugin
            configuration.get_api_key_with_prefix("BearerToken")
            return replace(access, authorization=_authorization(configuration))
        choice = kubeconfig.choose(self._files, self._context)
        with _temporary_folder() as folder:
            configuration = _configuration(choice, folder)
            access = _access(configuration, where=choice.where, namespace=choice.namespace, headers=choice.impersonate)
            if choice.exec_command and not access.authorization and not configuration.cert_file:
                raise ConfigError(
                    f"the credential plugin {choice.exec_command!r} gave no credentials",
                    file=choice.where,
                    field="users[].user.exec",
                    fix="Run the plugin's command by hand; its complaint stands in the log above.",
                )
        self._from_plugin = (configuration, access) if choice.exec_command and access.authorization else None
        return access


def from_service_account(refused: bool) -> Access:
    """Read what Kubernetes mounts into every pod, each time anew. Raises ConfigError."""
    config, configuration = _package()
    try:
        config.load_incluster_config(configuration)
    except (config.ConfigException, OSError) as error:
        raise ConfigError(
            f"this pod's service account cannot be used: {error}", field="automountServiceAccountToken", fix="Mount its token."
        ) from error
    with contextlib.suppress(OSError):  # without the file it is "default", as for kubectl
        return _access(configuration, where="the pod's service account", namespace=NAMESPACE_FILE.read_text().strip())
    return _access(configuration, where="the pod's service account", namespace="default")


def _package() -> tuple[Any, Any]:
    """The package's module of readers, and an empty configuration for it to fill."""
    import kubernetes.config
    from kubernetes.client import Configuration

    return kubernetes.config, Configuration()


def _configuration(choice: kubeconfig.Choice, folder: str) -> Any:
    config, configuration = _package()
    try:
        config.load_kube_config(config_file=choice.where, context=choice.context, client_configuration=configuration, temp_file_path=folder)
    except (config.ConfigException, OSError, ValueError) as error:
        raise ConfigError(f"the kubeconfig cannot be used: {error}", file=choice.where, field=f"contexts[name={choice.context}]") from error
    return configuration


def _access(configuration: Any, *, where: str, namespace: str, headers: tuple[tuple[str, str], ...] = ()) -> Access:
    server = str(configuration.host).rstrip("/")
    host = urlsplit(server).hostname or ""
    context, fingerprint = _tls(configuration, where) if server.startswith("https:") else (None, "")
    proxy = configuration.proxy or ""
    direct = host == "localhost" or host.startswith("127.") or bool(urllib.request.proxy_bypass(host))
    return Access(
        server=server,
        where=where,
        namespace=namespace or "default",
        authorization=_authorization(configuration),
        headers=headers,
        context=context,
        fingerprint=fingerprint,
        server_name=configuration.tls_server_name or "",
        proxy="" if direct else proxy,
    )


def _authorization(configuration: Any) -> str:
    """The header's value; a token file's last line break is no part of it."""
    token = str(configuration.api_key.get("BearerToken", "")).strip()
    return f"Bearer {token[7:].strip()}" if token[:7].lower() == "bearer " else token


def _tls(configuration: Any, where: str) -> tuple[ssl.SSLContext, str]:
    """The context of a connection, and a digest that differs when any of what it was made of does."""
    digest = hashlib.sha256(repr(bool(configuration.verify_ssl)).encode())
    for name in (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file):
        digest.update(b"|" + (Path(name).read_bytes() if name else b""))
    try:
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"is no certificate: {error}", file=where, field="certificate-authority") from error
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        try:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"certificate and key do not work together: {error}", file=where, field="client-certificate") from error
    return context, digest.hexdigest()


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    """A folder for inline keys, gone before anything is asked. The package remembers files by content and writes them again.

    One thread at a time: what one has written the other may be about to read.
    """
    with _TEMPORARY, tempfile.TemporaryDirectory(prefix="workbench-kube-") as folder:
        yield folder
