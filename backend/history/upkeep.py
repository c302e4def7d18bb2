"""Keeps the history small: many files of an hour become one, and the oldest go beyond the size cap. Synchronous; call it in a thread.

Order of a merge: the new file is on the disk before the first old one goes. A crash in between leaves rows twice, which readers
drop by id and the next merge removes.
"""

from __future__ import annotations

import calendar
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backend.history import files
from backend.history.cold import ColdDecisions

MERGED_ROWS = 200_000
"""Rows of a merged file at most; bounds the memory of a merge to about 200 MB."""


@dataclass(frozen=True)
class Upkept:
    """What one run did."""

    merged_files: int = 0
    deleted_files: int = 0
    deleted_rows: int = 0


def keep(cold: ColdDecisions, *, kept_bytes: int, now: float) -> Upkept:
    """Merge the files of each past hour, then delete the oldest beyond `kept_bytes`. Raises DiskFull, StateFolderError."""
    merged = sum(_merge(cold, group) for group in _groups(cold.catalogue(), now))
    deleted = _surplus(cold.catalogue(), kept_bytes)
    files.remove(file.path for file in deleted)
    return Upkept(merged, len(deleted), sum(file.rows for file in deleted))


def hour_of(path: Path) -> str:
    """`date=2026-11-22/18` of a file; sorts by time."""
    return f"{path.parent.name}/{path.name[:2]}"


def _groups(found: list[files.HistoryFile], now: float) -> Iterator[list[files.HistoryFile]]:
    """Files of one past hour, by time of writing, at least two and at most MERGED_ROWS rows together."""
    current = time.strftime("date=%Y-%m-%d/%H", time.gmtime(now))
    ordered = sorted(found, key=lambda file: (file.path.parent.name, file.path.name))
    for hour, members in itertools.groupby(ordered, key=lambda file: hour_of(file.path)):
        if hour >= current:
            continue
        group: list[files.HistoryFile] = []
        for file in members:
            if sum(one.rows for one in group) + file.rows > MERGED_ROWS:
                if len(group) > 1:
                    yield group
                group = []
            group.append(file)
        if len(group) > 1:
            yield group


def _merge(cold: ColdDecisions, group: list[files.HistoryFile]) -> int:
    """Write one file for `group` in the folder of its day; 0 when one of them is damaged (readers skip it)."""
    import polars as pl

    frames = [frame for file in group if (frame := cold.whole(file.path)) is not None]
    if len(frames) < len(group):
        return 0
    last = group[-1].path
    written_at = calendar.timegm(time.strptime(f"{last.parent.name} {last.name[:6]}", "date=%Y-%m-%d %H%M%S"))
    cold.learn(files.write_frame(cold.folder, pl.concat(frames).unique("id", keep="any"), written_at))
    files.remove(file.path for file in group)
    return len(group)


def _surplus(found: list[files.HistoryFile], kept_bytes: int) -> list[files.HistoryFile]:
    """The oldest files beyond the cap; the newest one always stays."""
    oldest_first = sorted(found, key=lambda file: (file.path.parent.name, file.path.name))
    total = sum(file.size_bytes for file in oldest_first)
    gone = []
    for file in oldest_first[:-1]:
        if total <= kept_bytes:
            break
        gone.append(file)
        total -= file.size_bytes
    return gone
