"""Who listens where: each pod a loopback address of its own, or, where there is only one, ports of its own.

On Linux the whole of 127.0.0.0/8 is local, so ten pods can all listen on port 8000, as in a cluster. macOS has 127.0.0.1 only.
Pure, but for one look at the machine.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from backend.core.errors import UsageError

LARGEST_FLEET = 250
"""Addresses of one subnet; more pods belong into fewer processes."""
HTTP_PORT = 8000
EVENTS_PORT = 5557
REPLAY_PORT = 5558
_PORTS_A_POD = 3
_FIRST_POD_PORT = 100
"""Offset of the first pod's ports from the port base where there is one address only."""


@dataclass(frozen=True)
class Address:
    """Where one pod listens."""

    ip: str
    http_port: int = HTTP_PORT
    events_port: int = EVENTS_PORT
    replay_port: int = REPLAY_PORT


@dataclass(frozen=True)
class Space:
    """The addresses of one stack."""

    subnet: str
    """First three numbers; empty: one address, many ports."""
    port_base: int
    http_port: int = HTTP_PORT

    def at(self, slot: int) -> Address:
        """Address of the pod in `slot`, counted from 0."""
        if self.subnet:
            return Address(f"{self.subnet}.{slot + 1}", self.http_port)
        first = self.port_base + _FIRST_POD_PORT + slot * _PORTS_A_POD
        return Address("127.0.0.1", first, first + 1, first + 2)

    def slot_of(self, ip: str, port: int) -> int | None:
        """The slot that an earlier run gave out as `ip` and `port`; None when it is none of ours."""
        return next((slot for slot in range(LARGEST_FLEET) if (self.at(slot).ip, self.at(slot).http_port) == (ip, port)), None)


def subnet_of(port_base: int) -> str:
    """A subnet of its own for every port base, so that stacks side by side never meet."""
    return f"127.{port_base >> 8}.{port_base & 255}"


def can_bind(ip: str) -> bool:
    """Whether this machine has `ip`: true for all of 127.0.0.0/8 on Linux."""
    with socket.socket() as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True


def assign(names: Iterable[str], held: Mapping[str, int]) -> dict[str, int]:
    """Slots by pod name: those in `held` stay, others get the lowest free ones in order. Raises UsageError when there are too many."""
    names = list(names)
    if len(names) > LARGEST_FLEET:
        raise UsageError(f"The fleet has {len(names)} pods, one stack runs at most {LARGEST_FLEET}.", fix="Lower `replicas`.")
    slots = {name: held[name] for name in names if name in held}
    taken = set(held.values())
    free = (slot for slot in range(LARGEST_FLEET + len(held)) if slot not in taken)
    for name in names:
        if name not in slots:
            slots[name] = next(free)
    return slots
