"""Counters in shared memory: a worker adds to a word, any worker can read the sums over all, and a killed worker
loses at most what finished in its last moments (`service.SETTLE_S`).

One file a row, `metrics-ROW.bin`: words of counts first, then the names of the series in the order in which they were first used. A
series is (metric, label values); its word has the same index. A successor in the row goes on where its predecessor stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from backend.core.errors import NotFound
from backend.core.sharedfile import SharedFile

CAPACITY = 4096
_NAMES_OFFSET = (CAPACITY + 2) * 8
_NAMES_BYTES = 512 * 1024
_USED, _NAMES_LENGTH = CAPACITY, CAPACITY + 1
OVERFLOW = ("gateway_metric_series_dropped_total",)
"""Where additions go once there is no room for another series (too many models or pods for one gateway)."""

Series = tuple[str, ...]
"""Metric name, then label values in the order that `metrics` documents."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, ...]).decode


def file_name(row: int) -> str:
    return f"metrics-{row}.bin"


class Counters:
    """A worker's own file."""

    def __init__(self, folder: Path, row: int) -> None:
        path = folder / file_name(row)
        try:
            self._file = SharedFile.open(path, writable=True)
        except NotFound:
            self._file = SharedFile.create(path, _NAMES_OFFSET + _NAMES_BYTES)
        self._words = self._file.words
        self._names = self._words.cast("B")[_NAMES_OFFSET : _NAMES_OFFSET + _NAMES_BYTES]
        self._index: dict[Series, int] = {series: index for index, series in enumerate(_names(self._words, self._names))}
        if OVERFLOW not in self._index:
            self._new(OVERFLOW)

    def add(self, series: Series, amount: int = 1) -> None:
        index = self._index.get(series)
        if index is None:
            index = self._new(series)
        self._words[index] += amount

    def _new(self, series: Series) -> int:
        name = _encode(series)
        used, length = self._words[_USED], self._words[_NAMES_LENGTH]
        if used >= CAPACITY or length + 4 + len(name) > _NAMES_BYTES:
            return self._index[OVERFLOW]
        self._names[length : length + 4] = len(name).to_bytes(4, "little")
        self._names[length + 4 : length + 4 + len(name)] = name
        self._words[_NAMES_LENGTH] = length + 4 + len(name)
        self._words[_USED] = used + 1
        self._index[series] = used
        return int(used)

    def close(self) -> None:
        self._names.release()
        self._file.close()


def totals(folder: Path) -> dict[Series, int]:
    """Every series summed over the files of all rows."""
    sums: dict[Series, int] = {}
    for path in folder.glob("metrics-*.bin"):
        try:
            file = SharedFile.open(path)
        except NotFound:
            continue
        words = file.words
        with words.cast("B") as data, data[_NAMES_OFFSET : _NAMES_OFFSET + _NAMES_BYTES] as names:
            for index, series in enumerate(_names(words, names)):
                sums[series] = sums.get(series, 0) + words[index]
        file.close()
    return sums


def _names(words: memoryview, names: memoryview) -> Iterator[Series]:
    position = 0
    for _ in range(words[_USED]):
        length = int.from_bytes(names[position : position + 4], "little")
        yield _decode(bytes(names[position + 4 : position + 4 + length]))
        position += 4 + length
