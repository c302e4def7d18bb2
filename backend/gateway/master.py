"""The gateway's master: knows the fleet, holds the listening sockets, keeps workers running. Not a byte of a request passes through it.

The sockets stay open here, so a dead worker's waiting connections are taken by its successor. Each worker has a socket of its own
(SO_REUSEPORT), where the kernel spreads connections over them; elsewhere they share one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import sys
import tempfile
from functools import partial
from pathlib import Path

from backend.api.fleet import Pod
from backend.core import life
from backend.core.errors import PortInUse, UsageError
from backend.core.files import ensure_folder
from backend.core.settings import GatewaySettings, ListenSettings
from backend.core.supervise import Supervisor
from backend.core.web import port_is_free
from backend.fleet.source import FleetSource
from backend.gateway.counts import MAX_ROWS, Counts
from backend.gateway.fleet_table import FleetTable
from backend.gateway.series import Counters
from backend.gateway.service import policy_named
from backend.gateway.worker import BACKLOG, encode_settings

log = logging.getLogger(__name__)

SHORT_LIFE_S = 2.0
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.1, 5.0
KILL_AFTER_DRAIN_S = 0.8
LOOK_S = 0.02


class Master:
    """`run` until stopped; afterwards no worker and no socket is left."""

    def __init__(self, settings: GatewaySettings) -> None:
        policy_named(settings.routing.policy)
        if not 0 < settings.listen.workers <= MAX_ROWS // 2:
            raise UsageError(f"listen.workers is {settings.listen.workers}; 1 to {MAX_ROWS // 2} are possible.")
        self.settings = settings
        self.source = FleetSource(settings.fleet, settings.pods)
        self._temporary = settings.shared is None
        self.folder = Path(tempfile.mkdtemp(prefix="gateway-")) if settings.shared is None else ensure_folder(settings.shared)
        self.counts = Counts(self.folder, create=True)
        self.counts.clear_dead()
        self.table = FleetTable(self.folder)
        self._workers: dict[int, asyncio.subprocess.Process] = {}
        self._death_read, self._death_write = os.pipe()
        self._stopping = False
        self._table_written = asyncio.Event()

    async def run(self) -> None:
        try:
            sockets = self._listening()
            async with Supervisor("gateway") as tasks:
                life.on_stop(tasks.stop)
                tasks.start("fleet", self._follow_fleet)
                await self._table_written.wait()  # workers start with a table, even if the fleet's file is not there yet
                rows = self.counts.free_rows(self.settings.listen.workers)
                own = Counters(self.folder, MAX_ROWS)
                for number, row in enumerate(rows):
                    tasks.start(f"worker-{row}", partial(self._keep_worker, row, sockets[number % len(sockets)], own))
                tasks.start("ready", self._announce)
                tasks.start("rows", self._clear_rows)
                host, port = sockets[0].getsockname()[:2]
                log.info("listening on http://%s:%d with %d workers", host, port, len(rows))
                await tasks.wait_stopped()
                self._stopping = True
                await self._end_workers()
            for listen in sockets:
                listen.close()
        finally:
            self._close()

    # --- sockets ---

    def _listening(self) -> list[socket.socket]:
        inherited = life.inherited_sockets("gateway")
        if inherited:
            return inherited
        listen = self.settings.listen
        # With SO_REUSEPORT a second gateway of the same user would share the port without a word: look first. Workers that a
        # killed master of this very stack left behind may still be there.
        if listen.port and not self.counts.used_rows() and not port_is_free(listen.host, listen.port):
            raise PortInUse(listen.host, listen.port, what="the gateway")
        return make_sockets(listen)

    # --- fleet ---

    async def _follow_fleet(self) -> None:
        async for pods in self.source.changes():
            # What an earlier master knew is better than nothing.
            if self.source.problem is None or not self.table.rows:
                self._write_table(pods)
            self._table_written.set()

    def _write_table(self, pods: list[Pod]) -> None:
        try:
            for slot in self.table.write(pods):
                self.counts.clear_slot(slot)
        except UsageError as error:
            log.error("%s The fleet as known before stays in use.", error)
            return
        log.info("fleet: %d pods, %d ready", len(pods), sum(pod.ready for pod in pods))

    # --- workers ---

    async def _keep_worker(self, row: int, listen: socket.socket, own: Counters) -> None:
        loop = asyncio.get_running_loop()
        backoff = 0.0
        while True:
            started = loop.time()
            process = self._workers[row] = await self._start_worker(row, listen)
            status = await process.wait()
            self._workers.pop(row, None)
            # Its requests died with it: their counts must not weigh on its pods.
            self.counts.clear(row)
            if self._stopping:
                return
            own.add(("worker_restarts",))
            backoff = 0.0 if loop.time() - started > SHORT_LIFE_S else min(max(backoff * 2, FIRST_BACKOFF_S), LONGEST_BACKOFF_S)
            log.error("worker %d ended with status %d, the next one starts in %.1f s", process.pid, status, backoff)
            await asyncio.sleep(backoff)

    async def _start_worker(self, row: int, listen: socket.socket) -> asyncio.subprocess.Process:
        passed = [listen.fileno(), self._death_read]
        life_fd = life.inherited_life_fd()
        if life_fd is not None:
            passed.append(life_fd)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "backend.gateway.worker",
            f"--row={row}",
            f"--listen-fd={listen.fileno()}",
            f"--master-fd={self._death_read}",
            f"--master-pid={os.getpid()}",
            f"--folder={self.folder}",
            stdin=asyncio.subprocess.PIPE,
            pass_fds=passed,
        )
        assert process.stdin is not None
        process.stdin.write(encode_settings(self.settings))
        process.stdin.close()
        return process

    async def _announce(self) -> None:
        """Once all our workers accept, those of an earlier master may go."""
        while True:
            running = list(self._workers.items())
            ready = [row for row, process in running if self.counts.is_ready(row, process.pid)]
            if len(ready) == self.settings.listen.workers:
                self.table.announce_serving()
                log.info("ready")
                return
            await asyncio.sleep(LOOK_S)

    async def _clear_rows(self) -> None:
        """Workers of an earlier master are not our children: their end is noticed here."""
        while True:
            await asyncio.sleep(1.0)
            own = set(self._workers)
            for row in self.counts.used_rows():
                if row not in own:
                    self.counts.clear_dead()
                    break

    async def _end_workers(self) -> None:
        processes = list(self._workers.values())
        for process in processes:
            _signal(process, terminate=True)
        waits = [asyncio.ensure_future(process.wait()) for process in processes]
        if waits:
            await asyncio.wait(waits, timeout=self.settings.limits.drain_s + KILL_AFTER_DRAIN_S)
        for process, wait in zip(processes, waits, strict=True):
            if not wait.done():
                log.error("worker %d does not end, killing it", process.pid)
                _signal(process, terminate=False)
        await asyncio.gather(*waits)

    def _close(self) -> None:
        for fd in (self._death_read, self._death_write):
            os.close(fd)
        self.table.close()
        self.counts.close()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)


def make_sockets(listen: ListenSettings) -> list[socket.socket]:
    """One listening socket a worker. Raises PortInUse."""
    spread = sys.platform == "linux"
    sockets: list[socket.socket] = []
    port = listen.port
    for _ in range(listen.workers if spread else 1):
        made = socket.socket(socket.AF_INET6 if ":" in listen.host else socket.AF_INET)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if spread:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            made.bind((listen.host, port))
            made.listen(BACKLOG)
        except OSError as error:
            raise PortInUse(listen.host, port, what="the gateway") from error
        port = made.getsockname()[1]
        sockets.append(made)
    return sockets


def _signal(process: asyncio.subprocess.Process, *, terminate: bool) -> None:
    try:
        if terminate:
            process.terminate()
        else:
            process.kill()
    except ProcessLookupError:
        pass
