"""Requests under way: one row a worker, one slot a pod, readers sum over rows.

A worker writes only its own row, so nothing on the request path takes a lock. The row of a worker that died is set to zero by the
master, since its requests died with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from operator import add, itemgetter
from pathlib import Path

from backend.core.errors import NotFound
from backend.core.processes import alive
from backend.core.sharedfile import SharedFile
from backend.gateway.fleet_table import MAX_PODS

FILE = "counts.bin"
MAX_ROWS = 32
_STRIDE = 1 + MAX_PODS
"""Words of a row: the worker's process id (0: free), then its counts."""
_READY = MAX_ROWS * _STRIDE
"""Then one word a row: 1 once the worker accepts connections."""
_WORDS = _READY + MAX_ROWS

Pick = Callable[[memoryview], Iterable[int]]


def pick_slots(slots: Sequence[int]) -> Pick:
    """Reads the words of `slots` off a row, in their order. For a policy's candidates made once: for each request it is one call."""
    if len(slots) > 1:
        return itemgetter(*slots)
    return lambda row: [row[slot] for slot in slots]


class Counts:
    """All rows; `claim` makes one of them ours."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        path = folder / FILE
        try:
            self._file = SharedFile.open(path, writable=True)
        except NotFound:
            if not create:
                raise
            self._file = SharedFile.create(path, _WORDS * 8)
        self._words = self._file.words
        self._rows = [self._words[row * _STRIDE + 1 : (row + 1) * _STRIDE] for row in range(MAX_ROWS)]
        self._own: memoryview = self._rows[0]
        self.row = -1

    # --- a worker ---

    def claim(self, row: int) -> None:
        self.clear(row)
        self._words[row * _STRIDE] = os.getpid()
        self.row = row
        self._own = self._rows[row]

    def set_ready(self) -> None:
        self._words[_READY + self.row] = 1

    def plus(self, slot: int) -> None:
        self._own[slot] += 1

    def minus(self, slot: int) -> None:
        # Never below zero: the master may have cleared a slot that was given to another pod meanwhile.
        if self._own[slot]:
            self._own[slot] -= 1

    def release(self) -> None:
        """The end of an orderly worker."""
        if self.row >= 0:
            self.clear(self.row)

    # --- readers ---

    def in_flight(self, slots: Sequence[int], rows: Sequence[int]) -> list[int]:
        """Requests on each of `slots`, summed over the workers' `rows`."""
        return self.picked(pick_slots(slots), rows) if rows else [0] * len(slots)

    def picked(self, pick: Pick, rows: Sequence[int]) -> list[int]:
        """The same for slots that were made ready once (`pick_slots`), and at least one row."""
        total = pick(self._rows[rows[0]])
        for row in rows[1:]:
            total = map(add, total, pick(self._rows[row]))
        return list(total)

    def used_rows(self) -> list[int]:
        return [row for row in range(MAX_ROWS) if self._words[row * _STRIDE]]

    def is_ready(self, row: int, pid: int) -> bool:
        return bool(self._words[_READY + row]) and self._words[row * _STRIDE] == pid

    def pid(self, row: int) -> int:
        return int(self._words[row * _STRIDE])

    # --- the master ---

    def clear(self, row: int) -> None:
        self._words[_READY + row] = 0
        words = self._rows[row]
        for slot in range(MAX_PODS):
            words[slot] = 0
        self._words[row * _STRIDE] = 0

    def clear_slot(self, slot: int) -> None:
        for words in self._rows:
            words[slot] = 0

    def clear_dead(self) -> list[int]:
        """Rows whose worker is gone without saying so; they are free now."""
        dead = [row for row in self.used_rows() if not alive(self.pid(row))]
        for row in dead:
            self.clear(row)
        return dead

    def free_rows(self, count: int) -> list[int]:
        return [row for row in range(MAX_ROWS) if not self._words[row * _STRIDE]][:count]

    def close(self) -> None:
        for words in self._rows:
            words.release()
        self._file.close()
