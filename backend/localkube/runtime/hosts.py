"""What a pod's program runs in, behind one small interface: a process, an object in this loop, or nothing but timers.

The runtime (`pods`) decides nothing about programs but by `steps`, so that all three go through the same life.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Protocol

from backend.api.fleet import Pod
from backend.localkube.runtime.addresses import Address
from backend.localkube.runtime.model import Exited, PodSpec, Probed, Started, Tracked

Report = Callable[[Exited | Probed], None]
"""How a host tells what happened to a program, later and in the running loop."""


class Host(Protocol):
    """Runs programs. A program is named by the number in `Started.pid`, which is never used twice at a time."""

    scheme: str
    """How containers of this host are named in a Pod's status, such as process://123."""
    probed: bool
    """Its programs listen, so that the runtime must probe them; else the host reports readiness itself."""
    lasting: bool
    """Its programs outlive this process: the runtime records them, and its successor adopts them."""

    def start(self, spec: PodSpec, address: Address, report: Report) -> Started:
        """Raises OSError, EnvironmentProblem or ConfigError."""
        ...

    def adopt(self, pod: Pod, report: Report) -> bool:
        """Whether the program that an earlier runtime recorded is still there, and is watched from now on."""
        ...

    def terminate(self, pod: Tracked) -> None:
        """Ask it to end (SIGTERM)."""
        ...

    def kill(self, pod: Tracked) -> None:
        """End it."""
        ...

    def sweep(self, known: set[int]) -> None:
        """End programs of this stack that no record names; `known` are those that somebody tracks."""
        ...

    def last_words(self, name: str) -> str:
        """The last line that the program said; empty when nobody kept it."""
        ...


def how_it_ended(code: int | None) -> str:
    """`Ended.code` in words."""
    if code is None:
        return "ended (it was adopted, so its exit code went elsewhere)"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
