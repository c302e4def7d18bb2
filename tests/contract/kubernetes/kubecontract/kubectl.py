"""Where kubectl is and how it reaches the server under test."""

from __future__ import annotations

import functools
import json
import os
import shutil
import ssl
import subprocess
from pathlib import Path

from tests.contract.kubernetes.kubecontract.client import Json, Target

OLDEST = 28
"""Minor version of the first kubectl that reads OpenAPI v3 only; older ones ask for version 2 in protobuf."""


@functools.cache
def kubectl_binary() -> str | None:
    """A kubectl that is new enough, or None."""
    binary = os.environ.get("CONTRACT_KUBECTL") or shutil.which("kubectl")
    if binary is None:
        return None
    done = subprocess.run([binary, "version", "--client", "-o", "json"], capture_output=True, check=False, timeout=20)
    if done.returncode != 0:
        return None
    minor = str(json.loads(done.stdout)["clientVersion"]["minor"])
    return binary if int(minor.rstrip("+")) >= OLDEST else None


def kubeconfig(target: Target, folder: Path) -> Path:
    """A kubeconfig for the server under test: its own, or one with the CA as CONTRACT_CA gave it."""
    if target.kubeconfig is not None:
        return target.kubeconfig
    cluster: Json = {"server": target.server}
    if isinstance(target.verify, ssl.SSLContext):
        cluster["certificate-authority"] = str(Path(os.environ["CONTRACT_CA"]).resolve())
    elif target.server.startswith("https"):
        cluster["insecure-skip-tls-verify"] = True
    user = {"token": target.token} if target.token else {}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path = folder / "kubeconfig.json"
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return path
