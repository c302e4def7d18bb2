"""What the writer alone keeps about each owner: engine hashes, second copies, events that wait for their parent."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from backend.kvindex import layout as at
from backend.kvindex import plain
from backend.kvindex.table import Words

PARKED_EVENTS = 256
PARKED_BYTES = 4 * 2**20
_SMALLEST_MAP = 1024
_SMALL_MAP = 2**16
"""Below it maps grow by four, above by two: copying often costs more than the memory."""


def new_map(slots: int = _SMALLEST_MAP) -> Words:
    """An empty private map. Untouched pages cost nothing."""
    entries = np.zeros(at.MAP_HEAD + 2 * slots, np.uint64)
    entries[at.M_SLOTS] = slots
    return entries


def map_with_room(entries: Words, further: int) -> Words:
    """An empty map that holds what `entries` has and `further` more at half load."""
    slots = int(entries[at.M_SLOTS])
    while 2 * (int(entries[at.M_USED]) + further) > slots:
        slots *= 4 if slots < _SMALL_MAP else 2
    return new_map(slots)


@dataclass
class Domain:
    """Owners whose engine hashes mean the same: by default one owner, more where a caller says so."""

    name: str
    holders: Words
    """Bitmap of its owners."""
    labels: Words = field(default_factory=new_map)
    owners: set[int] = field(default_factory=set)

    def add(self, owner: int) -> None:
        self.owners.add(owner)
        self.holders[owner // 64] |= np.uint64(1 << (owner % 64))

    def drop(self, owner: int) -> None:
        self.owners.discard(owner)
        self.holders[owner // 64] &= ~np.uint64(1 << (owner % 64))


@dataclass(frozen=True)
class ParkedEvent:
    parent: int
    hashes: frozenset[int]
    raw: bytes
    """The event as a message of its own."""


@dataclass
class OwnerState:
    """The writer's side of one data-parallel rank of one pod."""

    number: int
    pod: str
    rank: int
    domain: Domain
    copies: Words = field(default_factory=new_map)
    parked: deque[ParkedEvent] = field(default_factory=deque)
    given_up: int = 0
    """Events that found no room among the parked ones."""

    def park(self, event: ParkedEvent) -> None:
        self.parked.append(event)
        while len(self.parked) > PARKED_EVENTS or sum(len(other.raw) for other in self.parked) > PARKED_BYTES:
            self.parked.popleft()
            self.given_up += 1

    def take_ready(self) -> list[bytes]:
        """Parked events whose parent is known by now, taken out."""
        if not self.parked:
            return []
        labels = self.domain.labels.data
        ready = [event for event in self.parked if plain.find(labels, plain.label_key(event.parent)) >= 0]
        if ready:
            taken = {id(event) for event in ready}
            self.parked = deque(event for event in self.parked if id(event) not in taken)
        return [event.raw for event in ready]

    def drop_parked(self, removed: set[int]) -> None:
        """Forget parked events of which a block was removed meanwhile: better to claim too little than too much."""
        self.parked = deque(event for event in self.parked if not event.hashes & removed)

    @property
    def parked_blocks(self) -> int:
        return sum(len(event.hashes) for event in self.parked)
