"""Decisions in memory: the newest ones for pages, and all that no file holds yet.

Kept encoded (about 0.6 KB a record instead of 2.5 KB as objects). The promise that merging with files rests on: every known
decision above `floor` is here; what is written and not here lies at or below `floor`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from backend.api.decisions import DecisionRecord
from backend.history import records
from backend.history.model import NEWEST, OLDEST, Filter, Key, key_of


@dataclass(slots=True, order=True)
class Entry:
    """One decision; sorts by `key`."""

    key: Key
    raw: bytes
    written: bool = False


class HotDecisions:
    """Sorted by arrival. Not thread-safe: used on the event loop only."""

    def __init__(self, kept_rows: int) -> None:
        self.kept_rows = kept_rows
        self.floor: Key = OLDEST
        """OLDEST: files hold nothing that is not here, so nobody needs to look (or to import polars)."""
        self.unwritten = 0
        self._entries: list[Entry] = []
        self._by_id: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._by_id

    def add(self, record: DecisionRecord, *, written: bool = False) -> Entry | None:
        """Keep a record; None when its id is here already."""
        if record.id in self._by_id:
            return None
        entry = Entry(key_of(record), records.encode_record(record), written)
        self._by_id[record.id] = entry
        if not self._entries or entry.key > self._entries[-1].key:
            self._entries.append(entry)
        else:
            insort(self._entries, entry)
        self.unwritten += not written
        return entry

    def load(self, newest: Iterable[bytes], *, complete: bool) -> None:
        """Take encoded records that files hold, in any order. `complete`: there are no older ones in the files."""
        keys = [entry.key for raw in newest if (entry := self.add(records.decode_record(raw), written=True)) is not None]
        if keys and not complete:
            self.floor = max(self.floor, min(keys))
        self.shed()

    def mark_written(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.unwritten -= not entry.written
            entry.written = True
        self.shed()

    def discard(self, entries: Iterable[Entry]) -> None:
        """Forget decisions that can never be written."""
        for entry in entries:
            if self._by_id.pop(entry.key.id, None) is not None:
                self.unwritten -= not entry.written
                self._entries.remove(entry)

    def shed(self) -> None:
        """Forget the oldest beyond `kept_rows`, never one that no file holds."""
        surplus = len(self._entries) - self.kept_rows
        if surplus <= 0:
            return
        gone = [entry for entry in islice(self._entries, surplus) if entry.written]
        if not gone:
            return
        for entry in gone:
            del self._by_id[entry.key.id]
        self.floor = max(self.floor, gone[-1].key)
        self._entries = [entry for entry in self._entries[:surplus] if not entry.written] + self._entries[surplus:]

    def get(self, record_id: str) -> DecisionRecord | None:
        entry = self._by_id.get(record_id)
        return records.decode_record(entry.raw) if entry is not None else None

    def of_trace(self, trace: str) -> DecisionRecord | None:
        """The newest decision whose id is `trace` with a part of its own behind it."""
        begin = f"{trace}-"
        raw = next((entry.raw for entry in reversed(self._entries) if entry.key.id.startswith(begin)), None)
        return records.decode_record(raw) if raw is not None else None

    def page(self, wanted: Filter, limit: int, before: Key = NEWEST) -> list[DecisionRecord]:
        """At most `limit` matching decisions older than `before`, newest first."""
        return list(islice(self._matching(wanted, before), limit))

    def _matching(self, wanted: Filter, before: Key) -> Iterator[DecisionRecord]:
        start = bisect_left(self._entries, before, key=lambda entry: entry.key)
        for at in range(start - 1, -1, -1):
            raw = self._entries[at].raw
            if wanted.empty or wanted.matches(records.decode_facets(raw)):
                yield records.decode_record(raw)
