"""The fleet as workers see it: a table in shared memory that the master writes and every worker reads.

A worker compares one word a request and reads the table again only when it has changed. The words before the table also say who
serves: workers whose master died go on until another master's workers are ready. Written by one process; an odd generation means that
the writer is in the middle of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from backend.api.fleet import Pod
from backend.core.errors import NotFound, UsageError
from backend.core.sharedfile import SharedFile

FILE = "fleet.bin"
SIZE_BYTES = 2**20
MAX_PODS = 512
_TABLE_OFFSET = 4096
GENERATION, _MASTER, _SERVING, _LENGTH = 0, 1, 2, 3


class Row(msgspec.Struct, array_like=True, gc=False):
    """A pod and its place in the counts, which stays the same as long as the pod is known."""

    slot: int
    pod: Pod


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Row]).decode


class FleetTable:
    """The writer's side, in the master. An existing file is taken over, so that slots outlive a killed master."""

    def __init__(self, folder: Path) -> None:
        path = folder / FILE
        try:
            self._file = SharedFile.open(path, writable=True)
        except NotFound:
            self._file = SharedFile.create(path, SIZE_BYTES)
        self._bytes = self._file.words.cast("B")
        words = self._file.words
        if words[GENERATION] & 1:
            words[GENERATION] += 1
        words[_MASTER] = os.getpid()
        self.rows: list[Row] = _read(words, self._bytes) or []

    @property
    def generation(self) -> int:
        return int(self._file.words[GENERATION])

    def write(self, pods: Sequence[Pod]) -> list[int]:
        """Publish `pods`; returns slots that were taken by a pod now gone and may hold old counts. Raises UsageError beyond MAX_PODS."""
        if len(pods) > MAX_PODS:
            raise UsageError(f"The fleet has {len(pods)} pods; one gateway routes over at most {MAX_PODS}.")
        before = {row.pod.name: row.slot for row in self.rows}
        free = iter(sorted(set(range(MAX_PODS)) - {before[pod.name] for pod in pods if pod.name in before}))
        # A slot just left is used again last, while requests to its old pod may still be under way.
        left = sorted(set(before.values()) - {before[pod.name] for pod in pods if pod.name in before})
        fresh = [slot for slot in free if slot not in set(left)] + left
        rows, taken_over = [], []
        for pod in pods:
            slot = before.get(pod.name)
            if slot is None:
                slot = fresh.pop(0)
                if slot in left:
                    taken_over.append(slot)
            rows.append(Row(slot, pod))
        self._publish(rows)
        return taken_over

    def _publish(self, rows: list[Row]) -> None:
        encoded = _encode(rows)
        if _TABLE_OFFSET + len(encoded) > len(self._bytes):
            raise UsageError(f"The fleet table needs {len(encoded)} bytes, there are {len(self._bytes) - _TABLE_OFFSET}.")
        words = self._file.words
        words[GENERATION] += 1
        self._bytes[_TABLE_OFFSET : _TABLE_OFFSET + len(encoded)] = encoded
        words[_LENGTH] = len(encoded)
        words[GENERATION] += 1
        self.rows = rows

    def announce_serving(self) -> None:
        """Our workers are ready: workers of an earlier master may go."""
        self._file.words[_SERVING] = os.getpid()

    def close(self) -> None:
        self._bytes.release()
        self._file.close()


class FleetReader:
    """A worker's side."""

    def __init__(self, folder: Path) -> None:
        self._file = SharedFile.open(folder / FILE)
        self._bytes = self._file.words.cast("B")
        self.words = self._file.words

    def generation(self) -> int:
        return int(self.words[GENERATION])

    def serving_master(self) -> int:
        return int(self.words[_SERVING])

    def read(self) -> tuple[int, list[Row]] | None:
        """(generation, rows), or None while it is being written: then the caller keeps what it has and asks again later.

        A writer that died in the middle leaves it so until its successor writes; requests must not wait for that.
        """
        before = self.generation()
        if before & 1:
            return None
        rows = _read(self.words, self._bytes)
        return (before, rows) if rows is not None and self.generation() == before else None

    def close(self) -> None:
        self._bytes.release()
        self._file.close()


def _read(words: memoryview, data: memoryview) -> list[Row] | None:
    length = int(words[_LENGTH])
    if length == 0:
        return []
    try:
        return _decode(bytes(data[_TABLE_OFFSET : _TABLE_OFFSET + length]))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
