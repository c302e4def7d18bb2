"""Who listens where: each pod a loopback address of its own, or, where there is only one, ports of its own.

On Linux the whole of 127.0.0.0/8 is local, so ten pods can all listen on port 8000, as in a cluster. macOS has 127.0.0.1 only.
Pure, but for one look at the machine.
"""

from __future__ import annotations

import heapq
import socket
from dataclasses import dataclass
from typing import Protocol

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


class AddressSpace(Protocol):
    """The addresses that one runtime gives out, numbered from 0."""

    @property
    def capacity(self) -> int: ...

    @property
    def own_ports(self) -> bool:
        """Whether each pod has an IP of its own, and so may choose its ports."""
        ...

    def at(self, slot: int) -> Address: ...

    def slot_of(self, ip: str, port: int) -> int | None: ...


@dataclass(frozen=True)
class Space:
    """The addresses of one stack."""

    subnet: str
    """First three numbers; empty: one address, many ports."""
    port_base: int
    http_port: int = HTTP_PORT
    capacity: int = LARGEST_FLEET

    @property
    def own_ports(self) -> bool:
        return bool(self.subnet)

    def at(self, slot: int) -> Address:
        """Address of the pod in `slot`, counted from 0."""
        if self.subnet:
            return Address(f"{self.subnet}.{slot + 1}", self.http_port)
        first = self.port_base + _FIRST_POD_PORT + slot * _PORTS_A_POD
        return Address("127.0.0.1", first, first + 1, first + 2)

    def slot_of(self, ip: str, port: int) -> int | None:
        """The slot that an earlier run gave out as `ip` and `port`; None when it is none of ours."""
        for slot in range(self.capacity):
            address = self.at(slot)
            if address.ip == ip and (self.own_ports or address.http_port == port):
                return slot
        return None


@dataclass(frozen=True)
class Imagined:
    """Addresses for pods that never listen: 10.0.0.0/8, as in many clusters."""

    capacity: int = 60_000
    own_ports: bool = True

    def at(self, slot: int) -> Address:
        return Address(f"10.{slot >> 15 & 255}.{slot >> 7 & 255}.{(slot & 127) + 1}")

    def slot_of(self, ip: str, port: int) -> int | None:
        del ip, port
        return None  # nothing of it outlives a process


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


class Slots:
    """Who holds which slot. A name keeps its slot until it is released; new ones get the lowest free one."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: dict[str, int] = {}
        self._free: list[int] = []
        self._next = 0

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def __getitem__(self, name: str) -> int:
        return self._held[name]

    def __len__(self) -> int:
        return len(self._held)

    def names(self) -> set[str]:
        return set(self._held)

    def take(self, name: str, slot: int | None = None) -> int:
        """The slot of `name`, now its own; `slot`: the one that it had in an earlier run. Raises UsageError when all are held."""
        if name not in self._held:
            self._held[name] = self._lowest() if slot is None else self._this(slot)
        return self._held[name]

    def release(self, name: str) -> None:
        slot = self._held.pop(name, None)
        if slot is not None:
            heapq.heappush(self._free, slot)

    def _lowest(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        if self._next >= self.capacity:
            raise UsageError(f"One stack runs at most {self.capacity} pods, and so many are there.", fix="Lower `replicas`.")
        self._next += 1
        return self._next - 1

    def _this(self, slot: int) -> int:
        """`slot`, or the lowest free one where a record gave one address to two."""
        while self._next <= slot:
            heapq.heappush(self._free, self._next)
            self._next += 1
        if slot not in self._free:
            return self._lowest()
        self._free.remove(slot)
        heapq.heapify(self._free)
        return slot
