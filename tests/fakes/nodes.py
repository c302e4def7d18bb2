"""A node over the objects in memory, with whatever runs its programs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.core import processes
from backend.core.clock import Clock, LoopClock, SystemClock
from backend.core.supervise import Supervisor
from backend.localkube.kubelet.images import Images
from backend.localkube.kubelet.scheduler import Scheduler
from backend.localkube.kubelet.service import Kubelet, Node
from backend.localkube.runtime import addresses
from backend.localkube.runtime.hosts import Host
from backend.localkube.runtime.model import Limits
from backend.localkube.runtime.pods import PodRuntime, RuntimeOptions
from backend.localkube.runtime.virtual import VirtualHost
from tests.fakes import ports
from tests.fakes.objects import Objects

LIMITS = Limits(grace_s=5, leave_s=0.2, first_backoff_s=0.5, longest_backoff_s=30, healthy_s=30)


@dataclass
class Cluster:
    """What a test looks at."""

    objects: Objects
    kubelet: Kubelet
    runtime: PodRuntime
    scheduler: Scheduler

    def status(self, name: str = "vllm-0") -> dict[str, Any]:
        found = self.objects.get("pods", "default", name)
        return found["status"] if found is not None else {}

    def container(self, name: str = "vllm-0") -> dict[str, Any]:
        return (self.status(name).get("containerStatuses") or [{}])[0]

    def condition(self, kind: str, name: str = "vllm-0") -> dict[str, Any]:
        return next((entry for entry in self.status(name).get("conditions", []) if entry["type"] == kind), {})

    def ready(self, name: str = "vllm-0") -> bool:
        return self.condition("Ready", name).get("status") == "True"

    def reasons(self, name: str = "vllm-0") -> list[str]:
        events = sorted(self.objects.list("events"), key=lambda event: int(event["metadata"]["resourceVersion"]))
        return [event["reason"] for event in events if event["involvedObject"]["name"] == name]


@asynccontextmanager
async def cluster(
    state: Path,
    *,
    host: Host | None = None,
    real: bool = False,
    objects: Objects | None = None,
    images: Images | None = None,
    space: addresses.AddressSpace | None = None,
    limits: Limits = LIMITS,
    warnings_only: bool = False,
    end: bool = True,
) -> AsyncIterator[Cluster]:
    """`real`: programs with sockets, on addresses of their own and in real time; else virtual ones. `end`: the programs end too."""
    clock: Clock = SystemClock() if real else LoopClock(1_700_000_000.0)
    objects = objects or Objects()
    if space is None:
        base = ports.free_base(state) if real else 0
        space = addresses.Space(addresses.subnet_of(base), base) if real else addresses.Imagined()
    options = RuntimeOptions(state=state, space=space, limits=limits, probe_s=0.05, stack=str(state))
    async with Supervisor("node") as tasks:
        runtime = PodRuntime(options, tasks, clock, host=host or (None if real else VirtualHost(clock=clock)))
        node = Node()
        kubelet = Kubelet(objects, runtime, images or Images.read(), node=node, clock=clock, warnings_only=warnings_only)
        scheduler = Scheduler(objects, node, options.space.capacity, clock=clock, warnings_only=warnings_only)
        scheduler.start()
        kubelet.start()
        try:
            yield Cluster(objects, kubelet, runtime, scheduler)
        finally:
            kubelet.stop()
            scheduler.stop()
            if end:
                await runtime.close(patience_s=1.0)
                assert not real or processes.of_stack(str(state)) == []
