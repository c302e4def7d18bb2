"""`workbench explain` and `workbench probe`: questions to a running stack's control API."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from workbench import _target
from workbench.commands import _output
from workbench.errors import NotConnected, UsageError

if TYPE_CHECKING:
    from backend.api.endpoints import Endpoints
    from workbench.client import Prompt
    from workbench.sync import Workbench


def run(arguments: argparse.Namespace) -> int:
    with connect(arguments) as workbench:
        return explain(workbench, arguments) if arguments.command == "explain" else probe(workbench, arguments)


def connect(arguments: argparse.Namespace) -> Workbench:
    """The running stack; unlike in a notebook, a command never starts one."""
    from workbench.sync import Workbench

    if arguments.url:
        return Workbench.connect(arguments.url, arguments.token)
    return Workbench.connect(running(arguments.state), arguments.token)


def running(state: Path | None) -> Endpoints:
    """Endpoints of the stack in `state`. Raises NotConnected."""
    from backend import launch

    folder = _target.state_folder(state)
    endpoints = launch.find(folder)
    if endpoints is None:
        raise NotConnected(f"No stack runs in {folder}.", fix="Start one with `workbench up`, or name its folder with --state.")
    return endpoints


def explain(workbench: Workbench, arguments: argparse.Namespace) -> int:
    explanation = workbench.router.explain(arguments.id)
    _output.show(arguments, explanation.record, repr(explanation))
    return 0


def probe(workbench: Workbench, arguments: argparse.Namespace) -> int:
    table = workbench.cache.probe(_prompt(arguments), model=arguments.model)
    _output.show(arguments, table.result, repr(table))
    return 0


def _prompt(arguments: argparse.Namespace) -> Prompt:
    if arguments.tokens is not None:
        try:
            return [int(token) for token in arguments.tokens.replace(",", " ").split()]
        except ValueError as error:
            raise UsageError(f"--tokens takes whole numbers, comma separated: {error}.") from error
    if arguments.messages is not None:
        try:
            return msgspec.json.decode(arguments.messages.read_bytes(), type=list[dict[str, object]])
        except (OSError, msgspec.MsgspecError) as error:
            raise UsageError(f"{arguments.messages} is not a JSON list of chat messages: {error}.") from error
    return sys.stdin.read() if arguments.text == "-" else arguments.text
