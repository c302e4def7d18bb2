"""Where a local cluster keeps what its clients need, known without starting one."""

from __future__ import annotations

import secrets
from pathlib import Path

from backend.core import files

FOLDER = "kube"
"""Below the state folder: objects, certificate, kubeconfig."""


def kubeconfig(state: Path) -> Path:
    """How clients of the cluster at `state` log in; readable by its owner only."""
    return state / FOLDER / "kubeconfig"


def prepare(state: Path, port: int) -> Path:
    """Write the kubeconfig before the cluster starts, so that its clients may start together with it. Gives its path."""
    from backend.localkube.api import certificate, server

    file = kubeconfig(state)
    files.ensure_folder(file.parent)
    authority, _ = certificate.ensure(file.parent)
    server.write_kubeconfig(file, port, server.known_token(file) or secrets.token_urlsafe(32), authority.read_bytes())
    return file
