"""`python -m backend.control --config control.toml`."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
from importlib import metadata
from pathlib import Path

import uvloop

from backend.control import figures
from backend.control.handlers import Handlers
from backend.control.service import Control
from backend.core import config, life, logs, memory, web
from backend.core.errors import ConfigError, UsageError, WorkbenchError
from backend.core.files import ensure_folder, write_atomic
from backend.core.metrics import Registry
from backend.core.settings import ControlSettings
from backend.core.supervise import Supervisor


def token_of(settings: ControlSettings) -> str:
    """The operator's token; made, readable by its owner only, when there is none. Two starters agree on one."""
    file = settings.token_file or settings.state / "token"
    ensure_folder(file.parent)
    if not file.exists():
        fresh = file.with_name(f".{file.name}-{os.getpid()}")
        write_atomic(fresh, secrets.token_urlsafe(32).encode() + b"\n")
        try:
            # A link is made whole and never replaces: nobody can read half a token, and the first starter's stays.
            os.link(fresh, file)
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    token = web.read_token(file)
    if not token:
        raise ConfigError("is empty", file=str(file), fix="Delete it; control makes a new one when it starts.")
    return token


async def serve(settings: ControlSettings) -> None:
    """Run until asked to stop."""
    ensure_folder(settings.state)
    token = token_of(settings)
    registry = Registry()
    async with Supervisor("control") as tasks:
        life.on_stop(tasks.stop)
        control = Control(settings, tasks, token=token)
        figures.register(registry, control)
        app = web.application(registry, token=token)
        Handlers(control).register(app, metadata.version("fleet-workbench"))
        await control.start()
        runner = await web.serve(app, host=settings.listen.host, port=settings.listen.port, what="control")
        await control.reports.start(tasks, settings.listen.host, web.bound_port(runner))
        try:
            await tasks.wait_stopped()
        finally:
            control.hub.close()
            await runner.cleanup()
            await control.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m backend.control", description="Control API, history writer, findings.")
    parser.add_argument("--config", type=Path, help="TOML file; without it the defaults apply")
    asked = parser.parse_args()
    logs.configure("control")
    memory.bound_arenas()
    # Two threads are enough for a file a minute, and each costs an arena of memory.
    os.environ.setdefault("POLARS_MAX_THREADS", "2")
    try:
        uvloop.run(serve(config.load(ControlSettings, asked.config, env=os.environ, section="control")))
    except WorkbenchError as error:
        print(f"control: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
