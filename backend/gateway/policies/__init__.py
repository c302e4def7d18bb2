"""The policies by their names, as clients write them in the `routing-strategy` header. Adding one is a module and a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from backend.core.settings import RoutingSettings
from backend.gateway.model import Decision, FleetView, RequestView
from backend.gateway.policies import least_request, prefix_cache, uniform


class Policy(NamedTuple):
    """`needs_tokens`: the prompt's token ids and the prefix index are asked before it chooses."""

    name: str
    choose: Callable[[RequestView, FleetView, Any], Decision]
    settings: Callable[[RoutingSettings], object]
    needs_tokens: bool


POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy(uniform.NAME, uniform.choose, lambda settings: None, needs_tokens=False),
        Policy(least_request.NAME, least_request.choose, lambda settings: None, needs_tokens=False),
        Policy(prefix_cache.NAME, prefix_cache.choose, lambda settings: settings.prefix_cache, needs_tokens=True),
    )
}
