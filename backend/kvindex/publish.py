"""Which generation readers look at: the small file that names it, the writer's heartbeat, and the lock that keeps a second writer out.

A new writer leaves the name as its predecessor wrote it until it has something better to show.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from backend.core.errors import NotFound, UsageError
from backend.core.files import ensure_folder
from backend.core.sharedfile import SharedFile
from backend.kvindex import layout as at
from backend.kvindex.table import CURRENT, generation_file


class Publisher:
    """The writer's hold on a folder of index files. Raises UsageError when another writer has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = ensure_folder(folder)
        self.published = False
        self._lock = os.open(folder / "index.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise UsageError(f"Another index service writes to {folder}.", fix="Stop it, or give this one a folder of its own.") from error
        self._current = self._open_current()

    @property
    def predecessor(self) -> bool:
        """Whether readers look at a former writer's state now."""
        return not self.published and self._current.words[at.W_GENERATION] != 0

    def next_generation(self) -> int:
        return int(self._current.words[at.W_GENERATION]) + 1

    def announce(self, generation: int) -> None:
        """Readers switch to `generation` at their next look; files of other generations go."""
        words = self._current.words
        words[at.W_WRITER_PID] = os.getpid()
        words[at.W_HEARTBEAT_NS] = time.monotonic_ns()
        words[at.W_GENERATION] = generation
        self.published = True
        kept = generation_file(self.folder, generation)
        for file in self.folder.glob("index-[0-9]*.bin"):
            if file != kept:
                file.unlink(missing_ok=True)

    def replaced(self, old: int, new: int) -> None:
        """The writer has built generation `new` from `old`."""
        if self.published:
            self.announce(new)
        elif old != self._current.words[at.W_GENERATION]:
            generation_file(self.folder, old).unlink(missing_ok=True)

    def beat(self) -> None:
        if self.published:
            self._current.words[at.W_HEARTBEAT_NS] = time.monotonic_ns()

    def close(self) -> None:
        if self._lock < 0:
            return
        if self.published:
            self._current.words[at.W_HEARTBEAT_NS] = 0
            self._current.words[at.W_WRITER_PID] = 0
        self.published = False
        os.close(self._lock)
        self._lock = -1

    def _open_current(self) -> SharedFile:
        path = self.folder / CURRENT
        try:
            current = SharedFile.open(path, writable=True)
            if len(current.words) >= at.CURRENT_WORDS and current.words[at.W_MAGIC] == at.MAGIC:
                return current
        except NotFound:
            pass  # none yet, or an empty one of a writer that died while it made it
        current = SharedFile.create(path, at.CURRENT_WORDS * 8)
        current.words[at.W_MAGIC] = at.MAGIC
        return current
