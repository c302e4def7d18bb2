"""Which stack a workbench belongs to: one named by URL, one that runs in a state folder, or one started for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from backend.api.endpoints import Endpoints
from workbench.errors import NotConnected, PortInUse, Unauthorized, UsageError

if TYPE_CHECKING:
    from backend.launch.options import UpOptions

STATE_FOLDER = ".workbench"
STATE_VARIABLE = "WORKBENCH_STATE"
TOKEN_VARIABLE = "WORKBENCH_TOKEN"
PORT_BASES, PORT_BASE_STEP = 20, 10
"""Ranges of ports that a stack started by `connect` may take."""


@dataclass(frozen=True)
class Target:
    """`release` ends what was started for this workbench, and nothing else."""

    control: str
    token: str = field(default="", repr=False)
    endpoints: Endpoints | None = None
    release: Callable[[], None] = field(default=lambda: None, compare=False)

    @property
    def started_here(self) -> bool:
        return self.release.__name__ != "<lambda>"


def find_or_start(target: str | Path | Endpoints | None, token: str | None) -> Target:
    """Blocking: may read files and wait for a start."""
    if isinstance(target, str) and target.startswith(("http://", "https://")):
        return Target(control=target, token=token or os.environ.get(TOKEN_VARIABLE, ""))
    if isinstance(target, str) and "://" in target:
        raise UsageError(
            f"{target!r} is neither an http(s) address nor a state folder.",
            fix="Give the control API's URL, such as http://127.0.0.1:18801.",
        )
    if isinstance(target, Endpoints):
        return running(target, token)
    state = state_folder(target)
    from backend import launch

    endpoints = launch.find(state)
    if endpoints is not None:
        return running(endpoints, token)
    return start(state, token)


def state_folder(given: str | Path | None = None) -> Path:
    """The folder given, that of WORKBENCH_STATE, else the nearest `.workbench` from here upwards, else `./.workbench`."""
    if given:
        return Path(given).expanduser()
    if named := os.environ.get(STATE_VARIABLE):
        return Path(named).expanduser()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / STATE_FOLDER).is_dir():
            return folder / STATE_FOLDER
    return here / STATE_FOLDER


def running(endpoints: Endpoints, token: str | None = None, release: Callable[[], None] | None = None) -> Target:
    """The target of a stack that runs; its token is read from its file unless given."""
    if not endpoints.control:
        raise NotConnected(f"The stack in {endpoints.state} has no control API.", fix="Start it again with `workbench up`.")
    if token is None and endpoints.token_file:
        try:
            token = Path(endpoints.token_file).read_text().strip()
        except OSError as error:
            raise Unauthorized(
                f"{endpoints.token_file} cannot be read: {error.strerror}.", fix="Pass token=..., or ask its owner."
            ) from error
    target = Target(control=endpoints.control, token=token or "", endpoints=endpoints)
    return target if release is None else Target(target.control, target.token, endpoints, release)


def start(state: Path, token: str | None) -> Target:
    """Start a detached stack in `state` and wait until it is ready; the workbench ends it when closed."""
    from backend.launch import background, ending

    print(f"No stack runs in {state}: starting one.", flush=True)
    endpoints = background.detached(state, free_options(state))
    print(
        f"Gateway {endpoints.gateway}, control {endpoints.control}, dashboard {endpoints.dashboard or 'off'}. close() ends it.", flush=True
    )

    def release() -> None:
        ending.down(state)

    return running(endpoints, token, release)


def free_options(state: Path) -> UpOptions:
    """The usual options, but beside stacks of other folders: the first port base whose ports are all free.

    Raises PortInUse when a whole range is taken.
    """
    from backend.launch import preflight
    from backend.launch.layout import Layout
    from backend.launch.options import UpOptions

    first = UpOptions(state=state, redis_url=os.environ.get("REDIS_URL", ""))
    for step in range(PORT_BASES):
        options = replace(first, port_base=first.port_base + PORT_BASE_STEP * step)
        try:
            preflight.check_ports(options, Layout(state, options.port_base))
        except PortInUse:
            continue
        return options
    raise PortInUse(
        "127.0.0.1", first.port_base, what="a stack", fix=f"So are the next {PORT_BASES - 1} ranges: `workbench up --port-base N`."
    )
