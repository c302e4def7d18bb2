"""One module a page: what it shows, and how it follows the hub's snapshots."""

from __future__ import annotations

from apps.core.shell import PageView
from apps.pages.cache import CacheView
from apps.pages.fleet import FleetView
from apps.pages.rollouts import RolloutsView
from apps.pages.router import RouterView

VIEWS: dict[str, PageView] = {"fleet": FleetView, "cache": CacheView, "router": RouterView, "rollouts": RolloutsView}
"""Routes without their slash; also the names under which `wb.panel(...)` finds them."""
