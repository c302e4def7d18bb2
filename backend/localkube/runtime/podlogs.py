"""Pods' log files: where they are, their end, and how they are kept small.

A pod appends to its file directly, so that its log outlives the runtime. Cutting copies and truncates: the pod goes on writing to
the same file, and what it wrote between the two is lost (microseconds, once in ten megabytes).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_TAIL_BYTES_A_LINE = 400


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


def last_words(file: Path) -> str:
    """The last line that says something, shortened: why a process ended, most of the time."""
    said = [line.strip() for line in tail(file, 20).splitlines() if line.strip()]
    return said[-1][:300] if said else ""


def cut(file: Path, largest_bytes: int) -> bool:
    """Move the content to `NAME.log.1` when the file is larger than `largest_bytes`; says whether it did."""
    try:
        if file.stat().st_size <= largest_bytes:
            return False
        shutil.copyfile(file, file.with_name(f"{file.name}.1"))
        os.truncate(file, 0)
    except FileNotFoundError:
        return False
    return True
