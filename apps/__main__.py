"""The dashboard as a process: `python -m apps --config dashboard.toml`.

Options: `--port --host --control-url --token-file --auth token|basic|none --users-file --origin`, over the file's `[listen] host, port`,
`control_url, token_file, auth, users_file` and the variables `WORKBENCH__DASHBOARD__...`. Ready when `GET /healthz` answers 200.
Ends within two seconds on SIGTERM, SIGINT, or when the process that started it is gone.

Login: every page asks for the stack's token or for a one-time link. Whoever holds the token gets one with
`POST /login/code` (`Authorization: Bearer TOKEN`), answer `{"path": "/login?code=..."}`: it works once and for ten minutes.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import sys
from collections.abc import Awaitable, Sequence
from typing import Any

from apps.core import options
from apps.core.options import Options
from backend.launch import dashboard
from workbench.errors import UsageError, WorkbenchError

log = logging.getLogger("apps")

STOP_S = 1.0
"""Seconds that open pages get to hear of the end."""


def main(words: Sequence[str] | None = None) -> int:
    arguments = options.parse(words)
    if arguments.hash_password:
        from apps.core.credentials import hash_password

        print(hash_password(getpass.getpass("Password: ")))
        return 0
    dashboard.configure_logs()
    try:
        chosen = options.from_arguments(arguments)
        with asyncio.Runner(loop_factory=_loop) as runner:
            runner.run(serve(chosen))
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _loop() -> asyncio.AbstractEventLoop:
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


async def serve(chosen: Options) -> None:
    """Serve until told to stop. Raises ConfigError and PortInUse."""
    from apps.core.feed import ControlFeed
    from apps.core.hub import Hub
    from apps.core.server import make_server

    asyncio.get_running_loop().set_exception_handler(_on_loop_error)
    stopped = asyncio.Event()
    dashboard.on_stop(stopped.set)
    hub = Hub(ControlFeed(chosen.control_url, chosen.token_file))
    server = make_server(chosen, hub)
    dashboard.on_stop(stopped.set)  # Panel took SIGINT for itself while it made the server
    following = asyncio.create_task(_watch(hub.run(), stopped), name="hub")
    log.info("dashboard on http://%s:%d, control at %s", chosen.host, server.port, chosen.control_url)
    await stopped.wait()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await hub.feed.close()
    server.stop(wait=False)


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A browser that leaves while a message is on its way is no error; Tornado leaves that exception for nobody to fetch."""
    from tornado.websocket import WebSocketClosedError

    if isinstance(context.get("exception"), WebSocketClosedError):
        log.debug("a page was closed while it was written to")
    else:
        loop.default_exception_handler(context)


async def _watch(body: Awaitable[None], stopped: asyncio.Event) -> None:
    """A hub that dies ends the process: its starter brings both back, while a page without a hub would only pretend."""
    try:
        await body
    except asyncio.CancelledError:
        raise
    except BaseException:
        log.exception("the hub died, the dashboard ends")
        stopped.set()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    # Nothing is left to save, and taking down all those modules one by one would take half of the time there is to end.
    os._exit(code)
