"""Pods' log files: where they are, their end, and how they are kept small.

A pod appends to its file directly, so that its log outlives the runtime. Cutting copies and truncates: the pod goes on writing to
the same file, and what it wrote between the two is lost (microseconds, once in ten megabytes).
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

_TAIL_BYTES_A_LINE = 400
_FOLLOW_S = 0.2


def path(state: Path, pod: str) -> Path:
    return state / "pods" / f"{pod}.log"


def tail(file: Path, lines: int) -> str:
    """The last `lines` lines; empty without a file. Reads from the end, whatever the size."""
    try:
        with open(file, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            wanted = max(4096, lines * _TAIL_BYTES_A_LINE)
            log.seek(max(0, size - wanted))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:]) if lines > 0 else ""


def read(file: Path, lines: int | None = None) -> bytes:
    """Everything, or the last `lines` lines; each ends with a newline. Empty without a file."""
    if lines is not None:
        text = tail(file, lines)
        return f"{text}\n".encode() if text else b""
    try:
        return file.read_bytes()
    except OSError:
        return b""


async def follow(file: Path, lines: int | None, goes_on: Callable[[], bool]) -> AsyncIterator[bytes]:
    """As `read`, and then what is written until `goes_on` says no."""
    at = _size(file)
    if first := read(file, lines):
        yield first if lines is not None else first[:at]
    while True:
        last = not goes_on()
        at = min(at, _size(file))  # it was cut
        if fresh := _from(file, at):
            at += len(fresh)
            yield fresh
        if last:
            return
        await asyncio.sleep(_FOLLOW_S)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _from(file: Path, at: int) -> bytes:
    try:
        with open(file, "rb") as log:
            log.seek(at)
            return log.read()
    except FileNotFoundError:
        return b""


def last_words(file: Path) -> str:
    """The last line that says something, shortened: why a process ended, most of the time."""
    said = [line.strip() for line in tail(file, 20).splitlines() if line.strip()]
    return said[-1][:300] if said else ""


def remove(file: Path) -> None:
    """Delete a log and what was cut from it; without one nothing happens."""
    for one in (file, _older(file)):
        one.unlink(missing_ok=True)


def _older(file: Path) -> Path:
    return file.with_name(f"{file.name}.1")


def cut(file: Path, largest_bytes: int) -> bool:
    """Move the content to `NAME.log.1` when the file is larger than `largest_bytes`; says whether it did."""
    try:
        if file.stat().st_size <= largest_bytes:
            return False
        shutil.copyfile(file, _older(file))
        os.truncate(file, 0)
    except FileNotFoundError:
        return False
    return True
