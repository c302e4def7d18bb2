"""What the workbench's methods answer: looked at as they are, as polars by `.df()`, as a plot by `.plot()` where one helps.

A result is what was true at one moment; it never asks the server again.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import msgspec

from backend.api import frames
from backend.api.actions import AuditPage, AuditRecord, Operation, ServiceView
from backend.api.cache import CacheMap, ProbeMatch, ProbeResult, SharedPrefix, SourceState
from backend.api.decisions import DecisionPage, DecisionRecord
from backend.api.findings import Finding
from backend.api.fleet import FleetSnapshot, PodView
from workbench import _show, columns

if TYPE_CHECKING:
    import polars

R = TypeVar("R")


class Table(_show.Shown, Sequence[R], Generic[R]):
    """A list of API objects that shows itself as a table. `columns` says what each column of `.df()` means."""

    columns: ClassVar[tuple[columns.Column[Any], ...]]
    shown: ClassVar[tuple[str, ...]]
    """Columns of the repr; `.df()` has all."""
    title: ClassVar[str]
    empty: ClassVar[str] = "Nothing here."

    def __init__(self, rows: Sequence[R], *, at: float = 0.0) -> None:
        self.rows = list(rows)
        self.at = at

    def df(self) -> polars.DataFrame:
        """All columns, one row an object; times are UTC."""
        return columns.frame(self.columns, self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[R]:
        return iter(self.rows)

    def __getitem__(self, at: Any) -> Any:
        return self.rows[at]

    def __repr__(self) -> str:
        heading = f"{self.title} ({self._note()})"
        return f"{heading}\n{_show.text_table(self.shown, self._cells())}" if self.rows else f"{heading}\n{self.empty}"

    def _note(self) -> str:
        return f"{len(self.rows):,}" + (f", {_show.age(self.at)}" if self.at else "")

    def _cells(self) -> list[list[object]]:
        by_name = {column.name: column for column in self.columns}
        return [[by_name[name].read(row) for name in self.shown] for row in self.rows]

    def _facts(self) -> dict[str, Any]:
        cells = self._cells()
        return {
            "title": self.title,
            "note": self._note(),
            "headers": self.shown,
            "rows": cells[: _show.ROWS_SHOWN],
            "more": len(cells) - _show.ROWS_SHOWN,
            "empty": self.empty,
        }


class FleetTable(Table[PodView]):
    """Every pod with its last scraped load, and the fleet's own figures in `.snapshot`."""

    columns = columns.FLEET
    shown = ("pod", "state", "model", "running", "waiting", "kv_usage", "hit_rate", "ttft_ms", "restarts")
    title = "Fleet"
    empty = "No pods. Is the fleet file empty, or does the runtime not run? `workbench status` tells."

    def __init__(self, snapshot: FleetSnapshot) -> None:
        super().__init__(snapshot.pods, at=snapshot.at)
        self.snapshot = snapshot

    def __getitem__(self, at: Any) -> Any:
        """By position, or by name.

        >>> stack.workbench.fleet.snapshot()["vllm-0"].pod.ready
        True
        """
        if isinstance(at, str):
            for row in self.rows:
                if row.pod.name == at:
                    return row
            raise KeyError(at)
        return self.rows[at]

    def _ipython_key_completions_(self) -> list[str]:
        return [row.pod.name for row in self.rows]


class PodCard(_show.Shown):
    """One pod."""

    def __init__(self, view: PodView) -> None:
        self.view = view
        self.name = view.pod.name
        self.pod = view.pod
        self.load = view.load

    def df(self) -> polars.DataFrame:
        return columns.frame(columns.FLEET, [self.view])

    def _lines(self) -> list[list[object]]:
        return [[column.name, column.read(self.view)] for column in columns.FLEET if column.kind != "time"]

    def __repr__(self) -> str:
        return _show.text_table([f"Pod {self.name}", ""], self._lines(), limit=len(columns.FLEET))

    def _facts(self) -> dict[str, Any]:
        return {
            "title": f"Pod {self.name}",
            "note": _show.age(self.load.scraped_at),
            "headers": ("", ""),
            "rows": self._lines(),
            "more": 0,
            "empty": "",
        }


class ServicesTable(Table[ServiceView]):
    """Every StormService."""

    columns = columns.SERVICES
    shown = ("service", "mode", "ready", "paused", "roles", "images", "operation", "message")
    title = "Services"
    empty = "No StormService. `workbench plan create -f FILE` plans one."


class OperationsTable(Table[Operation]):
    """Applied plans, newest first."""

    columns = columns.OPERATIONS
    shown = ("operation", "service", "summary", "state", "steps_done", "steps_total", "user", "message")
    title = "Operations"
    empty = "Nothing was applied yet."


class AuditTable(Table[AuditRecord]):
    """Who did what, newest first. `.next` goes on with older ones."""

    columns = columns.AUDIT
    shown = ("user", "source", "action", "target", "outcome", "reason", "message")
    title = "Audit"
    empty = "Nobody acted yet."

    def __init__(self, page: AuditPage) -> None:
        super().__init__(page.items)
        self.next = page.next


class SourcesTable(Table[SourceState]):
    """The event stream of every rank of every pod."""

    columns = columns.SOURCES
    shown = ("pod", "rank", "status", "lag_ms", "blocks", "gaps", "missed", "restarts", "skipped", "reason")
    title = "KV event sources"
    empty = "No sources. Engines need the ZMQ publisher on: --kv-events-config."


class FindingsTable(Table[Finding]):
    """What is wrong or degraded, why, and what to do."""

    columns = columns.FINDINGS
    shown = ("severity", "title", "target", "cause", "fix")
    title = "Findings"
    empty = "Nothing is wrong."


class ProbeTable(Table[ProbeMatch]):
    """Which pod holds how much of a prompt, best first."""

    columns = columns.PROBE
    shown = ("pod", "matched_tokens", "share")
    title = "Prompt held by"
    empty = "No pod holds any of it."

    def __init__(self, result: ProbeResult) -> None:
        super().__init__(result.matches)
        self.result = result

    def _note(self) -> str:
        state = "" if self.result.index_state == "live" else f", index is {self.result.index_state}"
        return f"{self.result.tokens:,} tokens of {self.result.model or 'the only model'}{state}"


class DecisionsTable(Table[DecisionRecord]):
    """Requests through the gateway, newest first. `next` is what `before=` takes for older ones, None at the end."""

    columns = ()
    shown = (
        "id",
        "model",
        "policy",
        "chosen",
        "reason",
        "prompt_tokens",
        "predicted_tokens",
        "cached_tokens",
        "hit_class",
        "ttft_ms",
        "outcome",
    )
    title = "Decisions"
    empty = "No requests yet. `workbench replay conversation-sample` sends some."

    def __init__(self, page: DecisionPage) -> None:
        super().__init__(page.items)
        self.next = page.next

    def df(self) -> polars.DataFrame:
        """One row a decision; columns as in `backend.api.frames.DECISION_COLUMNS`."""
        return frames.decisions_frame(self.rows)

    def _cells(self) -> list[list[object]]:
        return [[getattr(row, name) for name in self.shown] for row in self.rows]


class SharedTable(Table[SharedPrefix]):
    """Prefixes that several pods hold."""

    columns = columns.SHARED
    shown = ("key", "tokens", "depth", "pods", "children")
    title = "Shared prefixes"
    empty = "No prefix is held twice."


class CacheMapResult(_show.Shown):
    """Pods × buckets of the prefix space, and what the fleet shares."""

    def __init__(self, data: CacheMap) -> None:
        order = sorted(range(len(data.pods)), key=lambda row: _natural(data.pods[row]))
        self.data = msgspec.structs.replace(
            data, **{name: [getattr(data, name)[row] for row in order] for name in ("pods", "blocks", "totals")}
        )

    @property
    def duplicate_ratio(self) -> float:
        """Copies per distinct block; 1 means that nothing is cached twice."""
        return self.data.copies / self.data.distinct if self.data.distinct else 1.0

    def df(self) -> polars.DataFrame:
        """One row a pod and bucket: `pod`, `bin`, `blocks`."""
        import polars as pl

        bins = self.data.bins
        return pl.DataFrame(
            {
                "pod": [pod for pod in self.data.pods for _ in range(bins)],
                "bin": list(range(bins)) * len(self.data.pods),
                "blocks": [count for row in self.data.blocks for count in row],
            },
            schema={"pod": pl.String, "bin": pl.Int64, "blocks": pl.Int64},
        )

    def shared(self) -> SharedTable:
        """The prefixes that most pods hold."""
        return SharedTable(self.data.shared, at=self.data.at)

    def plot(self) -> Any:
        """A heat map, a HoloViews object."""
        from workbench.viz import cache

        return cache.heat_map(self.data)

    def _note(self) -> str:
        stale = ", stale: the index's writer is away" if self.data.stale else ""
        return (
            f"{self.data.distinct:,} distinct blocks, {self.data.copies:,} copies, "
            f"{self.duplicate_ratio:.2f} a block, {_show.age(self.data.at)}{stale}"
        )

    def _rows(self) -> list[list[object]]:
        return [[pod, total, _spark(row)] for pod, total, row in zip(self.data.pods, self.data.totals, self.data.blocks, strict=True)]

    def __repr__(self) -> str:
        return f"Cache map ({self._note()})\n{_show.text_table(('pod', 'blocks', 'where'), self._rows())}"

    def _facts(self) -> dict[str, Any]:
        rows = self._rows()
        return {
            "title": "Cache map",
            "note": self._note(),
            "headers": ("pod", "blocks", "where in the prefix space"),
            "rows": rows[: _show.ROWS_SHOWN],
            "more": len(rows) - _show.ROWS_SHOWN,
            "empty": "No pod has reported a block yet.",
        }


def _natural(name: str) -> list[tuple[int, str]]:
    """`vllm-2` before `vllm-10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _spark(row: Sequence[int], width: int = 32) -> str:
    """A row of counts as `width` bars, each the sum of its share of buckets."""
    if not row:
        return ""
    width = min(width, len(row))
    edges = [len(row) * at // width for at in range(width + 1)]
    sums = [sum(row[low:high]) for low, high in itertools.pairwise(edges)]
    most = max(sums)
    return "".join(" " if not count else "▁▂▃▄▅▆▇█"[min(7, count * 8 // (most + 1))] for count in sums)
