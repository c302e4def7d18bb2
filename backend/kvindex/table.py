"""One generation of the index's memory: made by the writer (in a shared file or private), mapped by readers, and its directory of owners.

Owns the mapping and reading words out of it. What changes blocks is in `plain` and in the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from backend.core.errors import NotFound, UsageError
from backend.core.sharedfile import SharedFile
from backend.kvindex import layout as at

Words = npt.NDArray[np.uint64]
CURRENT = "index-current.bin"


def generation_file(folder: Path, generation: int) -> Path:
    return folder / f"index-{generation}.bin"


@dataclass(frozen=True)
class Owner:
    """One data-parallel rank of one pod, as the directory has it."""

    number: int
    pod: str
    rank: int
    block_size: int
    stored: int
    removed: int
    blocks: int
    cleared: int


class Table:
    """`words` for single values (fast in Python), `array` for kernels: the same memory."""

    def __init__(self, words: memoryview, array: Words, file: SharedFile | None) -> None:
        self.words = words
        self.array = array
        self._file = file
        self.bitmap_words = words[at.H_BITMAP_WORDS]
        self.owners = words[at.H_OWNERS]
        self.slots = words[at.H_SLOTS]
        self.generation = words[at.H_GENERATION]
        self.bytes = len(words) * 8

    @classmethod
    def create(cls, slots: int, bitmap_words: int, generation: int, folder: Path | None) -> Table:
        """An empty table; in `folder` it becomes a file that no reader looks at before `current` names its generation."""
        size = at.table_words(slots, bitmap_words)
        file = SharedFile.create(generation_file(folder, generation), size * 8) if folder is not None else None
        array = np.frombuffer(file.words, np.uint64)[:size] if file is not None else np.zeros(size, np.uint64)
        array[at.H_LAYOUT] = at.LAYOUT
        array[at.H_GENERATION] = generation
        array[at.H_SLOTS] = slots
        array[at.H_STRIDE] = at.stride_for(bitmap_words)
        array[at.H_BITMAP_WORDS] = bitmap_words
        array[at.H_OWNERS] = bitmap_words * 64
        array[at.H_DIRECTORY] = at.HEADER_WORDS
        array[at.H_TABLE] = at.HEADER_WORDS + bitmap_words * 64 * at.OWNER_WORDS
        array[at.H_MAGIC] = at.MAGIC
        return cls(array.data, array, file)

    @classmethod
    def open(cls, folder: Path, generation: int) -> Table:
        """Map a generation for reading. Raises NotFound when it is gone already or of another layout."""
        file = SharedFile.open(generation_file(folder, generation))
        words = file.words
        size = 0
        if len(words) > at.HEADER_WORDS and words[at.H_MAGIC] == at.MAGIC and words[at.H_LAYOUT] == at.LAYOUT:
            size = at.table_words(words[at.H_SLOTS], words[at.H_BITMAP_WORDS])
        if not 0 < size <= len(words):
            raise NotFound(f"{file.path} is not an index of this version.", fix="Restart the index service, then this process.")
        return cls(words, np.frombuffer(words, np.uint64), file)

    def directory(self, owner: int) -> int:
        """Index of the owner's first directory word."""
        return self.words[at.H_DIRECTORY] + owner * at.OWNER_WORDS

    def owner(self, number: int) -> Owner | None:
        words, base = self.words, self.directory(number)
        if not words[base + at.O_USED]:
            return None
        length = min(words[base + at.O_NAME_BYTES], at.NAME_BYTES)
        name = bytes(words[base + at.O_NAME : base + at.OWNER_WORDS])[:length].decode("utf-8", "replace")
        return Owner(
            number,
            name,
            words[base + at.O_RANK],
            words[base + at.O_BLOCK_SIZE],
            words[base + at.O_STORED],
            words[base + at.O_REMOVED],
            words[base + at.O_BLOCKS],
            words[base + at.O_CLEARED],
        )

    def list_owners(self) -> Iterator[Owner]:
        for number in range(self.owners):
            owner = self.owner(number)
            if owner is not None:
                yield owner

    def add_owner(self, pod: str, rank: int) -> int | None:
        """Number of a new owner, or None when the bitmap has no bit left."""
        raw = pod.encode()
        if not pod or len(raw) > at.NAME_BYTES:
            raise UsageError(f"A pod's name has 1 to {at.NAME_BYTES} bytes, this one {len(raw)}.")
        words = self.words
        for number in range(self.owners):
            base = self.directory(number)
            if words[base + at.O_USED]:
                continue
            self.array[base : base + at.OWNER_WORDS] = 0
            self.array[base + at.O_NAME : base + at.OWNER_WORDS].view(np.uint8)[: len(raw)] = np.frombuffer(raw, np.uint8)
            words[base + at.O_NAME_BYTES] = len(raw)
            words[base + at.O_RANK] = rank
            words[base + at.O_USED] = 1
            words[at.H_DIRECTORY_VERSION] += 1
            return number
        return None

    def drop_owner(self, number: int) -> None:
        """Forget an owner whose bits are cleared already."""
        self.words[self.directory(number) + at.O_USED] = 0
        self.words[at.H_DIRECTORY_VERSION] += 1
