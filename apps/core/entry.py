"""What the entry scripts call: one page for `panel serve apps/*.py`, without the server of `python -m apps`.

Options come from the variables WORKBENCH__DASHBOARD__... . There `panel serve`'s own login applies; without one, pages are shown to
this machine only.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from typing import Any

import panel as pn

from apps import pages
from apps.core import options, shell
from apps.core.feed import ControlFeed
from apps.core.hub import Hub

log = logging.getLogger(__name__)

_running: list[tuple[Hub, asyncio.Task[None]]] = []
"""The one hub of this process and the task that runs it; empty until the first visitor."""


def serve(name: str) -> None:
    """Make page `name` the current session's."""
    request = pn.state.curdoc.session_context.request if pn.state.curdoc and pn.state.curdoc.session_context else None
    if pn.state.user is None and not _is_local(request):
        _refusal().servable()
        return
    user = pn.state.user or shell.local_user()
    shell.page(pages.VIEWS[name], hub(), user=user, logout=False).servable()


def hub() -> Hub:
    """This process' hub, started with the first session."""
    if not _running:
        shell.extension()
        chosen = options.from_environment()
        made = Hub(ControlFeed(chosen.control_url, chosen.token_file))
        _running.append((made, asyncio.get_running_loop().create_task(made.run(), name="hub")))
    return _running[0][0]


def _is_local(request: Any) -> bool:
    """Whether a session comes from this machine; a session that nobody asked for (`--warm`) is ours."""
    if request is None:
        return True
    address = str(getattr(request, "remote_ip", "") or "")
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _refusal() -> Any:
    return pn.pane.HTML(
        "<h2>No login is set up</h2><p>This server shows the fleet to its own machine only. Start it with <code>--basic-auth</code>, "
        "or use <code>python -m apps</code>, which asks for the stack's token.</p>"
    )
