"""One worker process: accepts on the socket that the master left it, serves until it is told to stop or its master is replaced.

When the master dies its workers go on: until another master's workers are ready (the fleet table says so), or for ORPHAN_S; then they
drain and end. When the whole stack's parent is gone they end at once.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from backend.core import life, logs
from backend.core.errors import WorkbenchError
from backend.core.settings import GatewaySettings
from backend.core.supervise import Supervisor
from backend.gateway.prefix import warm_kernels
from backend.gateway.server import ClientConnection
from backend.gateway.service import Gateway

log = logging.getLogger(__name__)

ORPHAN_S = 10.0
BACKLOG = 1024


def encode_settings(settings: GatewaySettings) -> bytes:
    return msgspec.json.encode(settings, enc_hook=str)


def decode_settings(raw: bytes) -> GatewaySettings:
    def path(kind: type, value: Any) -> Any:
        return Path(value) if kind is Path else value

    return msgspec.json.decode(raw, type=GatewaySettings, dec_hook=path)


async def serve(settings: GatewaySettings, *, folder: Path, row: int, listen: socket.socket, master_fd: int, master_pid: int) -> None:
    loop = asyncio.get_running_loop()
    gateway = Gateway(settings, folder, row)
    async with Supervisor("gateway-worker") as tasks:
        life.on_stop(tasks.stop)
        tasks.start("sweep", gateway.sweep, on_death="stop")
        tasks.start("records", gateway.records.run)
        tasks.start("kernels", partial(asyncio.to_thread, warm_kernels))
        server = await loop.create_server(lambda: ClientConnection(gateway), sock=listen, backlog=BACKLOG)
        _watch_master(tasks, gateway, master_fd, master_pid)
        gateway.counts.set_ready()
        _settle_garbage_collection()
        await tasks.wait_stopped()
        server.close()
        await gateway.drain(settings.limits.drain_s)
        await gateway.close()


def _watch_master(tasks: Supervisor, gateway: Gateway, master_fd: int, master_pid: int) -> None:
    loop = asyncio.get_running_loop()

    async def orphaned() -> None:
        log.warning("the master is gone; serving on until another one's workers are ready, at most %g s", ORPHAN_S)
        deadline = loop.time() + ORPHAN_S
        while True:
            if loop.time() > deadline or gateway.fleet.serving_master() not in (0, master_pid):
                break
            await asyncio.sleep(0.05)
        tasks.stop()

    def ended() -> None:
        loop.remove_reader(master_fd)
        tasks.start("orphaned", orphaned)

    loop.add_reader(master_fd, ended)


def _settle_garbage_collection() -> None:
    """What is loaded stays for good; requests leave few cycles, so the young generation may grow before it is searched."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m backend.gateway.worker", description="Started by the gateway's master.")
    for name in ("row", "listen-fd", "master-fd", "master-pid"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    logs.configure(f"gateway-worker[{options.row}]")
    settings = decode_settings(sys.stdin.buffer.read())
    listen = socket.socket(fileno=options.listen_fd)
    listen.setblocking(False)
    try:
        uvloop.run(
            serve(
                settings,
                folder=options.folder,
                row=options.row,
                listen=listen,
                master_fd=options.master_fd,
                master_pid=options.master_pid,
            )
        )
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return 1
    log.debug("worker %d ends", os.getpid())
    return 0


if __name__ == "__main__":
    sys.exit(main())
