"""`workbench up`, `down` and `status`: the launcher's functions with printing around them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from workbench import _dashboard, _target
from workbench.commands import _output
from workbench.errors import NotConnected

if TYPE_CHECKING:
    from backend.api.endpoints import Endpoints
    from backend.launch.options import Progress

_LINKS = ("gateway", "control", "kvindex")


def run(arguments: argparse.Namespace) -> int:
    return {"up": up, "down": down, "status": status}[arguments.command](arguments)


def up(arguments: argparse.Namespace) -> int:
    """Blocks until the stack has ended. Without --state a new stack belongs to this folder, not to one further up."""
    from backend.launch import stack

    given = {
        "port_base": arguments.port_base,
        "fleet": arguments.fleet,
        "workers": arguments.workers,
        "exit_after_s": arguments.exit_after,
    }
    state = arguments.state or Path(os.environ.get(_target.STATE_VARIABLE) or _target.STATE_FOLDER)
    options = stack.UpOptions(
        state=state,
        dashboard=not arguments.no_dashboard,
        traffic=not arguments.no_traffic,
        redis_url=os.environ.get("REDIS_URL", ""),
        **{name: value for name, value in given.items() if value is not None},
    )
    display = UpDisplay(state)
    try:
        stack.up(options, display)
    finally:
        display.close()
    return 0


def down(arguments: argparse.Namespace) -> int:
    from backend.launch import stack

    state = _target.state_folder(arguments.state)
    print(f"The stack in {state} has ended." if stack.down(state) else f"No stack ran in {state}.")
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Exit code 0 when a stack is ready, 1 otherwise."""
    from msgspec import structs

    from backend.launch import stack

    state = _target.state_folder(arguments.state)
    found = stack.status(state)
    if found is None:
        raise NotConnected(f"No stack runs in {state}.", fix="Start one with `workbench up`, or name its folder with --state.")
    shown = found if found.endpoints is None else structs.replace(found, endpoints=found.endpoints.masked())
    _output.show(arguments, shown, "\n".join([repr(found), *links(found.endpoints)]))
    return 0 if found.ready else 1


def links(endpoints: Endpoints | None) -> list[str]:
    """Where the parts listen, the dashboard first and with a login that works once."""
    if endpoints is None:
        return []
    addresses = {"dashboard": _dashboard.login_link(endpoints), **{name: getattr(endpoints, name) for name in _LINKS}}
    return [f"{name:10} {address}" for name, address in addresses.items() if address]


class UpDisplay:
    """Tells what the launcher reports: a bar while parts start on a terminal, a line an event elsewhere, and the links when ready."""

    def __init__(self, state: Path, out: TextIO | None = None) -> None:
        self._state = state
        self._out = out or sys.stderr
        self._bar: Any = None

    def __call__(self, event: Progress) -> None:
        if event.kind in ("starting", "ready") and self._out.isatty():
            self._advance(event)
        elif event.kind == "up":
            self.close()
            self._say(event.text)
            self._show_links()
        elif event.kind != "starting":
            self._say(": ".join(part for part in (event.part, event.kind if event.part or not event.text else "", event.text) if part))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _advance(self, event: Progress) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=event.total, desc="starting", file=self._out, leave=False, bar_format="{desc}: {n}/{total} |{bar}| {postfix}"
            )
        self._bar.total = event.total
        self._bar.n = event.done
        self._bar.set_postfix_str(event.part)

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        print(text, file=self._out, flush=True)

    def _show_links(self) -> None:
        """On stdout, so that a script can read them without the progress."""
        from backend import launch

        print("\n".join([*links(launch.find(self._state)), "Ctrl-C ends the stack."]), flush=True)
