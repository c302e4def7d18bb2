"""The prefix index as its one writer sees it: events in, table out, look-ups as every reader.

Owns the order of things: make room, apply, forget, publish. Blocks are changed by kernels (by `plainingest` while those are compiled);
readers in other processes are never waited for and never see half a generation.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from backend.api.cache import IndexStats, SharedPrefix
from backend.core.errors import DiskFull, WireError
from backend.kvindex import cursor as c
from backend.kvindex import hashing, kernels, overview, plainingest, wire
from backend.kvindex import layout as at
from backend.kvindex.owners import Domain, OwnerState, ParkedEvent, map_with_room, new_map
from backend.kvindex.publish import Publisher
from backend.kvindex.reader import IndexReader
from backend.kvindex.result import IngestResult, result_of
from backend.kvindex.table import Table

_EVENT_ALONE = b"\x92\xc0\x91"
"""Head of a message with one event and no time stamp."""


class PrefixIndex(IndexReader):
    """Which pod holds which prefix.

    >>> index = PrefixIndex(1024)
    >>> index.match([1, 2, 3])
    Matches()

    `path` is a folder for the shared files, from which other processes read with `PrefixIndex.open(folder)`; without one the index is
    private. `publish=False` keeps the last writer's state in readers' sight until `publish()`. Calls may come from several threads.
    """

    def __init__(
        self, capacity_blocks: int, path: Path | str | None = None, *, publish: bool = True, wait_for_kernels: bool = True
    ) -> None:
        self._publisher = Publisher(Path(path)) if path is not None else None
        folder = self._publisher.folder if self._publisher is not None else None
        generation = self._publisher.next_generation() if self._publisher is not None else 1
        super().__init__(folder, Table.create(at.slots_for(max(1, capacity_blocks)), 1, generation, folder), None)
        self.problem = ""
        """Why readers look at an older state; empty while they see this one."""
        self.growth_failures = 0
        self._to_publish = False
        self._in_file = generation
        """Newest generation that has a file."""
        self._lock = threading.RLock()
        self._states: dict[tuple[str, int], OwnerState] = {}
        self._domains: dict[str, Domain] = {}
        self._seeds: dict[str, np.uint64] = {}
        self._counts = np.zeros(c.CURSOR_WORDS + 1, np.int64)
        self._bounds_of_one = np.zeros(2, np.int64)
        self._parked = np.empty(3 * c.PARKED_SPANS, np.int64)
        self._fit_scratch(4096)
        if wait_for_kernels:
            kernels.load_writing()
        if publish:
            self.publish()

    def ingest(self, pod: str, payload: bytes, *, model: str = "", rank: int = 0, domain: str | None = None) -> IngestResult:
        """Apply one message of a KV-event publisher.

        `domain` names a set of pods whose engine hashes mean the same (equal hash seeds); by default every pod and rank is its own.
        """
        return self.ingest_many(pod, (payload,), model=model, rank=rank, domain=domain)

    def ingest_many(
        self, pod: str, payloads: Sequence[bytes], *, model: str = "", rank: int = 0, domain: str | None = None
    ) -> IngestResult:
        """Apply messages of one publisher in order, in one call of the kernel."""
        with self._lock:
            state = self._states.get((pod, rank)) or self._state(pod, rank, domain)
            seed = self._seeds.get(model) or self._seed(model)
            counts = self._apply(state, payloads, seed)
            if state.parked:
                self._settle_parked(state, payloads, seed, counts)
            self.beat()
            return result_of(counts, len(state.parked))

    def _settle_parked(self, state: OwnerState, payloads: Sequence[bytes], seed: np.uint64, counts: list[int]) -> None:
        """Bring in parked events whose parent has come, and drop those that were removed meanwhile."""
        if counts[c.C_UNKNOWN]:
            state.drop_parked(_removed_hashes(payloads))
        while ready := state.take_ready():
            counts[c.C_STORED] += self._apply(state, ready, seed)[c.C_STORED]
        self._note_parked()

    def add_pod(self, pod: str, rank: int = 0) -> None:
        """List a pod before its first event."""
        with self._lock:
            self._state(pod, rank, None)

    def remove_pod(self, pod: str, rank: int | None = None) -> None:
        """Forget a pod (or one of its ranks) and free its place. Unknown names are fine."""
        with self._lock:
            for key in [key for key in self._states if key[0] == pod and rank in (None, key[1])]:
                state = self._states.pop(key)
                self._forget(state)
                state.domain.drop(state.number)
                if not state.domain.owners:
                    self._domains.pop(state.domain.name, None)
                self._table.drop_owner(state.number)
            self._note_parked()

    def clear(self, pod: str, rank: int | None = None) -> None:
        """The pod (or one of its ranks) holds nothing any more."""
        with self._lock:
            for key, state in self._states.items():
                if key[0] == pod and rank in (None, key[1]):
                    self._forget(state)
            self._note_parked()

    def stats(self) -> IndexStats:
        """Sizes and counts of the whole index."""
        words = self._table.words
        with self._lock:
            private = sum(domain.labels.nbytes for domain in self._domains.values())
            private += sum(state.copies.nbytes for state in self._states.values())
        return IndexStats(
            generation=self._table.generation,
            distinct_blocks=words[at.H_DISTINCT],
            copies=words[at.H_COPIES],
            capacity_blocks=self._table.slots // 2,
            bytes=self._table.bytes + private,
            pods=sorted(self.pods()),
            parked=words[at.H_PARKED],
            ready=self._publisher is None or self._publisher.published,
        )

    @property
    def version(self) -> int:
        """Grows with every change of contents."""
        return int(self._table.words[at.H_VERSION])

    def blocks(self, pod: str, rank: int = 0) -> int:
        """Blocks that one rank of a pod holds."""
        state = self._states.get((pod, rank))
        return self._table.words[self._table.directory(state.number) + at.O_BLOCKS] if state is not None else 0

    def map(self, bins: int, pods: Sequence[str] | None = None) -> npt.NDArray[np.int64]:
        """Blocks held, pods (`pods()` by default) x bins of the prefix space: related prefixes stand side by side."""
        with self._lock:
            return overview.map_of(self._table, self._domains.values(), self.pods() if pods is None else pods, bins)

    def shared(self, limit: int = 20) -> list[SharedPrefix]:
        """Prefixes that most pods hold or most prompts continue, largest first."""
        with self._lock:
            return overview.shared_of(self._table, self._domains.values(), limit)

    def held(self, pod: str, rank: int = 0) -> set[int]:
        """Engine hashes of the blocks that a pod holds: to compare with the engine itself."""
        with self._lock:
            state = self._states.get((pod, rank))
            return overview.held_by(self._table, state) if state is not None else set()

    def given_up(self, pod: str, rank: int = 0) -> int:
        """Events that waited for their parent until others took their place."""
        state = self._states.get((pod, rank))
        return state.given_up if state is not None else 0

    @property
    def has_predecessor(self) -> bool:
        """Readers still look at a former writer's state."""
        return self._publisher is not None and self._publisher.predecessor

    def publish(self) -> None:
        """Show this index to readers from now on."""
        with self._lock:
            self._to_publish = True
            self._show()

    def beat(self) -> None:
        """Tell readers that the writer lives; call it more often than every 2 s. Silent while they see an older state: it is stale."""
        if self._publisher is not None and not self.problem:
            self._publisher.beat()

    def close(self) -> None:
        """Give the files up: readers keep the last state and call it stale."""
        if self._publisher is not None:
            self._publisher.close()

    def _seed(self, model: str) -> np.uint64:
        seed = self._seeds[model] = np.uint64(hashing.model_seed(model))
        return seed

    def _state(self, pod: str, rank: int, domain: str | None) -> OwnerState:
        state = self._states.get((pod, rank))
        if state is not None:
            return state
        number = self._table.add_owner(pod, rank)
        if number is None:
            self._rebuild(0, at.bitmap_words_for(self._table.owners + 1))
            number = self._table.add_owner(pod, rank)
            assert number is not None
        name = domain if domain is not None else f"{pod}\0{rank}"
        home = self._domains.get(name)
        if home is None:
            home = self._domains[name] = Domain(name, np.zeros(self._table.bitmap_words, np.uint64))
        home.add(number)
        state = self._states[pod, rank] = OwnerState(number, pod, rank, home)
        return state

    def _apply(self, state: OwnerState, payloads: Sequence[bytes], model: np.uint64) -> list[int]:
        """Apply, making room where an event asks for it. Counters as in `cursor`, and the clears behind them."""
        self._counts.fill(0)
        if kernels.ready(writing=True):
            self._apply_compiled(state, payloads, model, self._counts)
        else:
            self._apply_plainly(state, payloads, int(model), self._counts)
        counts: list[int] = self._counts.tolist()
        return counts

    def _apply_compiled(self, state: OwnerState, payloads: Sequence[bytes], model: np.uint64, counts: npt.NDArray[np.int64]) -> None:
        kernel: Any = kernels.load_writing().ingest_messages
        if len(payloads) == 1:
            data, bounds = np.frombuffer(payloads[0], np.uint8), self._bounds_of_one
            bounds[1] = longest = len(payloads[0])
        else:
            data = np.frombuffer(b"".join(payloads), np.uint8)
            bounds = np.array([0, *accumulate(map(len, payloads))], np.int64)
            longest = max(map(len, payloads), default=0)
        if len(self._tokens) < longest:
            self._fit_scratch(longest)
        counts[c.C_EVENTS_LEFT] = -1
        while True:
            domain = state.domain
            status = kernel(
                self._table.array, domain.labels, state.copies, domain.holders, state.number, model, data, bounds, counts, self._parked,
                self._hashes, self._tokens, self._extras,
            )  # fmt: skip
            if counts[c.C_PARKED]:
                for _, begin, end in self._parked[: 3 * counts[c.C_PARKED]].reshape(-1, 3).tolist():
                    _park(state, _EVENT_ALONE + data[begin:end].tobytes())
                counts[c.C_PARKED] = 0
            if status == c.DONE:
                return
            self._help(status, state, int(counts[c.C_NEEDED]), counts)

    def _apply_plainly(self, state: OwnerState, payloads: Sequence[bytes], model: int, counts: npt.NDArray[np.int64]) -> None:
        for payload in payloads:
            try:
                batch = wire.decode_batch(payload)
            except WireError:
                counts[c.C_REASONS + c.NOT_A_BATCH] += 1
                continue
            for reason, count in batch.skipped.items():
                counts[c.C_REASONS + c.REASONS.index(reason)] += count
            for event in batch.events:
                self._apply_event(event, state, model, counts)
        self._table.words[at.H_VERSION] += 1

    def _apply_event(self, event: wire.Event, state: OwnerState, model: int, counts: npt.NDArray[np.int64]) -> None:
        while True:
            words = self._table.array.data
            holders = sum(1 << owner for owner in state.domain.owners)
            memory = plainingest.Memory(words, state.domain.labels.data, state.copies.data, state.number, holders)
            totals = counts.tolist()
            status = plainingest.apply(event, memory, model, totals)
            counts[:] = totals
            if status == c.PARKED_FULL:
                _park(state, wire.encode_event(event))
                return
            if status == c.DONE:
                return
            self._help(status, state, int(counts[c.C_NEEDED]), counts)
            if status == c.CLEARED:
                return

    def _help(self, status: int, state: OwnerState, needed: int, counts: npt.NDArray[np.int64]) -> None:
        """Do what a stopped pass asked for."""
        none_moved = np.empty(0, np.uint32)
        if status == c.NEEDS_SLOTS:
            self._rebuild(needed, self._table.bitmap_words)
        elif status == c.NEEDS_LABELS:
            labels = map_with_room(state.domain.labels, needed)
            kernels.load_writing().rehash_map(state.domain.labels, labels, none_moved, False)
            state.domain.labels = labels
        elif status == c.NEEDS_COPIES:
            copies = map_with_room(state.copies, needed)
            kernels.load_writing().rehash_map(state.copies, copies, none_moved, True)
            state.copies = copies
        elif status == c.CLEARED:
            counts[-1] += 1
            words = self._table.words
            words[self._table.directory(state.number) + at.O_CLEARED] += 1
            self._forget(state)

    def _fit_scratch(self, size: int) -> None:
        """Every element of an event takes at least a byte, so scratch as long as the longest message always suffices."""
        size = 1 << (size - 1).bit_length()
        self._hashes, self._tokens, self._extras = np.empty(size, np.uint64), np.empty(size, np.uint32), np.empty(size, np.uint64)

    def _forget(self, state: OwnerState) -> None:
        """Everything that an owner held; its lifetime counters stay."""
        loaded = kernels.load_writing()
        loaded.clear_owner(self._table.array, state.number)
        state.copies = new_map()
        state.parked.clear()
        domain = state.domain
        if domain.owners <= {state.number}:
            domain.labels = new_map()
        else:
            table = self._table.words
            shape = (table[at.H_TABLE], table[at.H_STRIDE], self._table.bitmap_words)
            # a removal near the array's end may move an entry over from its beginning, behind the walk's back: walk until nothing goes
            while loaded.drop_free_labels(domain.labels, self._table.array, *shape, domain.holders):
                pass
        self._table.words[at.H_VERSION] += 1

    def _rebuild(self, needed: int, bitmap_words: int) -> None:
        """A new generation: larger where blocks need it, without the traces of removed blocks, with room for more owners."""
        old, loaded = self._table, kernels.load_writing()
        slots = old.slots
        while 4 * (old.words[at.H_DISTINCT] + needed) > slots:
            slots *= 2
        new = self._new_table(slots, bitmap_words, old.generation + 1)
        for word in (at.H_DISTINCT, at.H_COPIES, at.H_VERSION, at.H_DIRECTORY_VERSION, at.H_PARKED):
            new.words[word] = old.words[word]
        size = old.owners * at.OWNER_WORDS
        new.array[new.directory(0) : new.directory(0) + size] = old.array[old.directory(0) : old.directory(0) + size]
        moved = np.zeros(old.slots, np.uint32)
        loaded.copy_table(old.array, new.array, moved)
        for domain in self._domains.values():
            labels = map_with_room(domain.labels, 0)
            loaded.rehash_map(domain.labels, labels, moved, False)
            domain.labels = labels
            domain.holders = np.concatenate([domain.holders, np.zeros(bitmap_words - len(domain.holders), np.uint64)])
        for state in self._states.values():
            copies = map_with_room(state.copies, 0)
            loaded.rehash_map(state.copies, copies, moved, True)
            state.copies = copies
        self._table = new
        self._show()

    def _new_table(self, slots: int, bitmap_words: int, generation: int) -> Table:
        """In memory of our own where shared memory has no room: we go on, and readers keep what they have until `share` succeeds."""
        try:
            table = Table.create(slots, bitmap_words, generation, self._folder)
        except DiskFull as error:
            self.problem = error.message
            self.growth_failures += 1
            return Table.create(slots, bitmap_words, generation, None)
        self.problem = ""
        return table

    def share(self) -> None:
        """Put what outgrew shared memory there after all; a look at `problem` says whether there was room."""
        with self._lock:
            if self.problem:
                old = self._table
                new = self._new_table(old.slots, old.bitmap_words, old.generation)
                if not self.problem:
                    new.array[:] = old.array
                    self._table = new
                    self._show()

    def _show(self) -> None:
        """Readers get the present generation, if it is where they can see it and meant for them already."""
        if self._publisher is None or self.problem:
            return
        if self._to_publish:
            self._publisher.announce(self._table.generation)
        else:
            self._publisher.replaced(self._in_file, self._table.generation)
        self._in_file = self._table.generation

    def _note_parked(self) -> None:
        self._table.words[at.H_PARKED] = sum(state.parked_blocks for state in self._states.values() if state.parked)


def _park(state: OwnerState, message: bytes) -> None:
    event = wire.decode_batch(message).events[0]
    assert event.parent_hash is not None
    state.park(ParkedEvent(event.parent_hash, frozenset(event.block_hashes), message))


def _removed_hashes(payloads: Sequence[bytes]) -> set[int]:
    removed: set[int] = set()
    for payload in payloads:
        try:
            events = wire.decode_batch(payload).events
        except WireError:
            continue
        removed.update(value for event in events if event.kind == "removed" for value in event.block_hashes)
    return removed
