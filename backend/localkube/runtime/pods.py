"""The runtime itself: carries what `steps` decides out to a host of programs, and what happens to programs back to `steps`.

Owns the pods' addresses, probes and timers, and STATE/pods.json. Decides nothing. Not thread-safe: one event loop.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from backend.api.fleet import Pod
from backend.core.clock import Clock, SystemClock
from backend.core.errors import ConfigError, EnvironmentProblem, NotFound, UsageError
from backend.core.supervise import Supervisor
from backend.localkube.runtime import addresses, probes, probing, record, steps
from backend.localkube.runtime.hosts import Host, Report
from backend.localkube.runtime.model import (
    Action,
    Adopted,
    Event,
    Exited,
    Limits,
    Phase,
    PodSpec,
    Probed,
    ProbeKind,
    RestartAsked,
    Tick,
    Tracked,
    Unwanted,
    Wanted,
)
from backend.localkube.runtime.processhost import ProcessHost

log = logging.getLogger(__name__)

_WRITE_AGAIN_S = 1.0


@dataclass(frozen=True)
class RuntimeOptions:
    """What the runtime needs to know, all of it."""

    state: Path
    space: addresses.AddressSpace
    engines: Mapping[str, Sequence[str]] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    probe_s: float = 0.25
    stack: str = ""


class PodRuntime:
    """Keeps the wanted pods running: a whole fleet by `want`, or one by one by `run` and `remove`. `close` ends them all."""

    def __init__(
        self,
        options: RuntimeOptions,
        tasks: Supervisor,
        clock: Clock | None = None,
        *,
        host: Host | None = None,
    ) -> None:
        self.options = options
        self.write_failures = 0
        self.restarts = 0
        self.on_change: Callable[[str, Tracked], None] = lambda name, pod: None
        """Hears of every pod about which something changed, the last time when it is forgotten."""
        self._tasks = tasks
        self._clock = clock or SystemClock()
        self.host: Host = host or ProcessHost(options.state, options.engines, options.stack, self._clock)
        self._pods: dict[str, Tracked] = {}
        self._slots = addresses.Slots(options.space.capacity)
        self._reserved: set[str] = set()
        self._probing: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._written: list[Pod] | None = None
        self._write_handle: asyncio.Handle | None = None
        self._changed = asyncio.Event()

    # What others ask for

    def want(self, specs: Sequence[PodSpec]) -> None:
        """Make the fleet these pods: others leave, changed ones start anew; programs of a Pod object (`PodSpec.pod`) are their
        kubelet's. Raises UsageError when there are too many."""
        wanted = {spec.name: spec for spec in specs}
        if len(self._slots) + sum(name not in self._slots for name in wanted) > self._slots.capacity:
            raise UsageError(f"One stack runs at most {self._slots.capacity} pods, with those that leave.", fix="Lower `replicas`.")
        for name in [name for name, pod in self._pods.items() if name not in wanted and not pod.spec.pod]:
            self._apply(name, Unwanted())
        for spec in wanted.values():
            self.run(spec)

    def run(self, spec: PodSpec, *, restarts: int = 0) -> None:
        """Keep one pod running, like this. `restarts`: how often it was, when we don't know it. Raises UsageError without an address."""
        name = spec.name
        self._slots.take(spec.pod or name)
        if name not in self._pods:
            self._pods[name] = steps.fresh(spec, self._clock.monotonic(), restarts)
            self._probe_from_now_on(name)
        self._apply(name, Wanted(spec))

    def remove(self, name: str, *, grace_s: float | None = None) -> None:
        """End one pod for good, SIGKILL after `grace_s` (None: as its spec says); unknown names are fine."""
        self._apply(name, Unwanted(grace_s=grace_s))

    def reserve(self, name: str) -> addresses.Address:
        """Hold an address for the programs that name it as `PodSpec.pod`, until `release`. Raises UsageError."""
        self._reserved.add(name)
        return self.options.space.at(self._slots.take(name))

    def release(self, name: str) -> None:
        self._reserved.discard(name)
        self._slots.release(name)

    def tracked(self, name: str) -> Tracked | None:
        """Everything about one pod as it is now."""
        return self._pods.get(name)

    def recall(self) -> list[str]:
        """Give programs that an earlier runtime recorded their addresses again; their names. Call before `reserve` and `adopt`."""
        recorded = record.read(self.file) if self.host.lasting else []
        for pod in recorded:
            slot = self.options.space.slot_of(pod.ip, pod.port)
            if slot is not None:
                self._slots.take(record.shares(pod), slot)
        return [pod.name for pod in recorded]

    def adopt(self, specs: Sequence[PodSpec]) -> list[str]:
        """Take over programs that an earlier runtime left; gives their names. Call once, before `want` and `run`."""
        if not self.host.lasting:
            return []
        wanted = {spec.name: spec for spec in specs}
        self.recall()
        adopted = []
        for pod in record.read(self.file):
            if record.shares(pod) not in self._slots or not self.host.adopt(pod, self._reporter(pod.name)):
                continue
            spec = wanted.get(pod.name)
            same = spec is not None and _runs(pod, spec)
            known = spec if same and spec else record.former_spec(pod)
            self._pods[pod.name] = steps.fresh(known, self._clock.monotonic())
            self._probe_from_now_on(pod.name)
            self._apply(pod.name, Adopted(pod.pid, pod.started_at, pod.restarts, pod.ready))
            adopted.append(pod.name)
        for name in self._slots.names() - {pod.spec.pod or pod.spec.name for pod in self._pods.values()} - self._reserved:
            self._slots.release(name)  # recorded, but gone meanwhile
        self.host.sweep({pod.pid for pod in self._pods.values()})
        return adopted

    def restart(self, name: str) -> None:
        """Give a pod a new process. Raises NotFound."""
        if name not in self._pods:
            raise NotFound(f"There is no pod {name!r}.")
        self._apply(name, RestartAsked())

    def pods(self) -> list[Pod]:
        """All pods as they are now, by name."""
        return [record.listed(pod, self._address(pod.spec)) for _, pod in sorted(self._pods.items())]

    async def close(self, *, patience_s: float = 3.0) -> None:
        """End all pods: SIGTERM, and SIGKILL after `patience_s`."""
        for name in list(self._pods):
            self._apply(name, Unwanted(at_once=True))
        loop = asyncio.get_running_loop()
        give_up = loop.time() + patience_s
        while self._pods and loop.time() < give_up + 1.0:
            if loop.time() >= give_up:
                for pod in self._pods.values():
                    self.host.kill(pod)
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), 0.2)
            except TimeoutError:
                pass
        for timer in self._timers.values():
            timer.cancel()
        if self.host.lasting:
            self._write()

    @property
    def file(self) -> Path:
        return self.options.state / "pods.json"

    # From a decision to the programs

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
        if result.pod != pod or Action.FORGET in result.actions:
            self.on_change(name, result.pod)

    def _act(self, name: str, pod: Tracked, action: Action) -> None:
        match action:
            case Action.START:
                self._start(name, pod.spec)
            case Action.TERMINATE:
                self.host.terminate(pod)
            case Action.KILL:
                self.host.kill(pod)
            case Action.FORGET:
                self._forget(name)

    def _start(self, name: str, spec: PodSpec) -> None:
        try:
            started = self.host.start(spec, self._address(spec), self._reporter(name))
        except (OSError, ValueError, EnvironmentProblem, ConfigError) as error:  # ValueError: a zero byte in a variable
            self._apply(name, Exited(f"could not be started: {error}", at=self._clock.now()))
            return
        self._apply(name, started)

    def _reporter(self, name: str) -> Report:
        return functools.partial(self._apply, name)

    def _address(self, spec: PodSpec) -> addresses.Address:
        """Its pod's address, with the port of its own choice where it may have one."""
        address = self.options.space.at(self._slots[spec.pod or spec.name])
        return replace(address, http_port=spec.port) if spec.port and self.options.space.own_ports else address

    def _forget(self, name: str) -> None:
        gone = self._pods.pop(name, None)
        if gone is not None and (gone.spec.pod or name) not in self._reserved:
            self._slots.release(gone.spec.pod or name)
        if name in self._timers:
            self._timers.pop(name).cancel()
        self._changed.set()

    def _arm(self, name: str) -> None:
        """One timer a pod, for the end of its phase."""
        if name in self._timers:
            self._timers.pop(name).cancel()
        pod = self._pods.get(name)
        if pod is not None and (pod.due or pod.phase is Phase.BACKOFF) and pod.phase not in (Phase.READY, Phase.UNREADY):
            wait_s = max(0.0, pod.due - self._clock.monotonic())
            self._timers[name] = asyncio.get_running_loop().call_later(wait_s, self._apply, name, Tick())

    def _probe_from_now_on(self, name: str) -> None:
        if self.host.probed and name not in self._probing:  # a pod that left and came back finds its loop still there
            self._probing.add(name)
            self._tasks.start(f"probe {name}", functools.partial(self._keep_probing, name))

    async def _keep_probing(self, name: str) -> None:
        asked: dict[ProbeKind, float] = {}
        program = (0, 0.0)
        while (pod := self._pods.get(name)) is not None:
            if (pod.pid, pod.started_at) != program:
                program = (pod.pid, pod.started_at)
                asked.clear()
            usual_s, now = self.options.probe_s, self._clock.monotonic()
            due = probing.due(pod, asked, usual_s, now)
            if due is None or due[0] > now:
                await asyncio.sleep(usual_s if due is None else min(due[0] - now, usual_s))
                continue
            _, kind, question = due
            asked[kind] = now
            result = await probes.probe(self._address(pod.spec), question, kind)
            self._take_probe(name, program, result)
        self._probing.discard(name)

    def _take_probe(self, name: str, program: tuple[int, float], result: Probed) -> None:
        """The answer may be that of a program which is gone meanwhile."""
        now = self._pods.get(name)
        if now is not None and (now.pid, now.started_at) == program:
            self._apply(name, result)

    # The file for everybody else

    def _schedule_write(self) -> None:
        if self.host.lasting and self._write_handle is None:
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


def _runs(pod: Pod, spec: PodSpec) -> bool:
    """Whether a recorded program is what `spec` wants. Of a container only the image can change while it runs."""
    return pod.image == spec.image if spec.image else pod.labels.get(record.DIGEST_LABEL) == spec.digest
