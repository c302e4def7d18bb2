"""What the history is made of: order and cursors of decisions, filters, counters. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from backend.api.decisions import DecisionRecord
from backend.api.frames import microseconds
from backend.core.errors import InvalidRequest


class Key(NamedTuple):
    """A decision's place in time: later arrivals are greater, ties are broken by id, so that pages never overlap."""

    at_us: int
    id: str


OLDEST = Key(-(2**62), "")
NEWEST = Key(2**62, "")


def key_of(record: DecisionRecord) -> Key:
    return Key(microseconds(record.at), record.id)


def cursor(key: Key) -> str:
    """`before=` of the next page."""
    return f"{key.at_us}~{key.id}"


def parse_cursor(text: str) -> Key:
    """The key in a cursor; a plain number is a time in seconds since 1970. Raises InvalidRequest."""
    number, tilde, name = text.partition("~")
    try:
        return Key(int(number), name) if tilde else Key(microseconds(float(number)), "")
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"`before` is {text!r}.", param="before", fix="Pass `next` of the page before, or a time in seconds since 1970."
        ) from None


@dataclass(frozen=True)
class Filter:
    """Which decisions are wanted; empty fields don't filter."""

    model: str = ""
    pod: str = ""
    policy: str = ""
    outcome: str = ""

    def matches(self, record: DecisionRecord | Facets) -> bool:
        return (
            (not self.model or record.model == self.model)
            and (not self.pod or record.chosen == self.pod)
            and (not self.policy or record.policy == self.policy)
            and (not self.outcome or record.outcome == self.outcome)
        )

    @property
    def empty(self) -> bool:
        return self == Filter()


class Facets(msgspec.Struct, gc=False):
    """The fields of an encoded DecisionRecord that filters look at; decoding only these is five times cheaper."""

    model: str = ""
    chosen: str = ""
    policy: str = ""
    outcome: str = "ok"


@dataclass
class HistoryCounters:
    """What became of records; all of them only grow, but `unwritten` and those that say otherwise."""

    received: int = 0
    duplicates: int = 0
    """Records that came a second time, after a restart or a repeated send."""
    unreadable: int = 0
    """Stream entries that are not a batch of records, and records that cannot be read or written to a table."""
    trimmed: int = 0
    """Entries that the stream's cap removed before they were written."""
    written: int = 0
    files: int = 0
    """Files written."""
    files_deleted: int = 0
    """Files deleted to keep to the size."""
    rows_deleted: int = 0
    write_failures: int = 0
    compacted: int = 0
    """Small files merged into bigger ones."""


@dataclass
class HistoryTrouble:
    """What is wrong now, as sentences; empty when nothing is. The service keeps them, findings show them."""

    redis: str = ""
    disk: str = ""
    disk_full: bool = False
    corrupt: dict[str, str] = field(default_factory=dict)
    """Unreadable files: name below the history folder -> why."""
