"""The history's Parquet files: names, durable writing, what a file covers. Synchronous; call it in a thread.

`FOLDER/decisions/date=YYYY-MM-DD/HHMMSS-<id>.parquet`, named by the UTC time of writing, zstd, rows sorted by arrival, so that
polars or DuckDB read the folder without us. A file is complete or absent: written beside, synced, renamed, folder synced.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from backend.api import frames
from backend.core import errors, files, ids
from backend.history import records

if TYPE_CHECKING:
    import polars as pl

DECISIONS = "decisions"
ROW_GROUP_ROWS = 10_000
"""Rows a row group: a page of 100 rows reads one or two groups of a large file."""


@dataclass(frozen=True)
class HistoryFile:
    """What a file covers; times are microseconds since 1970."""

    path: Path
    rows: int
    oldest_us: int
    newest_us: int
    size_bytes: int


class CorruptFile(errors.PermanentError):
    """A file that polars cannot read."""


class UnwritableRows(errors.PermanentError):
    """Records at these positions fit into no table; nothing was written."""

    def __init__(self, positions: Sequence[int], why: str) -> None:
        super().__init__(f"{len(positions)} decisions cannot be written to a table: {why}")
        self.positions = positions


def write_records(folder: Path, raws: Sequence[bytes], now: float) -> HistoryFile:
    """Write encoded records as one file and return when it is on the disk. Raises DiskFull, StateFolderError, UnwritableRows."""
    import polars.exceptions as refused

    unframeable = (msgspec.MsgspecError, refused.PolarsError, TypeError, ValueError, OverflowError)
    try:
        frame = frames.decisions_frame(map(records.decode_record, raws))
    except unframeable as error:
        why = str(error).strip().partition("\n")[0]
        raise UnwritableRows(_unwritable(raws, 0, unframeable), why) from error
    return write_frame(folder, frame, now)


def _unwritable(raws: Sequence[bytes], first: int, unframeable: tuple[type[Exception], ...]) -> list[int]:
    """Positions of the records that spoil a table, by halving: few of many are bad."""
    try:
        frames.decisions_frame(map(records.decode_record, raws))
    except unframeable:
        if len(raws) == 1:
            return [first]
        middle = len(raws) // 2
        return _unwritable(raws[:middle], first, unframeable) + _unwritable(raws[middle:], first + middle, unframeable)
    return []


def write_frame(folder: Path, frame: pl.DataFrame, now: float) -> HistoryFile:
    """As `write_records`, for a table with the columns of decisions and at least one row."""
    frame = frame.sort("at", "id")
    moment = time.gmtime(now)
    day = folder / DECISIONS / time.strftime("date=%Y-%m-%d", moment)
    path = day / f"{time.strftime('%H%M%S', moment)}-{ids.new_id()[:8]}.parquet"
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", row_group_size=ROW_GROUP_ROWS, statistics=True)
    try:
        day.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_atomic(path, buffer.getvalue(), mode=0o600, durable=True)
        for place in (day, day.parent, folder):
            _sync_folder(place)
    except OSError as error:
        raise files.explain(error, path) from error
    times = frame["at"].to_physical()
    return HistoryFile(path, frame.height, int(times[0]), int(times[-1]), buffer.tell())


def listing(folder: Path) -> list[Path]:
    """All files, newest written first."""
    return sorted((folder / DECISIONS).glob("date=*/*.parquet"), key=lambda path: (path.parent.name, path.name), reverse=True)


def describe(path: Path) -> HistoryFile:
    """Read what a file covers from its footer's statistics. Raises CorruptFile, FileNotFoundError."""
    import polars as pl

    with _explained(path):
        size = path.stat().st_size
        at = pl.col("at").to_physical()
        rows, oldest, newest = pl.scan_parquet(path).select(pl.len(), at.min().alias("oldest"), at.max().alias("newest")).collect().row(0)
        return HistoryFile(path, int(rows), int(oldest or 0), int(newest or 0), size)


def scan(path: Path, columns: Iterable[str] | None = None, *where: pl.Expr) -> pl.DataFrame:
    """The rows of one file that satisfy all of `where`. Raises CorruptFile, FileNotFoundError."""
    import polars as pl

    with _explained(path):
        if not path.exists():
            raise FileNotFoundError(path)
        lazy = pl.scan_parquet(path)
        for condition in where:
            lazy = lazy.filter(condition)
        return (lazy if columns is None else lazy.select(*columns)).collect()


def remove(paths: Iterable[Path]) -> None:
    """Delete files; the folder of a day goes with its last one."""
    for path in paths:
        path.unlink(missing_ok=True)
        try:
            path.parent.rmdir()
        except OSError:
            pass  # not the last one of its day


def clean(folder: Path) -> int:
    """Remove what a killed writer left half-done; returns how many."""
    left = list((folder / DECISIONS).glob("date=*/.*.parquet.*"))
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns polars' ways of refusing a damaged file, its panics included, into CorruptFile."""
    import polars.exceptions as refused

    try:
        yield
    except FileNotFoundError:
        raise
    except (refused.PolarsError, refused.PanicException, OSError) as error:
        if not path.exists():
            raise FileNotFoundError(path) from error
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptFile(
            f"{path} cannot be read: {why}", fix="Move the file away; the rest of the history is readable without it."
        ) from error


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
