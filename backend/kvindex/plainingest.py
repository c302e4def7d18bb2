"""Applying decoded events in plain Python, with the rules and on the memory of `kernels/ingest.py`: the twin it is tested against.

A status of `cursor` is returned in front of an event that needs room, as the kernel does, so that one caller serves both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backend.kvindex import cursor as c
from backend.kvindex import hashing, plain
from backend.kvindex import layout as at
from backend.kvindex.wire import Event

_LOW = 0xFFFFFFFF
_WHOLE_PREFIXES = frozenset({"full_attention", "mla_attention"})


@dataclass
class Memory:
    """What one owner's events touch, as memoryviews of 64-bit words."""

    words: memoryview
    labels: memoryview
    copies: memoryview
    owner: int
    holders: int
    """Owners of the label's domain, as one number."""

    @property
    def directory(self) -> int:
        return int(self.words[at.H_DIRECTORY]) + self.owner * at.OWNER_WORDS


def apply(event: Event, memory: Memory, model: int, counts: list[int]) -> int:
    """Apply one event and count in `counts` (indices `cursor.C_*`). `PARKED_FULL` means: park this event, its parent is unknown."""
    if event.kind == "cleared":
        return c.CLEARED
    words, directory = memory.words, memory.directory
    group = 1 << ((event.group_idx or 0) & 63)
    kind = event.kv_cache_spec_kind
    if event.kind == "stored" and kind is not None and kind not in _WHOLE_PREFIXES:
        words[directory + at.O_IGNORED_GROUPS] |= group
    if words[directory + at.O_IGNORED_GROUPS] & group:
        counts[c.C_IGNORED] += 1
        return c.DONE
    if event.kind == "removed":
        for engine_hash in event.block_hashes:
            _remove(engine_hash, memory, counts)
        return c.DONE
    return _store(event, memory, model, counts)


def _store(event: Event, memory: Memory, model: int, counts: list[int]) -> int:
    words, count = memory.words, len(event.block_hashes)
    if count == 0:
        return c.DONE
    counts[c.C_NEEDED] = count
    if 2 * (words[at.H_USED] + count) > words[at.H_SLOTS]:
        return c.NEEDS_SLOTS
    if 2 * (memory.labels[at.M_USED] + count) > memory.labels[at.M_SLOTS]:
        return c.NEEDS_LABELS
    if 2 * (memory.copies[at.M_USED] + count) > memory.copies[at.M_SLOTS]:
        return c.NEEDS_COPIES
    parent = 0
    if event.parent_hash is not None:
        label = plain.find(memory.labels, plain.label_key(event.parent_hash))
        if label < 0:
            counts[c.C_PARKED_BLOCKS] += count
            return c.PARKED_FULL
        slot = memory.labels[label + 1] & _LOW
        parent = slot + 1
        chain = words[words[at.H_TABLE] + slot * words[at.H_STRIDE]]
    else:
        adapter = hashing.adapter_hash(event.lora_name or event.lora_id)
        chain = hashing.chain_start(model, event.block_size, adapter)
    directory = memory.directory
    if event.block_size > words[directory + at.O_BLOCK_SIZE]:
        words[directory + at.O_BLOCK_SIZE] = event.block_size
        words[at.H_DIRECTORY_VERSION] += 1
    extras = _extras(event, count)
    blocks = hashing.block_hashes(np.array(event.token_ids, np.uint32), event.block_size)
    for engine_hash, block, extra in zip(event.block_hashes, blocks, extras, strict=True):
        chain = hashing.mix(chain, hashing.mix(extra, block) if extra else block) or 1
        slot = _put_block(words, chain)
        _give_copy(memory, slot)
        plain.put(memory.labels, plain.label_key(engine_hash), (parent << 32) | slot)
        parent = slot + 1
    words[directory + at.O_STORED] += count
    counts[c.C_STORED] += count
    return c.DONE


def _extras(event: Event, count: int) -> list[int]:
    extras = [hashing.extra_hash(extra, event.lora_name) for extra in (event.extra_keys or ())[:count]]
    extras += [0] * (count - len(extras))
    if event.parent_hash is None and extras[0] == 0:
        extras[0] = hashing.salt_hash(event.cache_salt)
    return extras


def _put_block(words: memoryview, key: int) -> int:
    mask, stride, table = words[at.H_SLOTS] - 1, words[at.H_STRIDE], words[at.H_TABLE]
    slot = plain.home(key, mask)
    while words[table + slot * stride] not in (0, key):
        slot = (slot + 1) & mask
    if words[table + slot * stride] == 0:
        words[table + slot * stride] = key
        words[at.H_USED] += 1
    return slot


def _give_copy(memory: Memory, slot: int) -> None:
    words = memory.words
    index = words[at.H_TABLE] + slot * words[at.H_STRIDE]
    word, bit = index + 1 + memory.owner // 64, 1 << (memory.owner % 64)
    if words[word] & bit:
        further = plain.find(memory.copies, slot + 1)
        plain.put(memory.copies, slot + 1, memory.copies[further + 1] + 1 if further >= 0 else 1)
        return
    if plain.bitmap(words, index) == 0:
        words[at.H_DISTINCT] += 1
    words[word] |= bit
    words[at.H_COPIES] += 1
    words[memory.directory + at.O_BLOCKS] += 1


def _remove(engine_hash: int, memory: Memory, counts: list[int]) -> None:
    words, labels, copies = memory.words, memory.labels, memory.copies
    label = plain.find(labels, plain.label_key(engine_hash))
    slot = labels[label + 1] & _LOW if label >= 0 else 0
    index = words[at.H_TABLE] + slot * words[at.H_STRIDE]
    word, bit = index + 1 + memory.owner // 64, 1 << (memory.owner % 64)
    if label < 0 or not words[word] & bit:
        counts[c.C_UNKNOWN] += 1
        return
    counts[c.C_REMOVED] += 1
    words[memory.directory + at.O_REMOVED] += 1
    further = plain.find(copies, slot + 1)
    if further >= 0:
        copies[further + 1] -= 1
        if copies[further + 1] == 0:
            plain.remove(copies, further)
        return
    words[word] &= hashing.MASK ^ bit
    words[at.H_COPIES] -= 1
    words[memory.directory + at.O_BLOCKS] -= 1
    held = plain.bitmap(words, index)
    if held == 0:
        words[at.H_DISTINCT] -= 1
    if not held & memory.holders:
        plain.remove(labels, label)
