"""`workbench replay`: a trace through the gateway, with a summary; Ctrl-C ends it early and still sums up."""

from __future__ import annotations

import argparse
import asyncio
import signal
from typing import TYPE_CHECKING, Any

from workbench import _target, traffic
from workbench.commands import _output
from workbench.errors import NotConnected

if TYPE_CHECKING:
    from workbench.client import AsyncWorkbench


def run(arguments: argparse.Namespace) -> int:
    import uvloop

    result, interrupted = uvloop.run(_replay(arguments))
    _output.show(arguments, {"summary": result.summary, "prediction": result.prediction}, repr(result))
    return 1 if interrupted or result.summary.errors else 0


async def _replay(arguments: argparse.Namespace) -> tuple[traffic.Replay, bool]:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    client = _client(arguments)
    try:
        result = await traffic.replay(client, arguments.trace, stop=stop, keep=False, progress=not arguments.quiet, **_options(arguments))
    finally:
        if client is not None:
            await client.close()
    return result, stop.is_set()


def _client(arguments: argparse.Namespace) -> AsyncWorkbench | None:
    """The running stack's client; None with `--url`, unless `--state` names a stack as well."""
    from backend import launch
    from workbench.client import AsyncWorkbench

    if arguments.url and arguments.state is None:
        return None
    state = _target.state_folder(arguments.state)
    endpoints = launch.find(state)
    if endpoints is None:
        raise NotConnected(f"No stack runs in {state}.", fix="Start one with `workbench up`, or name a gateway with --url.")
    return AsyncWorkbench(_target.running(endpoints))


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = (
        "limit",
        "offset",
        "speed",
        "rate",
        "policy",
        "model",
        "url",
        "token",
        "max_in_flight",
        "prompt_tokens",
        "output_tokens",
        "repeat",
    )
    return {name: getattr(arguments, name) for name in names}
