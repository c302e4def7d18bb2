"""The runtime itself: carries what `steps` decides out to processes, and what happens to processes back to `steps`.

Owns the pods' processes, their probes and timers, and STATE/pods.json. Decides nothing. Not thread-safe: one event loop.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backend.api.fleet import Pod
from backend.core import life, processes
from backend.core.clock import Clock, SystemClock
from backend.core.errors import ConfigError, EnvironmentProblem, NotFound
from backend.core.supervise import Supervisor
from backend.localkube.runtime import addresses, commands, podlogs, probes, record, steps
from backend.localkube.runtime.model import (
    Action,
    Adopted,
    Event,
    Exited,
    Limits,
    Phase,
    PodSpec,
    RestartAsked,
    Started,
    Tick,
    Tracked,
    Unwanted,
    Wanted,
)

log = logging.getLogger(__name__)

_PROBED = frozenset({Phase.STARTING, Phase.READY, Phase.UNREADY})
_READY_PROBES_SLOWER = 4
_WRITE_AGAIN_S = 1.0


@dataclass(frozen=True)
class RuntimeOptions:
    """What the runtime needs to know, all of it."""

    state: Path
    space: addresses.Space
    engines: Mapping[str, Sequence[str]]
    limits: Limits = field(default_factory=Limits)
    probe_s: float = 0.25
    stack: str = ""


class PodRuntime:
    """Keeps the wanted pods running. `want` may be called again and again; `close` ends them all."""

    def __init__(self, options: RuntimeOptions, tasks: Supervisor, clock: Clock | None = None) -> None:
        self.options = options
        self.write_failures = 0
        self.restarts = 0
        self._tasks = tasks
        self._clock = clock or SystemClock()
        self._pods: dict[str, Tracked] = {}
        self._slots: dict[str, int] = {}
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._probing: set[str] = set()
        self._watches: dict[str, Callable[[], None]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._written: list[Pod] | None = None
        self._write_handle: asyncio.Handle | None = None
        self._changed = asyncio.Event()
        (options.state / "pods").mkdir(mode=0o700, parents=True, exist_ok=True)

    # What others ask for

    def want(self, specs: Sequence[PodSpec]) -> None:
        """Make the fleet these pods: others leave, changed ones start anew."""
        self._slots |= addresses.assign([spec.name for spec in specs], self._slots)
        wanted = {spec.name: spec for spec in specs}
        for name in [name for name in self._pods if name not in wanted]:
            self._apply(name, Unwanted())
        for name, spec in wanted.items():
            if name not in self._pods:
                self._pods[name] = steps.fresh(spec, self._clock.monotonic())
                self._probe_from_now_on(name)
            self._apply(name, Wanted(spec))

    def adopt(self, specs: Sequence[PodSpec]) -> list[str]:
        """Take over processes that an earlier runtime left; gives their names. Call once, before `want`."""
        wanted = {spec.name: spec for spec in specs}
        adopted = []
        for pod in record.read(self.file):
            slot = self.options.space.slot_of(pod.ip, pod.port)
            if slot is None or not record.still_runs(pod):
                continue
            spec = wanted.get(pod.name)
            same = spec is not None and spec.digest == pod.labels.get(record.DIGEST_LABEL)
            self._slots[pod.name] = slot
            self._pods[pod.name] = steps.fresh(spec if same and spec else record.former_spec(pod), self._clock.monotonic())
            self._probe_from_now_on(pod.name)
            self._watches[pod.name] = processes.watch_exit(pod.pid, functools.partial(self._ended, pod.name, pod.pid))
            self._apply(pod.name, Adopted(pod.pid, pod.started_at, pod.restarts, pod.ready))
            adopted.append(pod.name)
        known = {pod.pid for pod in self._pods.values()}
        for pid in record.strays(self.options.stack, known) if self.options.stack else []:
            log.warning("process %d is a pod of this stack that no record names: ended", pid)
            processes.signal_group(pid, signal.SIGKILL)
        return adopted

    def restart(self, name: str) -> None:
        """Give a pod a new process. Raises NotFound."""
        if name not in self._pods:
            raise NotFound(f"There is no pod {name!r}.")
        self._apply(name, RestartAsked())

    def pods(self) -> list[Pod]:
        """All pods as they are now, by name."""
        space = self.options.space
        return [record.listed(pod, space.at(self._slots[name])) for name, pod in sorted(self._pods.items())]

    async def close(self, *, patience_s: float = 3.0) -> None:
        """End all pods: SIGTERM, and SIGKILL after `patience_s`."""
        for name in list(self._pods):
            self._apply(name, Unwanted(at_once=True))
        loop = asyncio.get_running_loop()
        give_up = loop.time() + patience_s
        while self._pods and loop.time() < give_up + 1.0:
            if loop.time() >= give_up:
                for pod in self._pods.values():
                    self._kill(pod)
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), 0.2)
            except TimeoutError:
                pass
        for timer in self._timers.values():
            timer.cancel()
        self._write()

    @property
    def file(self) -> Path:
        return self.options.state / "pods.json"

    # From a decision to the processes

    def _apply(self, name: str, event: Event) -> None:
        pod = self._pods.get(name)
        if pod is None:
            return
        result = steps.step(pod, event, self.options.limits, self._clock.monotonic())
        self._pods[name] = result.pod
        if Action.FORGET in result.actions:
            log.info("pod %s: gone", name)
        elif result.pod.phase is not pod.phase:
            log.info("pod %s: %s -> %s%s", name, pod.phase, result.pod.phase, f" ({result.pod.reason})" if result.pod.reason else "")
        self.restarts += result.pod.restarts - pod.restarts if isinstance(event, Exited) else 0
        for action in result.actions:
            self._act(name, result.pod, action)
        self._arm(name)
        self._schedule_write()

    def _act(self, name: str, pod: Tracked, action: Action) -> None:
        match action:
            case Action.START:
                self._start(name, pod.spec)
            case Action.TERMINATE:
                # The process itself only, as in a container: what it started is its own business until SIGKILL.
                try:
                    os.kill(pod.pid, signal.SIGTERM)
                except ProcessLookupError:
                    pass
            case Action.KILL:
                self._kill(pod)
            case Action.FORGET:
                self._forget(name)

    def _start(self, name: str, spec: PodSpec) -> None:
        try:
            child = self._spawn(spec, self.options.space.at(self._slots[name]))
        except (OSError, EnvironmentProblem, ConfigError) as error:
            self._apply(name, Exited(f"could not be started: {error}"))
            return
        self._children[child.pid] = child
        self._watches[name] = processes.watch_exit(child.pid, functools.partial(self._ended, name, child.pid))
        self._apply(name, Started(child.pid, processes.started_at(child.pid) or self._clock.now()))

    def _spawn(self, spec: PodSpec, address: addresses.Address) -> subprocess.Popen[bytes]:
        extra = {processes.STACK: self.options.stack}
        pass_fds = []
        if (life_fd := life.inherited_life_fd()) is not None:
            extra[life.LIFE_FD] = str(life_fd)
            pass_fds.append(life_fd)
        argv = commands.argv(spec, address, self.options.engines)
        environment = commands.environment(spec, os.environ, extra)
        return processes.spawn(argv, env=environment, log=podlogs.path(self.options.state, spec.name), pass_fds=pass_fds)

    def _kill(self, pod: Tracked) -> None:
        if pod.pid:
            processes.signal_group(pod.pid, signal.SIGKILL)

    def _ended(self, name: str, pid: int) -> None:
        """A process is gone. What it left in its group goes too: before the number is given back, so that nobody else is hit."""
        processes.signal_group(pid, signal.SIGKILL)
        child = self._children.pop(pid, None)
        code = child.wait() if child is not None else None
        self._watches.pop(name, None)
        words = podlogs.last_words(podlogs.path(self.options.state, name))
        self._apply(name, Exited(_how_it_ended(code) + (f"; last line of its log: {words}" if words else "")))

    def _forget(self, name: str) -> None:
        self._pods.pop(name, None)
        self._slots.pop(name, None)
        if name in self._timers:
            self._timers.pop(name).cancel()
        self._changed.set()

    def _arm(self, name: str) -> None:
        """One timer a pod, for the end of its phase."""
        if name in self._timers:
            self._timers.pop(name).cancel()
        pod = self._pods.get(name)
        if pod is not None and pod.due and pod.phase not in (Phase.READY, Phase.UNREADY):
            wait_s = max(0.0, pod.due - self._clock.monotonic())
            self._timers[name] = asyncio.get_running_loop().call_later(wait_s, self._apply, name, Tick())

    def _probe_from_now_on(self, name: str) -> None:
        if name not in self._probing:  # a pod that left and came back finds its loop still there
            self._probing.add(name)
            self._tasks.start(f"probe {name}", functools.partial(self._keep_probing, name))

    async def _keep_probing(self, name: str) -> None:
        while (pod := self._pods.get(name)) is not None:
            if pod.phase in _PROBED:
                result = await probes.probe(self.options.space.at(self._slots[name]))
                now = self._pods.get(name)
                # The answer may be that of a process which is gone meanwhile.
                if now is not None and now.pid == pod.pid and now.started_at == pod.started_at:
                    self._apply(name, result)
            settled = name in self._pods and self._pods[name].phase is Phase.READY
            await asyncio.sleep(self.options.probe_s * (_READY_PROBES_SLOWER if settled else 1))
        self._probing.discard(name)

    # The file for everybody else

    def _schedule_write(self) -> None:
        if self._write_handle is None:
            self._write_handle = asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._write_handle = None
        pods = self.pods()
        if pods == self._written:
            return
        try:
            record.write(self.file, pods)
        except EnvironmentProblem as error:
            self.write_failures += 1
            if self._write_handle is None:
                log.error("%s is not current: %s", self.file.name, error)
            self._write_handle = asyncio.get_running_loop().call_later(_WRITE_AGAIN_S, self._write)
            return
        self._written = pods


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "ended (it was adopted, so its exit code went elsewhere)"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
