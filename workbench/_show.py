"""How objects show themselves: plain text always, HTML where a notebook asks for it. Made from what is at hand, never with I/O."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"
ROWS_SHOWN = 20
WIDEST_CELL = 60
"""Characters of a cell in plain text; HTML wraps instead."""


class Shown:
    """Base of everything with a rich repr: `template` names a file in templates/, `_facts()` is what it may use."""

    template: ClassVar[str] = "table.html.j2"

    def _facts(self) -> dict[str, Any]:
        raise NotImplementedError

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": render(self.template, **self._facts())}


def render(template: str, **facts: Any) -> str:
    return _environment().get_template(template).render(**facts)


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["value"] = value
    return environment


def value(item: object) -> str:
    """One cell of a table, for people."""
    if item is None:
        return "–"
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, float):
        return f"{item:,.0f}" if item.is_integer() or abs(item) >= 1000 else f"{item:.3g}"
    if isinstance(item, int):
        return f"{item:,}"
    if isinstance(item, (list, tuple)):
        return ", ".join(map(str, item))
    return str(item)


def age(at: float) -> str:
    """How long ago `at` was, in words short enough for a caption.

    >>> age(0.0)
    'never'
    """
    if not at:
        return "never"
    seconds = max(0.0, time.time() - at)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.1f} s ago"


def text_table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, limit: int = ROWS_SHOWN) -> str:
    """Aligned columns; numbers to the right.

    >>> print(text_table(["pod", "running"], [["vllm-0", 12], ["vllm-1", 3]]))
    pod     running
    vllm-0       12
    vllm-1        3
    """
    rows = list(rows)
    cells = [[_clip(value(cell)) for cell in row] for row in rows[:limit]]
    numeric = [
        all(cell is None or (isinstance(cell, (int, float)) and not isinstance(cell, bool)) for cell in column)
        for column in (zip(*rows[:limit], strict=True) if rows else [()] * len(headers))
    ]
    widths = [max([len(header), *(len(row[at]) for row in cells)]) for at, header in enumerate(headers)]
    lines = [
        "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(line, widths, numeric, strict=True))
        for line in [list(headers), *cells]
    ]
    if len(rows) > limit:
        lines.append(f"... {len(rows) - limit:,} more rows; .df() has all")
    return "\n".join(line.rstrip() for line in lines)


def _clip(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WIDEST_CELL else f"{line[: WIDEST_CELL - 1]}…"
