"""`workbench up`, `down` and `status`: the launcher's functions with printing around them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import _show, _target
from workbench.commands import _output
from workbench.errors import NotConnected, WorkbenchError

if TYPE_CHECKING:
    from backend.api.endpoints import Endpoints
    from backend.launch.options import Progress

_LINKS = ("dashboard", "gateway", "control", "kvindex", "redis", "runtime")


def run(arguments: argparse.Namespace) -> int:
    return {"up": up, "down": down, "status": status}[arguments.command](arguments)


def up(arguments: argparse.Namespace) -> int:
    """Blocks until the stack has ended. A new stack belongs to this folder, not to one further up."""
    from backend.launch import options, stack

    given = {
        "port_base": arguments.port_base,
        "fleet": arguments.fleet,
        "workers": arguments.workers,
        "exit_after_s": arguments.exit_after,
    }
    chosen = options.UpOptions(
        state=arguments.state or _target.named_state() or Path(_target.STATE_FOLDER),
        dashboard=not arguments.no_dashboard,
        traffic=not arguments.no_traffic,
        **{name: value for name, value in given.items() if value is not None},
    )
    with UpDisplay() as display:
        return int(stack.up(chosen, display) or 0)


def down(arguments: argparse.Namespace) -> int:
    from backend.launch import stack

    state = _target.state_folder(arguments.state)
    if stack.down(state):
        print(f"The stack in {state} has ended.")
    else:
        print(f"No stack runs in {state}.")
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Exit code 1 when no stack runs."""
    from backend.launch import stack

    state = _target.state_folder(arguments.state)
    found = stack.status(state)
    if found is None:
        raise NotConnected(f"No stack runs in {state}.", fix="Start one with `workbench up`, or name its folder with --state.")
    _output.show(arguments, found, repr(found))
    return 0


class UpDisplay:
    """Prints what the launcher reports: a bar while parts start on a terminal, a line an event elsewhere, then the links."""

    def __init__(self) -> None:
        self._bar = None

    def __enter__(self) -> UpDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, event: Progress) -> None:
        print(f"{event.kind:10} {event.part:12} {event.text}".rstrip(), file=sys.stderr, flush=True)
