"""A report as one HTML page: styles and drawings inside, no script, not one address outside."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from workbench import _show
from workbench.reports.model import Report, Table, moment

if TYPE_CHECKING:
    import polars as pl

_RATES = ("share", "_rate", "within_a_block", "kv_usage")


def html(report: Report) -> str:
    """The whole document."""
    sections = [
        {
            "title": section.title,
            "lines": section.lines,
            "problem": section.problem,
            "drawing": section.drawing,
            "tables": [_table(table) for table in section.tables],
        }
        for section in report.sections
    ]
    return _show.render(
        "report.html.j2",
        title=report.title,
        window=report.window.text(),
        made_at=f"{moment(report.made_at)} UTC",
        figures=report.figures,
        sections=sections,
    )


def _table(table: Table) -> dict[str, Any]:
    rows = table.rows.head(table.shown)
    return {
        "name": table.name.replace("_", " "),
        "empty": "" if table.rows.height else table.empty,
        "headers": [(name.replace("_", " "), table.meanings.get(name, ""), _numeric(rows, name)) for name in rows.columns],
        "rows": [[(cell(name, value), _numeric(rows, name)) for name, value in row.items()] for row in rows.iter_rows(named=True)],
        "folded": table.folded,
        "more": table.rows.height - rows.height,
    }


def _numeric(rows: pl.DataFrame, name: str) -> bool:
    return rows.schema[name].is_numeric()


def cell(name: str, value: object) -> str:
    """One value for people; shares as percentages, moments to the second.

    >>> cell("hit_rate", 0.5), cell("ttft_p95_ms", 1234.5), cell("requests", 12345), cell("reason", None)
    ('50.0%', '1,234', '12,345', '–')
    """
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        if name.endswith(_RATES):
            return f"{value:.1%}"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"
    return _show.value(value)
