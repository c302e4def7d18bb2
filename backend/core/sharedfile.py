"""An mmap of a preallocated file, shared between one writer and any number of readers.

Never `multiprocessing.shared_memory`: its tracker unlinks the segment when any reader dies (seen on CPython 3.11). Pages are
allocated up front, so a full /dev/shm is an error message at start instead of a SIGBUS later.

Word order: a writer stores data first and the word that announces it last; x86 keeps that order for other readers. It is proven
on x86 only; `docs/architecture.md` says so.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from backend.core.errors import NotFound
from backend.core.files import explain


class SharedFile:
    """`words` is a writable (or read-only) memoryview of unsigned 64-bit words."""

    def __init__(self, path: Path, map_: mmap.mmap, *, writable: bool) -> None:
        self.path = path
        self.writable = writable
        self._map = map_
        self.words: memoryview = memoryview(map_).cast("Q")

    @classmethod
    def create(cls, path: Path, size_bytes: int) -> SharedFile:
        """A zeroed file of `size_bytes` (rounded up to a page). An existing file is replaced, its readers keep the old one."""
        size = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(fd, 0, size)
                else:
                    os.ftruncate(fd, size)
                return cls(path, mmap.mmap(fd, size), writable=True)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(fd)
        except OSError as error:
            raise explain(error, path) from error

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> SharedFile:
        """Map an existing file. Raises NotFound when its writer has not made it yet, or has not yet given it room."""
        try:
            fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        except FileNotFoundError as error:
            raise NotFound(f"{path} does not exist yet.") from error
        try:
            if not os.fstat(fd).st_size:
                raise NotFound(f"{path} has no room yet.")
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            return cls(path, mmap.mmap(fd, 0, access=access), writable=writable)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Unmap. A numpy array that still looks at `words` keeps the pages alive and is left to do so."""
        try:
            self.words.release()
            self._map.close()
        except BufferError:
            pass
