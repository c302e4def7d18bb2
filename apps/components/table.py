"""Tables that follow live data: cells are patched where only values changed, the rows are sent again only when rows came or went.

The only module of the dashboard that touches pandas, since Tabulator wants it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import panel as pn
from bokeh.models.widgets.tables import CellFormatter, HTMLTemplateFormatter

from apps.core.theme import asset

Value = str | float | int | None
Row = tuple[Value, ...]

SETTLED_S = 20.0
"""A patch that meets a Tabulator which is still being built throws in the browser (panel 1.9: `updateOrAddData` does not look); data
that is sent whole is simply taken up. So for its first seconds a table is only ever sent whole."""
MOST_PATCHES = 400
"""Each patched cell costs pandas some 50 us; beyond this many, the page of rows that is on screen is sent again instead."""

STATE = '<span class="st st-<%- value %>"><%- value.replace(/_/g, " ") %></span>'
MONO = '<span class="mono"><%- value %></span>'
NAME = '<span class="mono tail"><bdi><%- value %></bdi></span>'
"""A name that keeps its end when there is no room: that is where long pod names differ."""


@dataclass(frozen=True)
class Column:
    """One column: field, heading, how a cell looks (a template over `value`; `<%- %>` escapes), pixels; those without share the rest."""

    name: str
    title: str
    template: str = "<%- value %>"
    width: int | None = None
    right: bool = False
    numeric: bool = False


def number(digits: int = 0, unit: str = "") -> str:
    """Template of a number; NaN shows as a dash."""
    suffix = f"&nbsp;{unit}" if unit else ""
    return (
        "<% if (value === null || isNaN(value)) { %><span class='none'>–</span><% } else { %>"
        f"<%= Number(value).toLocaleString('en', {{minimumFractionDigits: {digits}, maximumFractionDigits: {digits}}}) %>{suffix}<% }} %>"
    )


def time_spent() -> str:
    """Template of milliseconds that turn into seconds where seconds are easier to read."""
    return (
        "<% if (value === null || isNaN(value)) { %><span class='none'>–</span><% } else if (value >= 1000) { %>"
        "<%= (value / 1000).toFixed(2) %>&nbsp;s<% } else { %><%= value.toFixed(0) %>&nbsp;ms<% } %>"
    )


def bar() -> str:
    """Template of a share 0..1 as a bar with its percentage."""
    return (
        "<% if (value === null || isNaN(value)) { %><span class='none'>–</span><% } else { %>"
        "<span class='bar'><i style='width:<%= Math.min(100, value * 100).toFixed(1) %>%'></i>"
        "<b><%= (value * 100).toFixed(0) %> %</b></span><% } %>"
    )


class LiveTable:
    """A Tabulator over keyed rows. `update` decides between patching and sending anew."""

    def __init__(self, columns: Sequence[Column], *, page_size: int, placeholder: str, on_pick: Callable[[str], None]) -> None:
        self.columns = columns
        self._keys: list[str] = []
        self._cells: list[Row] = []
        self._on_pick = on_pick
        self._made_at = time.monotonic()
        self.widget = pn.widgets.Tabulator(
            self._frame([]),
            show_index=False,
            disabled=True,
            selectable=1,
            pagination="remote",
            page_size=page_size,
            theme="simple",
            layout="fit_columns",
            titles={column.name: column.title for column in columns},
            formatters={column.name: _formatter(column) for column in columns},
            text_align={column.name: "right" for column in columns if column.right},
            header_align={column.name: "right" for column in columns if column.right},
            widths={column.name: column.width for column in columns if column.width},
            configuration={
                "placeholder": placeholder,
                "columnDefaults": {"tooltip": True},
            },
            stylesheets=[asset("table.css")],
            sizing_mode="stretch_width",
            margin=0,
        )
        self.widget.on_click(self._clicked)

    def update(self, rows: Sequence[tuple[str, Row]]) -> None:
        """Show `rows`, each with the key that `on_pick` is given, in this order."""
        cells = [row for _, row in rows]
        self._keys = [key for key, _ in rows]
        if cells == self._cells:
            return
        settled = time.monotonic() - self._made_at > SETTLED_S
        patches = self._patches(cells) if settled and len(cells) == len(self._cells) else None
        if patches is None:
            self.widget.value = self._frame(cells)
        elif patches:
            self.widget.patch(patches, as_index=False)
        self._cells = cells

    def _patches(self, cells: list[Row]) -> dict[str, list[tuple[int, Value]]] | None:
        """Changed cells by column; None when so many changed that sending the visible page again is cheaper."""
        patches: dict[str, list[tuple[int, Value]]] = {}
        changed = 0
        for at, (new, old) in enumerate(zip(cells, self._cells, strict=True)):
            if new == old:
                continue
            for column, value, before in zip(self.columns, new, old, strict=True):
                if value != before and not (_missing(value) and _missing(before)):
                    patches.setdefault(column.name, []).append((at, math.nan if value is None else value))
                    changed += 1
        return None if changed > MOST_PATCHES else patches

    def _frame(self, cells: list[Row]) -> Any:
        columns = list(zip(*cells, strict=True)) if cells else [()] * len(self.columns)
        return pd.DataFrame(
            {
                column.name: pd.Series(list(values), dtype="float64" if column.numeric else "object")
                for column, values in zip(self.columns, columns, strict=True)
            }
        )

    def _clicked(self, event: Any) -> None:
        if 0 <= event.row < len(self._keys):
            self._on_pick(self._keys[event.row])


def _formatter(column: Column) -> CellFormatter:
    return HTMLTemplateFormatter(template=column.template)


def _missing(value: Value) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
