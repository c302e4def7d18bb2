"""Where everything stands in the index's memory: one flat array of unsigned 64-bit words, the same for writer and readers.

Owns numbers only. Everything here is a plain int, so that kernels freeze it and plain Python reads it.

    header     64 words, `H_*`
    directory  owners x 64 words, `O_*`: one owner is one data-parallel rank of one pod; its number is its bit
    table      slots x stride words: key of a block, then a bitmap of the owners that hold it

A key once written stays until the next generation of the file, so a reader without a lock never takes one block's owners for
another's; what removals leave behind is cleaned by building a new file. Engine hashes and second copies concern the writer only and
live in its private memory (`private maps`, 8 words of head and then key and value).
"""

from __future__ import annotations

MAGIC = 0x5845444E49564B46
LAYOUT = 1
"""Raised when the meaning of a word changes; a reader of another layout waits for a writer of its own."""

HEADER_WORDS = 64
H_MAGIC, H_LAYOUT, H_GENERATION = 0, 1, 2
H_SLOTS, H_STRIDE, H_BITMAP_WORDS, H_TABLE = 3, 4, 5, 6
H_OWNERS, H_DIRECTORY = 7, 8
H_USED = 9
"""Slots with a key, held or not."""
H_DISTINCT = 10
"""Blocks that somebody holds."""
H_COPIES = 11
"""Set bits: owners x blocks."""
H_VERSION = 12
"""Grows with every change of contents."""
H_DIRECTORY_VERSION = 13
"""Grows when owners or their block sizes change: what readers derive from the directory is then read again."""
H_PARKED = 14
"""Blocks that wait for their unknown parent."""

OWNER_WORDS = 64
O_USED, O_RANK, O_BLOCK_SIZE = 0, 1, 2
O_STORED, O_REMOVED, O_BLOCKS, O_CLEARED = 3, 4, 5, 6
O_IGNORED_GROUPS = 7
"""Bits of the KV-cache groups that say nothing about prefixes (sliding window, state space)."""
O_NAME_BYTES, O_NAME = 31, 32
NAME_BYTES = (OWNER_WORDS - O_NAME) * 8

MAP_HEAD = 8
M_SLOTS, M_USED = 0, 1

# words of the small file that says which generation is current
CURRENT_WORDS = 8
W_MAGIC, W_GENERATION, W_HEARTBEAT_NS, W_WRITER_PID = 0, 1, 2, 3

STALE_AFTER_S = 2.0
"""Age of the writer's heartbeat above which readers call the index stale."""


def stride_for(bitmap_words: int) -> int:
    """Words of a slot: key and bitmap, rounded up to a power of two so that a slot never straddles cache lines."""
    return 1 << bitmap_words.bit_length()


def bitmap_words_for(owners: int) -> int:
    """Bitmap words for `owners`, such that key and bitmap fill the stride: 1, 3, 7, 15, ..."""
    words = 1
    while words * 64 < owners:
        words = words * 2 + 1
    return words


def slots_for(blocks: int) -> int:
    """Slots that hold `blocks` at half load."""
    return max(64, 1 << (2 * blocks - 1).bit_length())


def table_words(slots: int, bitmap_words: int) -> int:
    return HEADER_WORDS + bitmap_words * 64 * OWNER_WORDS + slots * stride_for(bitmap_words)
