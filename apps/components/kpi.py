"""Key figures of the fleet: a number with its unit, what it means, and its last five minutes as a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apps.components.text import escape

WIDTH, HEIGHT = 120, 26


@dataclass(frozen=True)
class Kpi:
    """One figure. `tone` is "", "warn" or "bad"; `line` is oldest first, None where nothing was measured."""

    label: str
    value: str
    unit: str = ""
    sub: str = ""
    tone: str = ""
    line: Sequence[float | None] = ()
    ceiling: float | None = None
    """Top of the line's scale; None: the largest value."""


def render(kpis: Sequence[Kpi]) -> str:
    return f'<div class="kpis">{"".join(_one(kpi) for kpi in kpis)}</div>'


def _one(kpi: Kpi) -> str:
    unit = f" <small>{escape(kpi.unit)}</small>" if kpi.unit else ""
    return (
        f'<div class="kpi {kpi.tone}"><div class="label">{escape(kpi.label)}</div>'
        f'<div class="value">{escape(kpi.value)}{unit}</div><div class="sub" title="{escape(kpi.sub)}">{escape(kpi.sub) or "&nbsp;"}</div>'
        f"{_line(kpi.line, kpi.ceiling)}</div>"
    )


def _line(values: Sequence[float | None], ceiling: float | None) -> str:
    """The line as SVG, empty without values; gaps break it. At most 60 points: more cannot be seen and would be sent every two seconds."""
    if not values:
        return ""
    step = max(1, -(-len(values) // 60))
    shown = list(values)[::-1][::step][::-1]
    top = ceiling or max((value for value in shown if value is not None), default=0.0) or 1.0
    parts, pen = [], "M"
    for at, value in enumerate(shown):
        if value is None:
            pen = "M"
            continue
        x = WIDTH * at / max(1, len(shown) - 1)
        y = HEIGHT - 1 - (HEIGHT - 3) * min(1.0, value / top)
        parts.append(f"{pen}{x:.0f} {y:.1f}")
        pen = "L"
    path = "".join(parts)
    area = f'<path class="area" d="{path}L{WIDTH} {HEIGHT}L0 {HEIGHT}Z"/>' if path.count("M") == 1 and path.count("L") > 1 else ""
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">{area}<path class="line" d="{path}"/></svg>'
