"""The dashboard's address for people: a link that logs in once, so that nobody has to copy a token."""

from __future__ import annotations

from backend.api.endpoints import Endpoints
from workbench import _target
from workbench.errors import WorkbenchError

TIMEOUT_S = 2.0


def login_link(endpoints: Endpoints) -> str:
    """A fresh one-time link, good for a few minutes; the plain address when the dashboard gives none; "" without a dashboard."""
    import httpx

    if not endpoints.dashboard:
        return ""
    try:
        token = _target.running(endpoints).token
        answer = httpx.post(
            f"{endpoints.dashboard}/login/code", headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT_S, trust_env=False
        )
        return endpoints.dashboard + str(answer.json()["path"])
    except (httpx.HTTPError, WorkbenchError, ValueError, KeyError, TypeError):
        # Its login page takes the token too.
        return endpoints.dashboard
