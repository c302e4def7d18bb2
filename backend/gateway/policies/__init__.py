"""The policies by their names, as clients write them in the `routing-strategy` header. Adding one is a module and a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from backend.core.settings import RoutingSettings
from backend.gateway.model import Decision, FleetView, RequestView
from backend.gateway.policies import least_request, pd, prefix_cache, uniform


class Policy(NamedTuple):
    """`needs_tokens`: the prompt's token ids and the prefix index are asked before it chooses."""

    name: str
    choose: Callable[[RequestView, FleetView, Any], Decision]
    settings: Callable[[RoutingSettings], object]
    needs_tokens: bool
    after_id: bytes
    """The header line `routing-strategy` as it stands behind a request id: with the id's line end before it."""


def _policy(name: str, choose: Callable[..., Decision], settings: Callable[[RoutingSettings], object], needs_tokens: bool) -> Policy:
    return Policy(name, choose, settings, needs_tokens, b"\r\nrouting-strategy: %b\r\n" % name.encode())


POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        _policy(uniform.NAME, uniform.choose, lambda settings: None, needs_tokens=False),
        _policy(least_request.NAME, least_request.choose, lambda settings: None, needs_tokens=False),
        _policy(prefix_cache.NAME, prefix_cache.choose, lambda settings: settings.prefix_cache, needs_tokens=True),
        _policy(pd.NAME, pd.choose, lambda settings: settings, needs_tokens=True),
    )
}
PAIR = POLICIES[pd.NAME]
"""What models with prefill and decode pods are routed by, unless a request names another policy."""
