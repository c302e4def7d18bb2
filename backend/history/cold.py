"""Decisions in Parquet: pages, single records, the newest rows, and the whole as a table. Synchronous; call it in a thread.

Files may vanish while they are read (compaction, size cap): the look is then repeated. A damaged file is skipped, remembered in
`corrupt` and told to people as a finding. Two files may hold the same row after a crash: rows are unique by id here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from backend.api import frames
from backend.api.decisions import DecisionRecord
from backend.core.errors import Unavailable
from backend.history import files, records
from backend.history.model import NEWEST, Filter, Key

if TYPE_CHECKING:
    import polars as pl

T = TypeVar("T")
ATTEMPTS = 5
"""Looks at a folder whose files keep vanishing; compaction takes one, the size cap another."""
SLICE_ROWS = 1_000
_FILTERS = {"model": "model", "pod": "chosen", "policy": "policy", "outcome": "outcome"}


class ColdDecisions:
    """A history folder, read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corrupt: dict[str, str] = {}
        self._described: dict[Path, files.HistoryFile] = {}

    def catalogue(self) -> list[files.HistoryFile]:
        """Readable files, the one with the newest row first."""
        found = []
        paths = files.listing(self.folder)
        for path in paths:
            if self._name(path) in self.corrupt:
                continue
            try:
                found.append(self._describe(path))
            except FileNotFoundError:
                continue
            except files.CorruptFile as error:
                self.corrupt[self._name(path)] = error.message
        for path in self._described.keys() - set(paths):
            self._described.pop(path, None)
        for name in self.corrupt.keys() - {self._name(path) for path in paths}:
            self.corrupt.pop(name, None)
        return sorted(found, key=lambda file: file.newest_us, reverse=True)

    def learn(self, file: files.HistoryFile) -> None:
        """Remember a file that this process has just written, so that nobody needs to read its footer."""
        self._described[file.path] = file

    def page(self, wanted: Filter, limit: int, before: Key = NEWEST) -> list[DecisionRecord]:
        """At most `limit` matching decisions older than `before`, newest first."""
        return frames.decision_records(self._steady(lambda: self._newest(_conditions(wanted, before), limit, before)))

    def newest(self, limit: int) -> list[bytes]:
        """The newest decisions encoded, newest first. Row by row in slices: as objects, 20,000 rows would take 60 MB for good."""
        if not files.listing(self.folder):
            return []
        table = self._steady(lambda: self._newest([], limit))
        return [records.encode_record(record) for part in table.iter_slices(SLICE_ROWS) for record in frames.decision_records(part)]

    def get(self, record_id: str) -> DecisionRecord | None:
        import polars as pl

        def look() -> pl.DataFrame:
            for file in self.catalogue():
                rows = self._scan(file.path, None, pl.col("id") == record_id)
                if rows is not None and rows.height:
                    return rows.head(1)
            return pl.DataFrame(schema=frames.decisions_schema())

        found = frames.decision_records(self._steady(look))
        return found[0] if found else None

    def of_trace(self, trace: str) -> DecisionRecord | None:
        """The newest decision whose id is `trace` with a part of its own behind it."""
        import polars as pl

        newest = self._steady(lambda: self._newest([pl.col("id").str.starts_with(f"{trace}-")], 1))
        found = frames.decision_records(newest)
        return found[0] if found else None

    def known(self, record_ids: set[str], oldest_us: int, newest_us: int) -> set[str]:
        """Those of `record_ids` that files hold, given that they arrived between both times."""
        import polars as pl

        def look() -> set[str]:
            found: set[str] = set()
            for file in self.catalogue():
                if file.newest_us >= oldest_us and file.oldest_us <= newest_us:
                    rows = self._scan(file.path, ["id"], pl.col("id").is_in(sorted(record_ids)))
                    found.update(rows["id"].to_list() if rows is not None else ())
            return found

        return self._steady(look)

    def whole(self, path: Path) -> pl.DataFrame | None:
        """All rows of one file; None when it is damaged. Raises FileNotFoundError."""
        return self._scan(path, None)

    def between(self, oldest_us: int | None, conditions: list[pl.Expr]) -> pl.DataFrame:
        """Matching rows of all files that reach up to `oldest_us`, oldest first, unique by id."""
        import polars as pl

        def look() -> pl.DataFrame:
            parts = [pl.DataFrame(schema=frames.decisions_schema())]
            for file in self.catalogue():
                if oldest_us is None or file.newest_us >= oldest_us:
                    rows = self._scan(file.path, None, *conditions)
                    parts += [rows] if rows is not None else []
            return pl.concat(parts).unique("id", keep="any").sort("at", "id")

        return self._steady(look)

    def _newest(self, conditions: list[pl.Expr], limit: int, before: Key = NEWEST) -> pl.DataFrame:
        """Matching rows, newest first, looking into no more files than needed."""
        import polars as pl

        best = pl.DataFrame(schema=frames.decisions_schema())
        for file in self.catalogue():
            if best.height >= limit and file.newest_us < int(best["at"].to_physical()[-1]):
                break
            if file.oldest_us > before.at_us:
                continue
            rows = self._file_page(file.path, conditions, limit)
            if rows is not None and rows.height:
                best = pl.concat([best, rows]).unique("id", keep="any").sort("at", "id", descending=True).head(limit)
        return best

    def _file_page(self, path: Path, conditions: list[pl.Expr], limit: int) -> pl.DataFrame | None:
        """Two passes: the narrow one finds the page's last time, the wide one reads only the row groups that it touches."""
        import polars as pl

        narrow = self._scan(path, ["at", "id"], *conditions)
        if narrow is None or not narrow.height:
            return None
        last = narrow.top_k(limit, by=["at", "id"])["at"].min()
        rows = self._scan(path, None, *conditions, pl.col("at") >= last)
        return rows.sort("at", "id", descending=True).head(limit) if rows is not None else None

    def _scan(self, path: Path, columns: list[str] | None, *where: pl.Expr) -> pl.DataFrame | None:
        """None for a file that turns out to be damaged; its footer can be fine when its pages are not."""
        try:
            found = files.scan(path, columns, *where)
        except files.CorruptFile as error:
            self.corrupt[self._name(path)] = error.message
            return None
        return _aligned(found) if columns is None else found

    def _steady(self, look: Callable[[], T]) -> T:
        for _ in range(ATTEMPTS):
            try:
                return look()
            except FileNotFoundError:
                continue
        raise Unavailable("The history's files change too fast to be read.", fix="Try again in a few seconds.")

    def _describe(self, path: Path) -> files.HistoryFile:
        known = self._described.get(path)
        if known is None:
            known = self._described[path] = files.describe(path)
        return known

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.folder))


def read_decisions(folder: Path, *, since: float | None = None, until: float | None = None, wanted: Filter | None = None) -> pl.DataFrame:
    """All written decisions with `since` <= arrival < `until` (seconds since 1970), oldest first, unique by id."""
    import polars as pl

    oldest = frames.microseconds(since) if since is not None else None
    conditions = _conditions(wanted or Filter(), Key(frames.microseconds(until), "") if until is not None else NEWEST)
    if oldest is not None:
        conditions.append(pl.col("at").to_physical() >= oldest)
    return ColdDecisions(folder).between(oldest, conditions)


def _conditions(wanted: Filter, before: Key) -> list[pl.Expr]:
    import polars as pl

    made = [pl.col(column) == value for field, column in _FILTERS.items() if (value := getattr(wanted, field))]
    if before != NEWEST:
        at = pl.col("at").to_physical()
        made.append((at < before.at_us) | ((at == before.at_us) & (pl.col("id") < before.id)))
    return made


def _aligned(found: pl.DataFrame) -> pl.DataFrame:
    """`found` with exactly today's columns: a file of an older version lacks some, one of a newer version has more."""
    schema = frames.decisions_schema()
    if found.schema == schema:
        return found
    missing = [name for name in schema if name not in found.columns]
    defaults = frames.decisions_frame([DecisionRecord(id="", at=0.0)]).select(missing)
    return (found.join(defaults, how="cross") if missing else found).select(schema.names()).cast(schema)
