"""`STATE/endpoints.json`: where the parts of a running stack are."""

from __future__ import annotations

import msgspec


class Endpoints(msgspec.Struct, kw_only=True, omit_defaults=True):
    """URLs of a stack; what was switched off is empty. Written when everything is ready, removed at the end."""

    state: str
    pid: int
    control: str = ""
    gateway: str = ""
    kvindex: str = ""
    redis: str = ""
    dashboard: str = ""
    runtime: str = ""
    kube: str = ""
    kubeconfig: str = ""
    token_file: str = ""
    version: str = ""
    started_at: float = 0.0
