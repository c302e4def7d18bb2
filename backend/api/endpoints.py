"""`STATE/endpoints.json`: where the parts of a running stack are."""

from __future__ import annotations

import msgspec

from backend.core.urls import masked


class Endpoints(msgspec.Struct, kw_only=True, omit_defaults=True):
    """URLs of a stack; what was switched off is empty. Written when everything is ready, removed at the end.

    `redis` holds a password: the file is 0600, and `masked` is for everybody else's eyes.
    """

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

    def masked(self) -> Endpoints:
        """The same without the password."""
        return msgspec.structs.replace(self, redis=masked(self.redis))

    def __repr__(self) -> str:
        shown = msgspec.structs.asdict(self.masked())
        return f"Endpoints({', '.join(f'{name}={value!r}' for name, value in shown.items() if value)})"
