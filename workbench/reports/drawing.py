"""Small SVG drawings without a plot library: they open anywhere, follow the page's light or dark colours, and need no script.

Every drawing has a sentence for those who cannot see it; the numbers stand in the table below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 860, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 12, 26
ROW = 22
LABELS = 12
"""Labels below a drawing at most."""

Series = Sequence[float | None]


def bars(labels: Sequence[str], parts: dict[str, Series], *, alt: str) -> str:
    """Stacked bars over time; `parts` from below upwards."""
    top = nice(max((sum(filled(column)) for column in zip(*parts.values(), strict=True)), default=0.0))
    inner, width = _inner(), (WIDTH - LEFT - RIGHT) / max(1, len(labels))
    shapes = []
    for at in range(len(labels)):
        below = 0.0
        for number, values in enumerate(parts.values()):
            value = values[at] or 0.0
            if value > 0:
                height = inner * value / top
                shapes.append(
                    f'<rect class="s{number}" x="{LEFT + at * width + 0.5:.1f}" y="{TOP + inner - below - height:.1f}" '
                    f'width="{max(1.0, width - 1):.1f}" height="{height:.1f}"/>'
                )
                below += height
    return _frame(labels, top, shapes, list(parts), alt)


def lines(labels: Sequence[str], parts: dict[str, Series], *, alt: str) -> str:
    """Lines over time; None breaks a line, and a lone point is drawn as one."""
    top = nice(max((value for values in parts.values() for value in filled(values)), default=0.0))
    inner, width = _inner(), (WIDTH - LEFT - RIGHT) / max(1, len(labels))
    shapes = []
    for number, values in enumerate(parts.values()):
        spots = [
            None if value is None else f"{LEFT + (at + 0.5) * width:.1f},{TOP + inner * (1 - value / top):.1f}"
            for at, value in enumerate(values)
        ]
        shapes += [f'<polyline class="l{number}" points="{" ".join(run)}"/>' for run in _runs(spots) if len(run) > 1]
        shapes += [
            f'<circle class="s{number}" cx="{spot.partition(",")[0]}" cy="{spot.partition(",")[2]}" r="2.2"/>' for spot in spots if spot
        ]
    return _frame(labels, top, shapes, list(parts), alt)


def rows(items: Sequence[tuple[str, float, str]], *, alt: str) -> str:
    """A horizontal bar each: name, value, and the value as text."""
    top = max((value for _, value, _ in items), default=0.0) or 1.0
    shapes = []
    for at, (name, value, text) in enumerate(items):
        y, width = at * ROW, (WIDTH - 330) * value / top
        shapes.append(f'<text x="186" y="{y + 15}" text-anchor="end">{escape(_clipped(name))}</text>')
        shapes.append(f'<rect class="s0" x="194" y="{y + 4}" width="{max(1.0, width):.1f}" height="{ROW - 8}"/>')
        shapes.append(f'<text x="{200 + width:.1f}" y="{y + 15}">{escape(text)}</text>')
    return _svg(len(items) * ROW + 4, shapes, alt)


def nice(largest: float) -> float:
    """The end of an axis: 1, 2 or 5 times a power of ten, at least `largest`.

    >>> nice(0), nice(7), nice(130), nice(0.3)
    (1.0, 10.0, 200.0, 0.5)
    """
    if not largest > 0 or math.isinf(largest):
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next((round(factor * power, 12) for factor in (1, 2, 5, 10) if largest <= factor * power * (1 + 1e-9)), 10 * power)


def filled(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _inner() -> float:
    return HEIGHT - TOP - BOTTOM


def _runs(spots: Sequence[str | None]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for spot in spots:
        if spot is None:
            found.append([])
        else:
            found[-1].append(spot)
    return found


def _frame(labels: Sequence[str], top: float, shapes: list[str], names: Sequence[str], alt: str) -> str:
    inner, width = _inner(), (WIDTH - LEFT - RIGHT) / max(1, len(labels))
    grid = []
    for share in (0.0, 0.5, 1.0):
        y = TOP + inner * (1 - share)
        grid.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        grid.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{top * share:,.6g}</text>')
    each = max(1, -(-len(labels) // LABELS))
    grid += [
        f'<text x="{LEFT + (at + 0.5) * width:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(labels[at])}</text>'
        for at in range(0, len(labels), each)
    ]
    legend = "".join(f'<span><i class="k{number}"></i>{escape(name)}</span>' for number, name in enumerate(names))
    return f'<p class="legend">{legend}</p>{_svg(HEIGHT, [*grid, *shapes], alt)}'


def _svg(height: int, shapes: Sequence[str], alt: str) -> str:
    text = escape(alt, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{text}"><title>{text}</title>{"".join(shapes)}</svg>'


def _clipped(name: str, width: int = 26) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"
