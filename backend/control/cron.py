"""Cron expressions of five fields, in UTC: `minute hour day-of-month month day-of-week`. Pure.

As in Vixie's cron: `*`, numbers, names of months and weekdays, ranges, lists and steps; 7 is Sunday too; when both day fields are
restricted, a day that fits either one counts. `@hourly @daily @weekly @monthly @yearly` stand for the usual expressions. UTC has no
daylight saving, so that no moment comes twice or never.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from backend.core.errors import InvalidRequest

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
SHORT = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
YEARS = 8
"""How far one looks for the next moment: from 29 February to the next there can be eight years (2096 to 2104)."""

_PART = re.compile(r"(\*|[a-z0-9]+)(?:-([a-z0-9]+))?(?:/([0-9]+))?")


@dataclass(frozen=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    first_name: int = 0


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, MONTHS, 1),
    _Field("day of week", 0, 7, DAYS),
)


@dataclass(frozen=True)
class Cron:
    """The moments of an expression; `weekdays` counts from Sunday = 0."""

    text: str
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_day: bool
    any_weekday: bool

    def after(self, moment: float) -> float | None:
        """The first moment later than `moment` (seconds since 1970); None when there is none within eight years."""
        first = _minute(moment) + timedelta(minutes=1)
        for ahead in range(YEARS * 366 + 1):
            day = first if not ahead else first.replace(hour=0, minute=0) + timedelta(days=ahead)
            if self._fits_day(day):
                for hour in sorted(self.hours):
                    for minute in sorted(self.minutes) if hour >= day.hour else ():
                        if (hour, minute) >= (day.hour, day.minute):
                            return day.replace(hour=hour, minute=minute).timestamp()
        return None

    def at_or_before(self, moment: float) -> float | None:
        """The last moment that is not later than `moment`; None when there is none within eight years."""
        last = _minute(moment)
        for back in range(YEARS * 366 + 1):
            day = last if not back else last.replace(hour=23, minute=59) - timedelta(days=back)
            if self._fits_day(day):
                for hour in sorted(self.hours, reverse=True):
                    for minute in sorted(self.minutes, reverse=True) if hour <= day.hour else ():
                        if (hour, minute) <= (day.hour, day.minute):
                            return day.replace(hour=hour, minute=minute).timestamp()
        return None

    def _fits_day(self, at: datetime) -> bool:
        if at.month not in self.months:
            return False
        day, weekday = at.day in self.days, at.isoweekday() % 7 in self.weekdays
        return (day and weekday) if self.any_day or self.any_weekday else (day or weekday)


@functools.lru_cache(maxsize=256)
def parse(text: str) -> Cron:
    """The expression's moments. Raises InvalidRequest that names the field.

    >>> parse("*/20 6 * * mon-fri").minutes == {0, 20, 40}
    True
    """
    words = SHORT.get(text.strip().lower(), text).lower().split()
    if len(words) != len(_FIELDS):
        raise InvalidRequest(
            f"`cron` is {text!r}: {len(words)} fields instead of 5.",
            param="cron",
            fix="Write minute, hour, day of month, month, day of week, such as `0 6 * * *` for every day at six (UTC).",
        )
    minutes, hours, days, months, weekdays = (_values(word, field, text) for word, field in zip(words, _FIELDS, strict=True))
    return Cron(
        text=" ".join(words),
        minutes=minutes,
        hours=hours,
        days=days,
        months=months,
        weekdays=frozenset(day % 7 for day in weekdays),
        any_day=words[2].startswith("*"),
        any_weekday=words[4].startswith("*"),
    )


def _values(word: str, field: _Field, text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in word.split(","):
        matched = _PART.fullmatch(part)
        if matched is None or (matched[1] == "*" and matched[2]):
            raise _wrong(text, field, f"{part!r} cannot be read")
        low = field.low if matched[1] == "*" else _number(matched[1], field, text)
        # As cron reads it: `5/15` means from 5 on, `5` means 5 alone.
        last = field.high if matched[1] == "*" or matched[3] else low
        high = _number(matched[2], field, text) if matched[2] else last
        step = int(matched[3] or 1)
        if low > high or not step:
            raise _wrong(text, field, f"{part!r} is empty")
        found.update(range(low, high + 1, step))
    return frozenset(found)


def _number(word: str, field: _Field, text: str) -> int:
    if word in field.names:
        return field.names.index(word) + field.first_name
    if not word.isdecimal() or not field.low <= int(word) <= field.high:
        raise _wrong(text, field, f"{word!r} does not lie between {field.low} and {field.high}")
    return int(word)


def _wrong(text: str, field: _Field, what: str) -> InvalidRequest:
    return InvalidRequest(f"`cron` is {text!r}: {field.name}: {what}.", param="cron", fix="Such as `0 6 * * *` for every day at six (UTC).")


def _minute(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, UTC).replace(second=0, microsecond=0)
