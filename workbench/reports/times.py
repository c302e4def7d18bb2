"""Moments as people write them, always UTC: ISO dates, seconds since 1970, datetimes, or how long ago."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from workbench.errors import UsageError
from workbench.reports.model import Window

DAY_S = 86_400.0
LONGEST_S = 31 * DAY_S
Moment = str | float | datetime | None

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(min|m|h|d)")
_UNITS = {"m": 60.0, "min": 60.0, "h": 3600.0, "d": DAY_S}
_FIX = "Write 2026-11-25, 2026-11-25T06:00, seconds since 1970, or an age such as 24h."


def window(since: Moment, until: Moment, now: float) -> Window:
    """The window between both; without `until` it ends now, without `since` it is a day long. Raises UsageError."""
    end = now if until is None else seconds(until, now, "until")
    begin = end - DAY_S if since is None else seconds(since, now, "since")
    if not begin < end:
        raise UsageError("The report's time is empty: `since` must lie before `until`.", fix=_FIX)
    if end - begin > LONGEST_S:
        raise UsageError("A report covers 31 days at most.", fix="Choose a later `since`.")
    return Window(begin, end)


def seconds(given: str | float | datetime, now: float, name: str = "time") -> float:
    """
    >>> seconds("2026-11-25", now=0.0), seconds("2026-11-25T01:00+01:00", now=0.0), seconds("6h", now=30_000.0)
    (1795564800.0, 1795564800.0, 8400.0)
    """
    try:
        if isinstance(given, str):
            text = given.strip()
            if ago := _AGO.fullmatch(text):
                return now - float(ago[1]) * _UNITS[ago[2]]
            given = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else datetime.fromisoformat(text)
        if isinstance(given, datetime):
            return (given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp()
        if not (math.isfinite(given) and 0 <= given <= 250e9):
            raise ValueError("it lies outside the calendar")
        return float(given)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"`{name}` is {given!r}, which is no moment: {error}.", fix=_FIX) from error
