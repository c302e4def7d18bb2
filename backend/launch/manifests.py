"""A fleet as Kubernetes objects: what `workbench up` puts into the stack's own cluster, and how many pods come of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from backend.core.errors import ConfigError
from backend.kube.apply import ensure, read_documents
from backend.kube.client import KubeClient

_FOLDER = Path(__file__).parent.parent / "manifests"
CRDS = _FOLDER / "crds"
SAMPLE = _FOLDER / "fleet-storm.yaml"
"""What `workbench up` starts when nobody names a file."""

Document = dict[str, Any]


def holds_objects(file: Path) -> bool:
    """Whether a fleet file has Kubernetes objects rather than a list `pods`. What cannot be read is left to who complains best."""
    try:
        first = next(iter(yaml.safe_load_all(file.read_text())), None)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(first, dict) and "kind" in first


def read(file: Path) -> list[Document]:
    """Raises ConfigError naming file and what is missing."""
    documents = read_documents(file)
    for at, document in enumerate(documents, 1):
        for field in ("apiVersion", "kind"):
            if not document.get(field):
                raise ConfigError("is required", file=str(file), field=f"document {at}: {field}")
    return documents


def pods_of(documents: Sequence[Document]) -> int:
    """Pods that will run because of `documents`."""
    return sum(_pods(document) for document in documents)


def _pods(document: Document) -> int:
    spec = document.get("spec") or {}
    if document.get("kind") == "Pod":
        return 1
    if document.get("kind") == "RoleSet":
        return _of_roles(spec)
    if document.get("kind") == "StormService":
        return int(spec.get("replicas", 1)) * _of_roles((spec.get("template") or {}).get("spec") or {})
    return 0


def _of_roles(spec: Document) -> int:
    return sum(int(role.get("replicas", 1)) * int(role.get("podGroupSize") or 1) for role in spec.get("roles") or ())


async def install(kubeconfig: Path, documents: Sequence[Document]) -> None:
    """Our CRDs, then `documents`. Raises ApiError naming the field that the cluster refuses."""
    crds = [document for file in sorted(CRDS.glob("*.yaml")) for document in read_documents(file)]
    client = KubeClient.from_kubeconfig(kubeconfig)
    try:
        await ensure(client, [*crds, *documents])
    finally:
        await client.close()
