"""`workbench up`: starts the parts of a stack together, keeps them running, and takes everything down again.

Owns the stack's life: lock, life pipe, the gateway's listening sockets, endpoints.json and processes.json. Never does a part's
work. What runs and how is decided in `parts`, what a part's death means in `Stack._died`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import time
from pathlib import Path

import msgspec

from backend.api.endpoints import Endpoints
from backend.api.fleet import Pod
from backend.core import files, life, processes
from backend.core.errors import EnvironmentProblem, Unavailable, UsageError, WorkbenchError
from backend.core.supervise import Supervisor
from backend.launch import cache, ending, manifests, parts, preflight, readiness
from backend.launch.background import detached
from backend.launch.child import FAILING_AFTER, USAGE_EXIT, Child, base_environment
from backend.launch.ending import down
from backend.launch.layout import HOST, Layout
from backend.launch.lock import StateLock
from backend.launch.look import find, status
from backend.launch.model import ProcessStatus
from backend.launch.options import OnProgress, Progress, ProgressKind, UpOptions, silent
from backend.launch.parts import Secrets
from backend.localkube import folder

__all__ = ["UpOptions", "detached", "down", "find", "status", "up"]

STOP_PATIENCE_S = (3.5, 3.5, 1.5)
"""Seconds until SIGKILL by stop stage; with the leftovers' second the whole stays below ten."""
_LOOK_S = 0.05


def up(options: UpOptions, on_progress: OnProgress = silent) -> None:
    """Run a stack until SIGINT, SIGTERM, the end of our parent or `exit_after_s`. Blocks; call it in the main thread.

    Raises a WorkbenchError, with everything ended and cleared away, when it cannot start.
    """
    asyncio.run(Stack(options, on_progress).run())


class Stack:
    """One run of a stack."""

    def __init__(self, options: UpOptions, on_progress: OnProgress = silent) -> None:
        self.options = options
        self.children: dict[str, Child] = {}
        self._tell_caller = on_progress
        self._up = False
        self._stopping = False
        self._pods_ready = self._pods_total = 0
        self._cluster_filled = False
        self._secrets = Secrets(valkey_password=secrets.token_urlsafe(18))
        self._started = time.time()

    async def run(self) -> None:
        state = preflight.state_folder(self.options)
        layout = self.layout = Layout(state, self.options.port_base)
        lock = StateLock(layout.lock)
        lock.take(port_base=self.options.port_base)
        try:
            fleet = self._fleet = preflight.fleet(self.options, layout)
            self._pods_total = fleet.pods
            ending.clear(layout)
            preflight.check_ports(self.options, layout)
            folder.prepare(state, layout.port("kube"))
            if hasattr(os, "geteuid") and os.geteuid() == 0:
                self._tell("warning", text="Running as root: everything that this stack starts runs as root too.")
            if self.options.redis_url and not await readiness.redis_answers(self.options.redis_url):
                self._tell("warning", text="REDIS_URL does not answer: decisions are kept in the gateway until it does.")
            await self._run_parts()
        finally:
            lock.release()

    # Starting

    async def _run_parts(self) -> None:
        processes.become_subreaper()
        layout = self.layout
        pipe = life.LifePipe()
        listening: list[socket.socket] = []
        async with Supervisor("up") as tasks:
            self._tasks = tasks
            self._handle_signals()
            try:
                preflight.token(layout.token)
                listening = preflight.listening_sockets(layout.port("gateway"), self.options.workers)
                self._make_children(pipe, listening, shared=preflight.clean_shared(layout.state))
                await self._start_all()
                tasks.start("logs", self._keep_logs_small)
                await tasks.wait_stopped()
            finally:
                await self._stop_all()
                for sock in listening:
                    sock.close()
                pipe.close()

    def _make_children(self, pipe: life.LifePipe, listening: list[socket.socket], *, shared: Path) -> None:
        subnet, pod_port = preflight.pod_space(self.options.port_base)
        stack_parts = parts.all_parts(
            self.options,
            self.layout,
            self._secrets,
            shared=shared,
            subnet=subnet,
            pod_port=pod_port,
            valkey_server=Path() if self.options.redis_url else preflight.valkey_server(),
            fleet_file=self._fleet.file,
        )
        env = pipe.env(base_environment(self.layout.stack_name, cache.folder(self.layout.state)))
        env.pop(life.SOCKETS, None)
        fds = [sock.fileno() for sock in listening]
        for part in stack_parts:
            if part.config_file is not None:
                files.write_atomic(part.config_file, part.config.encode())
            own_env = {**env, life.SOCKETS: f"gateway={','.join(map(str, fds))}"} if part.needs_sockets else env
            own_fds = [pipe.read_fd, *fds] if part.needs_sockets else [pipe.read_fd]
            log = self.layout.log(part.name)
            self.children[part.name] = Child(part, env=own_env, pass_fds=own_fds, log_file=log, on_death=self._died)

    async def _start_all(self) -> None:
        for child in self.children.values():
            self._tell("starting", child.part.name)
            child.start()
            self._tasks.start(f"wait for {child.part.name}", lambda child=child: self._wait_ready(child))  # type: ignore[misc]
        self._save_table()
        give_up = time.monotonic() + self.options.start_timeout_s
        while not self._tasks.stopped:
            self._count_pods()
            waiting = [name for name, child in self.children.items() if child.state != "ready"]
            pods_missing = self._pods_total - self._pods_ready
            if not waiting and not pods_missing and self._cluster_filled:
                break
            if time.monotonic() > give_up:
                if waiting:
                    raise self._not_ready(self.children[waiting[0]], f"was not ready after {self.options.start_timeout_s:g} s")
                self._tell(
                    "warning", text=f"{pods_missing} of {self._pods_total} pods are not ready; see their logs in {self.layout.state}/pods."
                )
                break
            await asyncio.sleep(_LOOK_S)
        if self._tasks.stopped:
            return
        self._up = True
        files.write_atomic(self.layout.endpoints, msgspec.json.format(msgspec.json.encode(self.endpoints()), indent=1))
        self._tell("up", text=f"Ready after {time.time() - self._started:.1f} s.")
        if self.options.exit_after_s is not None:
            asyncio.get_running_loop().call_later(self.options.exit_after_s, self._tasks.stop)

    async def _fill_cluster(self) -> None:
        """CRDs and the fleet's objects. What the API refuses ends the start."""
        try:
            await manifests.install(self.layout.kubeconfig, self._fleet.objects)
        except WorkbenchError as error:
            self._tasks.stop(error)
            return
        self._cluster_filled = True

    async def _wait_ready(self, child: Child) -> None:
        """Ask until this process of the part answers; its death ends the wait (the next process gets a wait of its own)."""
        pid = child.pid
        while child.pid == pid and child.state == "starting":
            if await readiness.is_ready(child.part, password=self._secrets.valkey_password):
                if child.pid == pid and child.state == "starting":
                    child.became_ready()
                    self._save_table()
                    self._tell("ready", child.part.name)
                    if child.part.name == "runtime" and not self._cluster_filled:
                        self._tasks.start("cluster", self._fill_cluster)
                return
            await asyncio.sleep(_LOOK_S)

    def endpoints(self) -> Endpoints:
        """What endpoints.json says."""
        layout, has = self.layout, self.children.keys()
        return Endpoints(
            state=str(layout.state),
            pid=os.getpid(),
            control=layout.url("control"),
            gateway=layout.url("gateway"),
            kvindex=layout.url("kvindex"),
            redis=parts.redis_url(self.options, layout, self._secrets),
            dashboard=layout.url("dashboard") if "dashboard" in has else "",
            runtime=layout.url("runtime"),
            kube=f"https://{HOST}:{layout.port('kube')}",
            kubeconfig=str(layout.kubeconfig),
            token_file=str(layout.token),
            version=_version(),
            started_at=self._started,
        )

    def _count_pods(self) -> None:
        try:
            pods = msgspec.json.decode(self.layout.pods.read_bytes(), type=list[Pod])
        except (OSError, msgspec.MsgspecError):
            return
        ready = sum(pod.ready for pod in pods)
        if ready != self._pods_ready:
            self._pods_ready = ready
            self._tell("ready", "pods", f"{ready} of {self._pods_total}")

    # Keeping

    def _died(self, child: Child, why: str) -> None:
        """A part's process ended though nobody asked for it."""
        name = child.part.name
        if not self._up and (child.exit_code == USAGE_EXIT or child.deaths_in_a_row >= FAILING_AFTER):
            self._tasks.stop(self._not_ready(child, why))
            return
        if not self._stopping:
            # Told with the end of its log when it becomes clear, then now and then: a terminal is no place for a loop.
            failing = child.deaths_in_a_row == FAILING_AFTER or child.deaths_in_a_row % 20 == 0
            wait_s = child.start_again()
            text = f"{why}; starts again in {wait_s:.1f} s"
            self._tell("failing" if failing else "died", name, f"{text}. The end of its log:\n{child.last_words()}" if failing else text)
            asyncio.get_running_loop().call_later(wait_s + _LOOK_S, self._watch_again, child)
        self._save_table()

    def _watch_again(self, child: Child) -> None:
        if not self._stopping and child.state == "starting":
            self._tell("restarting", child.part.name)
            self._save_table()
            self._tasks.start(f"wait for {child.part.name} {child.pid}", lambda: self._wait_ready(child))

    def _not_ready(self, child: Child, why: str) -> WorkbenchError:
        """What failed and what to do stand in the first line: the end of the log below it may be long."""
        todo = f"Mend what its log {child.log_file} names, then start again."
        words = child.last_words(12)
        message = f"{child.part.name} {why}. {todo}" + (f" Its last lines:\n{words}" if words else "")
        return UsageError(message) if child.exit_code == USAGE_EXIT else Unavailable(message)

    async def _keep_logs_small(self) -> None:
        from backend.localkube.runtime import podlogs

        while True:
            await asyncio.sleep(30.0)
            for child in self.children.values():
                podlogs.cut(child.log_file, 10 * 2**20)

    def _save_table(self) -> None:
        table = [
            ProcessStatus(
                name=name,
                pid=child.pid,
                state=child.state,
                restarts=child.restarts,
                started_at=child.started_at,
                url=self.layout.url(name) if child.part.port and child.part.ready_by == "http" else "",
                log=str(child.log_file),
            )
            for name, child in self.children.items()
        ]
        try:
            files.write_atomic(self.layout.table, msgspec.json.encode(table))
        except EnvironmentProblem as error:
            self._tell("warning", text=str(error))

    # Ending

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._asked_to_stop)
        loop.add_signal_handler(signal.SIGCHLD, lambda: processes.reap_strangers({child.pid for child in self.children.values()}))
        life.watch_parent(self._tasks.stop)

    def _asked_to_stop(self) -> None:
        if self._stopping:  # asked twice: somebody is in a hurry
            for child in self.children.values():
                child.kill()
        self._tasks.stop()

    async def _stop_all(self) -> None:
        self._stopping = True
        self._tell("stopping")
        self.layout.endpoints.unlink(missing_ok=True)
        began = time.monotonic()
        for stage, patience_s in enumerate(STOP_PATIENCE_S):
            await asyncio.gather(*(self._stop(child, patience_s) for child in self.children.values() if child.part.stop_stage == stage))
        await asyncio.to_thread(ending.clear, self.layout)
        processes.reap_strangers(set())
        self._tell("stopped", text=f"Everything ended after {time.monotonic() - began:.1f} s.")

    async def _stop(self, child: Child, patience_s: float) -> None:
        began = time.monotonic()
        killed = await child.stop(patience_s)
        took = f"after {time.monotonic() - began:.1f} s"
        self._tell("stopped", child.part.name, f"killed {took}, it did not end by itself" if killed else took)

    def _tell(self, kind: ProgressKind, part: str = "", text: str = "") -> None:
        done = sum(child.state == "ready" for child in self.children.values()) + self._pods_ready
        self._tell_caller(Progress(kind, part, text, done, len(self.children) + self._pods_total))


def _version() -> str:
    """Ours, as installed; empty when run from a source folder that never was."""
    from importlib import metadata

    try:
        return metadata.version("fleet-workbench")
    except metadata.PackageNotFoundError:
        return ""
