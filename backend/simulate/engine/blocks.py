"""The paged KV cache: physical blocks, their reference counts, the free queue, and which of them hold a cached prefix.

Block 0 is the null block and never given out. A freed block keeps its content and its place in the prefix cache until it is
given to somebody else, which is when its removal is told. The free queue is a linked list in two arrays: first out are blocks
without content, then the least recently freed; taking a block out of its middle (a cache hit) costs nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from backend.simulate.engine.model import AllBlocksCleared, BlockRemoved, Event


class BlockPool:
    """Blocks 1 .. num_blocks - 1. Events pile up in `events` until the scheduler takes them."""

    def __init__(self, num_blocks: int, *, tell_copies: bool = True) -> None:
        """`tell_copies`: a removal is told for every physical copy, else only for the last one."""
        if num_blocks < 2:
            raise ValueError("a pool needs the null block and one more")
        self.usable = num_blocks - 1
        self.free_count = self.usable
        self.events: list[Event] = []
        self._tell_copies = tell_copies
        self._references = array("i", bytes(4 * num_blocks))
        # A ring through block 0, which stands for both ends of the free queue.
        self._next = array("i", [*range(1, num_blocks), 0])
        self._previous = array("i", [num_blocks - 1, *range(num_blocks - 1)])
        self._hashes: list[bytes | None] = [None] * num_blocks
        # One block, or several physical copies in the order in which they were stored.
        self._cached: dict[bytes, int | list[int]] = {}

    @property
    def used(self) -> int:
        """Blocks that running requests hold; cached blocks that nobody uses do not count."""
        return self.usable - self.free_count

    @property
    def cached_hashes(self) -> Iterable[bytes]:
        """Hashes that a lookup would find."""
        return self._cached.keys()

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """Blocks of the longest cached beginning of a hash chain; the oldest copy of each."""
        found: list[int] = []
        for digest in hashes:
            held = self._cached.get(digest)
            if held is None:
                break
            found.append(held if isinstance(held, int) else held[0])
        return found

    def holds(self, digest: bytes) -> bool:
        return digest in self._cached

    def unreferenced(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` stand in the free queue, so that using them leaves fewer for others."""
        return sum(1 for block in blocks if self._references[block] == 0)

    def acquire(self, blocks: Iterable[int]) -> None:
        """One more user for cached `blocks`."""
        for block in blocks:
            if self._references[block] == 0:
                self._unlink(block)
            self._references[block] += 1

    def take(self, count: int) -> list[int]:
        """`count` blocks from the front of the free queue; what they had cached is removed. The caller checked `free_count`."""
        taken: list[int] = []
        for _ in range(count):
            block = self._next[0]
            self._unlink(block)
            self._forget(block)
            self._references[block] = 1
            taken.append(block)
        return taken

    def release(self, blocks: list[int]) -> None:
        """One user less for a request's `blocks`, given in prompt order. Its tail is freed first, so its tail is evicted first.

        Blocks that hold nothing cached go to the front of the queue: they are used again before anything is evicted.
        """
        empty = 0
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] > 0:
                continue
            if self._hashes[block] is None:
                empty = self._insert(block, behind=empty)
            else:
                self._insert(block, behind=self._previous[0])

    def register(self, block: int, digest: bytes) -> None:
        """`block` now holds the prefix `digest`; another block may hold the same already."""
        self._hashes[block] = digest
        held = self._cached.get(digest)
        if held is None:
            self._cached[digest] = block
        elif isinstance(held, int):
            self._cached[digest] = [held, block]
        else:
            held.append(block)

    def clear(self) -> bool:
        """Forget all cached prefixes. False, and nothing done, while any block is in use."""
        if self.used:
            return False
        self._cached.clear()
        self._hashes = [None] * len(self._hashes)
        self.events.append(AllBlocksCleared())
        return True

    def _forget(self, block: int) -> None:
        digest = self._hashes[block]
        if digest is None:
            return
        self._hashes[block] = None
        held = self._cached[digest]
        if isinstance(held, int):
            del self._cached[digest]
        else:
            held.remove(block)
            if len(held) == 1:
                self._cached[digest] = held[0]
        if self._tell_copies or digest not in self._cached:
            self.events.append(BlockRemoved([digest]))

    def _unlink(self, block: int) -> None:
        before, after = self._previous[block], self._next[block]
        self._next[before] = after
        self._previous[after] = before
        self.free_count -= 1

    def _insert(self, block: int, *, behind: int) -> int:
        """Put a block into the free queue; 0 stands for its front."""
        after = self._next[behind]
        self._next[behind] = block
        self._previous[block] = behind
        self._next[block] = after
        self._previous[after] = block
        self.free_count += 1
        return block
