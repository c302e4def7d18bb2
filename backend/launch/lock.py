"""One stack a state folder: an advisory lock that the kernel gives back however its holder ends."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

from backend.core import files
from backend.core.errors import StateFolderError

_TRIES, _PAUSE_S = 5, 0.05
"""Somebody who only looks (`holder`) has the lock for an instant: try again before calling it taken."""


class StateLock:
    """Held from `take` to `release`. The file says who holds it, for error messages; only the lock itself counts."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._fd = -1

    def take(self, *, port_base: int) -> None:
        """Raises StateFolderError, which names the holder, when another stack uses the folder."""
        for attempt in range(_TRIES):
            fd = self._open()
            if _lock(fd) and _still_there(fd, self.file):
                os.ftruncate(fd, 0)
                try:
                    os.pwrite(fd, json.dumps({"pid": os.getpid(), "port_base": port_base}).encode(), 0)
                except OSError as error:
                    os.close(fd)
                    raise files.explain(error, self.file) from error
                self._fd = fd
                return
            os.close(fd)
            if attempt < _TRIES - 1:
                time.sleep(_PAUSE_S)
        told = _told(self.file)
        raise StateFolderError(
            f"{self.file.parent} is in use by another stack (process {told.get('pid', '?')}, port base {told.get('port_base', '?')}).",
            fix="Stop it with `workbench down`, or choose another folder with --state and other ports with --port-base.",
        )

    def release(self) -> None:
        """Remove the file and give the lock back."""
        if self._fd >= 0:
            self.file.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        try:
            return os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise files.explain(error, self.file) from error


def holder(file: Path) -> int:
    """Number of the process that holds the lock; 0 when nobody does."""
    try:
        fd = os.open(file, os.O_RDWR)
    except OSError:
        return 0
    try:
        if _lock(fd):
            return 0
        return int(_told(file).get("pid", 0))
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _still_there(fd: int, file: Path) -> bool:
    """A holder that ended between our opening and our locking took the file with it: then we hold a lock on nothing."""
    try:
        return os.fstat(fd).st_ino == file.stat().st_ino
    except FileNotFoundError:
        return False


def _told(file: Path) -> dict[str, int]:
    try:
        told = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
