"""The `virtual` host: programs that are timers of the loop's clock. Ten thousand pods, or an hour's rollout in a second."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from backend.api.fleet import Pod
from backend.core.clock import Clock, LoopClock
from backend.localkube.runtime.addresses import Address
from backend.localkube.runtime.hosts import Report, how_it_ended
from backend.localkube.runtime.model import Exited, PodSpec, Probed, Started, Tracked


@dataclass(frozen=True)
class Life:
    """What a program does, in seconds from its start."""

    ready_s: float = 1.0
    """inf: it never gets ready."""
    exits_s: float = math.inf
    code: int = 1
    """Exit code of an end by itself."""
    stop_s: float = 0.0
    """From SIGTERM to its end."""


def usual(spec: PodSpec) -> Life:
    """Ready after a second, or as much later as the program's own --startup-delay says."""
    return Life(ready_s=1.0 + float(spec.args.get("startup-delay", "0")))


class VirtualHost:
    """`life` says what each program does."""

    scheme = "virtual"
    probed = False
    lasting = False

    def __init__(self, life: Callable[[PodSpec], Life] = usual, clock: Clock | None = None) -> None:
        self._life = life
        self._clock = clock or LoopClock()
        self._numbers = itertools.count(1)
        self._running: dict[int, tuple[Life, Report]] = {}

    def start(self, spec: PodSpec, address: Address, report: Report) -> Started:
        number, life = next(self._numbers), self._life(spec)
        self._running[number] = (life, report)
        loop = asyncio.get_running_loop()
        if life.ready_s < min(life.exits_s, math.inf):
            loop.call_later(life.ready_s, self._ready, number)
        if life.exits_s < math.inf:
            loop.call_later(life.exits_s, self._end, number, life.code)
        return Started(number, self._clock.now())

    def adopt(self, pod: Pod, report: Report) -> bool:
        return False

    def terminate(self, pod: Tracked) -> None:
        if pod.pid in self._running:
            asyncio.get_running_loop().call_later(self._running[pod.pid][0].stop_s, self._end, pod.pid, 0)

    def kill(self, pod: Tracked) -> None:
        asyncio.get_running_loop().call_soon(self._end, pod.pid, -9)

    def sweep(self, known: set[int]) -> None:
        """Nothing of it outlives this process."""

    def last_words(self, name: str) -> str:
        return ""

    def _ready(self, number: int) -> None:
        if number in self._running:
            self._running[number][1](Probed(True))

    def _end(self, number: int, code: int) -> None:
        running = self._running.pop(number, None)
        if running is not None:
            running[1](Exited(how_it_ended(code), code, self._clock.now()))
