"""Memory and files as one list: no decision lost or doubled, whatever was written, shed or repeated. Not here: the stream."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.api.decisions import DecisionRecord
from backend.core.clock import ManualClock
from backend.core.errors import InvalidRequest, NotFound
from backend.core.settings import HistorySettings, RecordSettings
from backend.history import files, records
from backend.history.cold import read_decisions
from backend.history.hot import HotDecisions
from backend.history.model import Filter, Key, cursor, key_of, parse_cursor
from backend.history.service import History, merge
from tests.fakes.records import AT, record
from tests.fakes.records import records as many


def history(folder: Path, kept: int) -> History:
    return History(folder, HistorySettings(recent_rows=kept), RecordSettings(), clock=ManualClock(AT))


async def take(into: History, arrived: list[DecisionRecord]) -> None:
    await into._take([(b"1-1", {records.FIELD: records.encode_batch(arrived)})], repeated=True)
    into._open.clear()


async def all_pages(of: History, limit: int, wanted: Filter | None = None) -> list[DecisionRecord]:
    found: list[DecisionRecord] = []
    items, following = await of.page(wanted or Filter(), limit)
    found += items
    while following is not None:
        items, following = await of.page(wanted or Filter(), limit, parse_cursor(following))
        assert items
        found += items
    return found


# A step of a history's life: a batch of request numbers, a file written, a restart, or a restart whose acknowledgements were lost.
STEPS = st.lists(
    st.one_of(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.sampled_from(["write", "restart", "repeat"])),
    min_size=1,
    max_size=10,
)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS, kept=st.integers(1, 30), limit=st.integers(1, 9), same_second=st.booleans())
def test_pages_show_every_decision_once_newest_first(steps, kept, limit, same_second):
    def made(number: int) -> DecisionRecord:
        return record(number, at=AT + (number // 10 if same_second else number), model=f"m{number % 2}")

    async def run(folder: Path) -> None:
        kind = history(folder, kept)
        taken: set[int] = set()
        unwritten: set[int] = set()
        for step in steps:
            if step == "write":
                assert await kind.flush()
                unwritten.clear()
            elif step in ("restart", "repeat"):
                # What was not acknowledged comes again: it is pending in the stream.
                kind = history(folder, kept)
                await kind.load()
                await take(kind, [made(number) for number in sorted(unwritten if step == "restart" else taken)])
            else:
                await take(kind, [made(number) for number in step])
                unwritten |= set(step) - taken
                taken |= set(step)
        expected = sorted(map(made, taken), key=key_of, reverse=True)
        assert await all_pages(kind, limit) == expected
        assert await all_pages(kind, limit, Filter(model="m1")) == [one for one in expected if one.model == "m1"]
        await kind.flush()
        assert read_decisions(folder).height == sum(file.rows for file in kind.cold.catalogue()) == len(taken)
        for number in list(taken)[:2]:
            assert await kind.get(made(number).id) == made(number)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


@given(newest=st.lists(st.integers(0, 30)), older=st.lists(st.integers(0, 30)), limit=st.integers(1, 40))
def test_merging_is_a_union_by_id_newest_first(newest, older, limit):
    merged = merge([record(number) for number in newest], [record(number) for number in older], limit)
    assert merged == [record(number) for number in sorted({*newest, *older}, reverse=True)][:limit]


async def test_memory_never_sheds_what_no_file_holds(tmp_path):
    kind = history(tmp_path, kept=3)
    await take(kind, many(10))
    assert len(kind.hot) == 10
    await kind.flush()
    assert len(kind.hot) == 3
    assert kind.hot.floor == key_of(record(6))


async def test_a_late_arrival_below_the_floor_is_neither_lost_nor_doubled(tmp_path):
    kind = history(tmp_path, kept=3)
    await take(kind, many(10, first=10))
    await kind.flush()
    await take(kind, [record(5), record(12)])
    assert kind.counters.duplicates == 1
    assert [one.id for one in await all_pages(kind, 4)] == [record(number).id for number in [*range(19, 9, -1), 5]]
    await kind.flush()
    assert [one.id for one in await all_pages(kind, 4)] == [record(number).id for number in [*range(19, 9, -1), 5]]


async def test_a_history_that_fits_memory_never_looks_into_files(tmp_path, monkeypatch):
    kind = history(tmp_path, kept=100)
    await take(kind, many(10))
    await kind.flush()
    monkeypatch.setattr(kind.cold, "page", None)
    assert len(await all_pages(kind, 3)) == 10
    with pytest.raises(NotFound):
        await kind.get("nobody")


FILTERS = [
    ("model", Filter(model="b"), [3]),
    ("pod", Filter(pod="vllm-1"), [2]),
    ("policy", Filter(policy="random"), [1]),
    ("outcome", Filter(outcome="timeout"), [4]),
    ("all_of_them", Filter(model="qwen3-8b", pod="vllm-0", policy="prefix-cache", outcome="ok"), [0]),
    ("nothing_fits", Filter(model="b", pod="vllm-1"), []),
]


@pytest.mark.parametrize("written", [False, True], ids=["in_memory", "in_files"])
@pytest.mark.parametrize(("wanted", "numbers"), [case[1:] for case in FILTERS], ids=[case[0] for case in FILTERS])
async def test_filters_work_alike_in_memory_and_in_files(tmp_path, wanted, numbers, written):
    kind = history(tmp_path, kept=0 if written else 100)
    differing = [{}, {"policy": "random"}, {"chosen": "vllm-1"}, {"model": "b"}, {"outcome": "timeout"}]
    await take(kind, [record(number, **fields) for number, fields in enumerate(differing)])
    if written:
        await kind.flush()
        assert len(kind.hot) == 0
    assert [one.id for one in (await kind.page(wanted, 10))[0]] == [record(number).id for number in numbers]


@pytest.mark.parametrize("text", ["", "x", "1.5~", "~a", "nan", "1e400"])
def test_a_cursor_that_is_none_is_a_clear_error(text):
    with pytest.raises(InvalidRequest, match="`before`"):
        parse_cursor(text)


def test_a_time_is_a_cursor_too():
    assert parse_cursor("12.5") == Key(12_500_000, "")


def test_a_cursor_goes_there_and_back():
    key = Key(1_790_000_000_123_456, "a~b")
    assert parse_cursor(cursor(key)) == key


async def test_a_damaged_file_is_left_out_and_named(tmp_path):
    first = files.write_records(tmp_path, [*map(records.encode_record, many(3))], AT)
    files.write_records(tmp_path, [*map(records.encode_record, many(3, first=3))], AT + 60)
    content = bytearray(first.path.read_bytes())
    content[4:200] = b"\xff" * 196
    first.path.write_bytes(content)
    broken = tmp_path / "decisions" / "date=2026-09-21" / "000000-cafe.parquet"
    broken.write_bytes(b"PAR1 no")
    empty = broken.with_name("000001-cafe.parquet")
    empty.touch()
    kind = history(tmp_path, kept=100)
    await kind.load()
    assert [one.id for one in (await kind.page(Filter(), 10))[0]] == [record(number).id for number in (5, 4, 3)]
    assert len(kind.trouble.corrupt) == 3
    assert all("cannot be read" in why for why in kind.trouble.corrupt.values())
    broken.unlink()
    kind.cold.catalogue()
    assert len(kind.trouble.corrupt) == 2


def test_an_encoded_record_comes_back_equal():
    hot = HotDecisions(10)
    given_record = record(1, terms={}, cached_tokens=None, attempts=["x"])
    hot.add(given_record)
    assert hot.get(given_record.id) == given_record


async def test_a_row_that_no_file_can_hold_does_not_stop_the_writer(tmp_path):
    kind = history(tmp_path, kept=100)
    # As the gateway of another version may send it: the check at the door does not know everything.
    for one in [record(0), record(1), record(2, usage_prompt_tokens=2**64 - 1), record(3)]:
        entry = kind.hot.add(one)
        assert entry is not None
        kind._unwritten.append(entry)
    assert await kind.flush()
    assert (kind.counters.written, kind.counters.unreadable, kind.hot.unwritten) == (3, 1, 0)
    assert read_decisions(tmp_path)["id"].to_list() == [record(number).id for number in (0, 1, 3)]
    with pytest.raises(NotFound):
        await kind.get(record(2).id)


async def test_a_file_without_a_writable_row_is_not_written(tmp_path):
    kind = history(tmp_path, kept=100)
    entry = kind.hot.add(record(0, prompt_tokens=2**63))
    assert entry is not None
    kind._unwritten.append(entry)
    assert await kind.flush()
    assert (kind.counters.files, kind.counters.unreadable, files.listing(tmp_path)) == (0, 1, [])


TRACE = "0af7651916cd43dd8448eb211c80319c"
"""What a client got as its request-id when it sent a `traceparent`; the records of its requests end in a part of their own."""


@pytest.mark.parametrize("kept", [100, 0], ids=["in_memory", "in_files"])
async def test_a_trace_finds_its_newest_request(tmp_path, kept):
    kind = history(tmp_path, kept=kept)
    await take(kind, [record(1, id=f"{TRACE}-00000001"), record(3, id=f"{TRACE}-00000003"), record(4)])
    await kind.flush()
    await take(kind, [record(2, id=f"{TRACE}-00000002")])
    await kind.flush()
    assert (await kind.get(TRACE)).id == f"{TRACE}-00000003"
    assert (await kind.get(f"{TRACE}-00000001")).at == AT + 1


@pytest.mark.parametrize("asked", [TRACE[:31], TRACE[:31] + "x", TRACE + "-", "r0000000", ""])
async def test_only_whole_traces_stand_for_other_ids(tmp_path, asked):
    kind = history(tmp_path, kept=1)
    await take(kind, [record(1, id=f"{TRACE}-00000001"), record(2, id=f"{TRACE}-00000002")])
    await kind.flush()
    with pytest.raises(NotFound):
        await kind.get(asked)


async def test_an_older_request_of_a_trace_in_memory_wins_over_none(tmp_path):
    kind = history(tmp_path, kept=1)
    await take(kind, [record(1, id=f"{TRACE}-00000001"), *many(4, first=2)])
    await kind.flush()
    assert len(kind.hot) == 1
    assert (await kind.get(TRACE)).at == AT + 1
