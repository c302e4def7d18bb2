"""What a report is made of: sections with a sentence or two, a drawing, a table. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Window:
    """since <= arrival < until, seconds since 1970."""

    since: float
    until: float

    @property
    def hours(self) -> float:
        return (self.until - self.since) / 3600

    def text(self) -> str:
        """
        >>> Window(1_790_000_000.0, 1_790_086_400.0).text()
        '2026-09-21 14:13 to 2026-09-22 14:13 UTC (24 h)'
        """
        return f"{moment(self.since)} to {moment(self.until)} UTC ({self.hours:.3g} h)"


@dataclass(frozen=True)
class Table:
    """A named table; `meanings` says what columns mean where the name does not, `note` what the table leaves out."""

    name: str
    rows: pl.DataFrame
    empty: str
    """Why there may be no rows, and what would make some."""
    meanings: dict[str, str] = field(default_factory=dict)
    shown: int = 50
    """Rows on the page; files have all."""
    folded: bool = False
    """Long and mostly told by the drawing: closed until somebody opens it."""


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it. `drawing` is SVG made by `workbench.reports.drawing`."""

    title: str
    lines: Sequence[str] = ()
    drawing: str = ""
    tables: Sequence[Table] = ()
    problem: str = ""
    """Why this part could not be read; it is then all that the section says."""


@dataclass(frozen=True)
class Figure:
    """A headline number with its unit, as text; `note` is small print."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Report:
    """A finished report. `facts` are its headline numbers for programs."""

    name: str
    title: str
    window: Window
    made_at: float
    figures: Sequence[Figure]
    facts: dict[str, Any]
    sections: Sequence[Section]

    @property
    def tables(self) -> dict[str, pl.DataFrame]:
        """Every table by its name."""
        return {table.name: table.rows for section in self.sections for table in section.tables}

    @property
    def problems(self) -> list[str]:
        """Parts that could not be read."""
        return [f"{section.title}: {section.problem}" for section in self.sections if section.problem]


def moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
