"""`python -m backend.localkube.api --state DIR [--port N]`: the API server alone, without anything that runs pods."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from pathlib import Path

import uvloop

from backend.core import files, life, logs
from backend.core.errors import WorkbenchError
from backend.localkube.api.server import ApiServer
from backend.localkube.objects import Objects


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m backend.localkube.api", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder of cluster.sqlite and kubeconfig")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 lets the system choose")
    given = parser.parse_args(arguments)
    logs.configure("localkube")
    try:
        uvloop.run(run(files.ensure_folder(given.state).resolve(), given.port))
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


async def run(state: Path, port: int) -> None:
    """Serve until asked to stop."""
    stopped = asyncio.Event()
    life.on_stop(stopped.set)
    objects = Objects(state / "cluster.sqlite")
    # Objects live long and hold no cycles: looking through all of them again and again would take most of the time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    server = ApiServer(objects, port=port, kubeconfig=state / "kubeconfig")
    try:
        await server.start()
        await stopped.wait()
    finally:
        await server.stop()
        objects.close()


if __name__ == "__main__":
    sys.exit(main())
