"""Moments of cron expressions: tables against the calendar, and against a slow reading of the same rules minute by minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.control.cron import Cron, parse
from backend.core.errors import InvalidRequest


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


NEXT = [
    # id, expression, from, next
    ("every_minute", "* * * * *", "2026-11-25T08:00:30", "2026-11-25T08:01:00"),
    ("a_moment_itself_is_not_after_itself", "0 8 * * *", "2026-11-25T08:00:00", "2026-11-26T08:00:00"),
    ("just_before", "0 8 * * *", "2026-11-25T07:59:59.9", "2026-11-25T08:00:00"),
    ("steps", "*/20 * * * *", "2026-11-25T08:21:00", "2026-11-25T08:40:00"),
    ("a_start_with_steps", "5/20 * * * *", "2026-11-25T08:50:00", "2026-11-25T09:05:00"),
    ("range_with_step", "10-30/10 9 * * *", "2026-11-25T09:11:00", "2026-11-25T09:20:00"),
    ("over_midnight", "15 0 * * *", "2026-11-25T23:59:00", "2026-11-26T00:15:00"),
    ("over_the_year", "0 0 1 1 *", "2026-11-25T08:00:00", "2027-01-01T00:00:00"),
    ("names", "0 6 * jan mon-fri", "2026-11-25T08:00:00", "2027-01-01T06:00:00"),
    ("sunday_as_seven", "0 6 * * 7", "2026-11-25T08:00:00", "2026-11-29T06:00:00"),
    ("sunday_as_zero", "0 6 * * 0", "2026-11-25T08:00:00", "2026-11-29T06:00:00"),
    ("either_day_field_fits", "0 6 13 * fri", "2026-11-25T08:00:00", "2026-11-27T06:00:00"),
    ("leap_day", "0 0 29 2 *", "2026-11-25T08:00:00", "2028-02-29T00:00:00"),
    ("leap_day_over_2100", "0 0 29 2 *", "2096-03-01T00:00:00", "2104-02-29T00:00:00"),
    ("short_form", "@weekly", "2026-11-25T08:00:00", "2026-11-29T00:00:00"),
    ("capitals_and_blanks", "  0  6 * * MON ", "2026-11-25T08:00:00", "2026-11-30T06:00:00"),
]


@pytest.mark.parametrize(("text", "start", "expected"), [case[1:] for case in NEXT], ids=[case[0] for case in NEXT])
def test_the_next_moment(text, start, expected):
    found = parse(text).after(seconds(start))
    assert found == seconds(expected)
    assert parse(text).at_or_before(found) == found


@pytest.mark.parametrize("text", ["0 0 30 2 *", "0 0 31 4,6,9,11 *"])
def test_a_day_that_no_calendar_has_never_comes(text):
    assert parse(text).after(seconds("2026-11-25T08:00:00")) is None
    assert parse(text).at_or_before(seconds("2026-11-25T08:00:00")) is None


def test_the_last_moment_is_found_backwards():
    daily = parse("0 6 * * *")
    assert daily.at_or_before(seconds("2026-11-25T05:59:00")) == seconds("2026-11-24T06:00:00")
    assert parse("0 0 29 2 *").at_or_before(seconds("2026-11-25T05:59:00")) == seconds("2024-02-29T00:00:00")


WRONG = [
    ("nothing", "", "0 fields"),
    ("six_fields", "0 0 6 * * *", "6 fields"),
    ("minute_60", "60 * * * *", "minute: '60' does not lie between 0 and 59"),
    ("hour_24", "0 24 * * *", "hour"),
    ("day_0", "0 0 0 * *", "day of month"),
    ("unknown_month", "0 0 1 foo *", "month: 'foo'"),
    ("weekday_8", "0 0 * * 8", "day of week"),
    ("backwards", "30-10 * * * *", "minute: '30-10' is empty"),
    ("step_0", "*/0 * * * *", "is empty"),
    ("star_range", "*-5 * * * *", "cannot be read"),
    ("negative", "-5 * * * *", "cannot be read"),
    ("empty_list_part", "1,,2 * * * *", "cannot be read"),
    ("unknown_short_form", "@never", "1 fields"),
]


@pytest.mark.parametrize(("text", "words"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_wrong_expression_is_told_which_field(text, words):
    with pytest.raises(InvalidRequest) as raised:
        parse(text)
    assert words in raised.value.message
    assert "0 6 * * *" in raised.value.fix


def numbers(low: int, high: int) -> st.SearchStrategy[str]:
    one = st.integers(low, high)
    plain = one.map(str)
    spans = st.tuples(one, one, st.integers(1, 9)).map(lambda t: f"{min(t[:2])}-{max(t[:2])}/{t[2]}")
    stars = st.integers(1, 9).map(lambda step: f"*/{step}")
    return st.one_of(st.just("*"), plain, stars, st.lists(st.one_of(plain, spans), min_size=1, max_size=3).map(",".join))


EXPRESSIONS = st.tuples(numbers(0, 59), numbers(0, 23), numbers(1, 31), numbers(1, 12), numbers(0, 7)).map(" ".join)
MOMENTS = st.integers(1_700_000_000, 1_900_000_000)


def fits(cron: Cron, at: datetime) -> bool:
    days = [at.day in cron.days, at.isoweekday() % 7 in cron.weekdays]
    either = not (cron.any_day or cron.any_weekday)
    return at.minute in cron.minutes and at.hour in cron.hours and at.month in cron.months and (any(days) if either else all(days))


@settings(max_examples=60, deadline=None)
@given(EXPRESSIONS, MOMENTS)
def test_nothing_between_here_and_the_next_moment_fits(text, start):
    cron = parse(text)
    found = cron.after(start)
    at = datetime.fromtimestamp(start // 60 * 60 + 60, UTC)
    for _ in range(3000):
        if fits(cron, at):
            assert found == at.timestamp()
            assert cron.at_or_before(found + 59) == found
            return
        at += timedelta(minutes=1)
    assert found is None or found >= at.timestamp()
