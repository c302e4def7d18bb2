"""Decisions as a table and back. Not here: files (test_hot_and_cold, test_upkeep)."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.api import frames
from backend.api.decisions import DecisionRecord, PrefillChoice
from tests.fakes.records import AT, record

texts = st.text(st.characters(codec="utf-8"), max_size=5)
counts = st.integers(0, 2**40)
numbers = st.floats(0, 1e9)
prefills = st.builds(
    PrefillChoice,
    chosen=texts,
    group=texts,
    candidates=st.lists(texts, max_size=3),
    groups=st.lists(texts, max_size=3),
    terms=st.dictionaries(texts, st.lists(numbers, max_size=3), max_size=3),
    in_flight=counts,
    wait_ms=st.none() | numbers,
)
made = st.builds(
    record,
    id=texts,
    at=st.integers(0, 2**52).map(lambda microseconds: microseconds / 1e6),
    model=texts,
    stream=st.booleans(),
    candidates=st.lists(texts, max_size=3),
    attempts=st.lists(texts, max_size=2),
    terms=st.dictionaries(texts, st.lists(numbers, max_size=3), max_size=3),
    predicted_tokens=st.none() | counts,
    cached_tokens=st.none() | counts,
    ttft_ms=st.none() | numbers,
    prefill=st.none() | prefills,
)


@settings(max_examples=50, deadline=None)
@given(given_records=st.lists(made, max_size=5))
def test_a_record_survives_the_table(given_records):
    table = frames.decisions_frame(given_records)
    assert table.schema == frames.decisions_schema()
    assert frames.decision_records(table) == given_records


def test_every_field_of_a_record_is_a_documented_column_in_the_same_order():
    fields = [field.name for field in msgspec.structs.fields(DecisionRecord)]
    assert [column.name for column in frames.DECISION_COLUMNS] == fields
    assert all(column.meaning.endswith(".") for column in frames.DECISION_COLUMNS)


def test_every_field_of_a_prefill_choice_is_in_its_column_in_the_same_order():
    assert list(frames.PREFILL_FIELDS) == [field.name for field in msgspec.structs.fields(PrefillChoice)]


def test_a_table_says_which_pods_computed_prompts():
    table = frames.decisions_frame([record(), record(1, prefill=PrefillChoice(chosen="p-1", terms={"score": [1.0]}))])
    assert table["prefill"].struct.field("chosen").to_list() == [None, "p-1"]


def test_times_are_utc_with_microseconds():
    table = frames.decisions_frame([record(at=AT + 0.123456)])
    assert table.schema["at"] == pl.Datetime("us", "UTC")
    assert table["at"][0].isoformat() == "2026-09-21T14:13:20.123456+00:00"


def test_a_long_table_is_made_in_parts_that_fit():
    many = [record(number) for number in range(frames.CHUNK_ROWS + 1)]
    assert frames.decisions_frame(iter(many))["id"].to_list() == [one.id for one in many]


def test_no_records_are_an_empty_table_with_all_columns():
    assert frames.decisions_frame([]).schema == frames.decisions_schema()


def test_polars_is_loaded_only_when_a_table_is_made():
    code = "import sys, backend.api.frames, backend.history.service, backend.control.handlers; sys.exit('polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
