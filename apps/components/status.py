"""The connection's state as data for the header's script, which words it and counts its age up between two messages."""

from __future__ import annotations

import html

from apps.core.snapshot import Connection


def render(connection: Connection, now: float, beat: int, *, failure: str = "") -> str:
    """An empty element whose attributes say it all; `assets/page.js` reads them."""
    age = connection.age(now)
    attributes = {
        "data-state": connection.shown(now),
        "data-age": "" if age is None else f"{age:.1f}",
        "data-reason": connection.reason,
        "data-beat": str(beat),
        "data-failure": failure,
    }
    return "<i " + " ".join(f'{name}="{html.escape(value)}"' for name, value in attributes.items()) + "></i>"
