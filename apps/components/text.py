"""Numbers and times as people read them, with units; and HTML that is always escaped."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime

NONE = "–"

escape = html.escape


def count(value: float | None) -> str:
    """Whole things: `1,204`, beyond a million `1.2 M`."""
    if value is None or math.isnan(value):
        return NONE
    if abs(value) >= 1e6:
        return f"{value / 1e6:.1f} M"
    return f"{value:,.0f}"


def rate(value: float | None) -> str:
    """Per second: two digits that mean something."""
    if value is None or math.isnan(value):
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 or value == 0 else f"{value:.2f}"


def percent(share: float | None, digits: int = 0) -> str:
    return NONE if share is None or math.isnan(share) else f"{share * 100:.{digits}f} %"


def milliseconds(value: float | None) -> str:
    """`0.42 ms`, `38 ms`, `1.24 s`."""
    if value is None or math.isnan(value):
        return NONE
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms" if value >= 1 else f"{value:.2f} ms"


def duration(seconds: float | None) -> str:
    """The largest unit that leaves at least one: `42 s`, `13 min`, `7 h`, `3 d`."""
    if seconds is None or seconds < 0:
        return NONE
    for unit, length in (("d", 172_800.0), ("h", 7200.0), ("min", 120.0)):
        if seconds >= length:
            return f"{seconds / (length / 2):.0f} {unit}"
    return f"{seconds:.0f} s"


def clock(at: float) -> str:
    """Time of day in UTC with milliseconds."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S.%f")[:-3]


def plural(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def natural(name: str) -> tuple[object, ...]:
    """Sort key by which `vllm-10` follows `vllm-9`."""
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", name))


def state_box(title: str, body: str, *, kind: str = "empty", sign: str = "○") -> str:
    """A designed empty, loading or error state. `body` is HTML, `title` is not."""
    return f'<div class="state {kind}"><span class="sign" aria-hidden="true">{sign}</span><div><b>{escape(title)}</b>{body}</div></div>'


def html_table(headers: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], *, row_classes: Sequence[str] = ()) -> str:
    """A small static table. Headers are (text, class); cells are HTML already."""
    head = "".join(f'<th class="{cls}" scope="col">{escape(text)}</th>' for text, cls in headers)
    body = []
    for at, row in enumerate(rows):
        cells = "".join(f'<td class="{cls}">{cell}</td>' for (_, cls), cell in zip(headers, row, strict=True))
        body.append(f'<tr class="{row_classes[at] if row_classes else ""}">{cells}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
