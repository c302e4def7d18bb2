"""Merging an hour's files and keeping to a size. Not here: reading while it happens (tests/behaviour)."""

from __future__ import annotations

from backend.history import files, records, upkeep
from backend.history.cold import ColdDecisions, read_decisions
from backend.history.model import Filter
from tests.fakes.records import AT
from tests.fakes.records import records as many

HOUR = 3600.0
BIG = 2**40


def write(folder, at: float, *given) -> files.HistoryFile:
    return files.write_records(folder, [*map(records.encode_record, given)], at)


def test_a_past_hour_becomes_one_file_and_doubles_go(tmp_path):
    for minute in range(5):
        write(tmp_path, AT + 60 * minute, *many(10, first=minute * 8))
    before = read_decisions(tmp_path)
    cold = ColdDecisions(tmp_path)
    assert upkeep.keep(cold, kept_bytes=BIG, now=AT + HOUR).merged_files == 5
    (merged,) = files.listing(tmp_path)
    assert merged.name.startswith("141720-")
    assert read_decisions(tmp_path).equals(before)
    assert files.describe(merged).rows == before.height
    assert upkeep.keep(cold, kept_bytes=BIG, now=AT + HOUR).merged_files == 0


def test_the_current_hour_is_left_alone(tmp_path):
    write(tmp_path, AT, *many(1))
    write(tmp_path, AT + 60, *many(1, first=1))
    assert upkeep.keep(ColdDecisions(tmp_path), kept_bytes=BIG, now=AT + 120).merged_files == 0


def test_merged_files_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "MERGED_ROWS", 25)
    for minute in range(6):
        write(tmp_path, AT + 60 * minute, *many(10, first=minute * 10))
    upkeep.keep(ColdDecisions(tmp_path), kept_bytes=BIG, now=AT + HOUR)
    assert sorted(files.describe(path).rows for path in files.listing(tmp_path)) == [20, 20, 20]


def test_the_oldest_go_beyond_the_size(tmp_path):
    made = [write(tmp_path, AT + HOUR * hour, *many(50, first=hour * 50)) for hour in range(30)]
    cap = sum(file.size_bytes for file in made[-3:])
    done = upkeep.keep(ColdDecisions(tmp_path), kept_bytes=cap, now=AT + 40 * HOUR)
    assert (done.deleted_files, done.deleted_rows) == (27, 27 * 50)
    assert read_decisions(tmp_path).height == 150
    assert len(list((tmp_path / "decisions").iterdir())) == len({file.path.parent for file in made[-3:]})


def test_the_newest_file_stays_whatever_the_size(tmp_path):
    write(tmp_path, AT, *many(50))
    assert upkeep.keep(ColdDecisions(tmp_path), kept_bytes=1, now=AT + HOUR).deleted_files == 0


def test_a_damaged_file_is_not_merged_away(tmp_path):
    first = write(tmp_path, AT, *many(10))
    write(tmp_path, AT + 60, *many(10, first=10))
    content = first.path.read_bytes()
    first.path.write_bytes(content[:4] + b"\xff" * 300 + content[304:])
    upkeep.keep(ColdDecisions(tmp_path), kept_bytes=BIG, now=AT + HOUR)
    assert first.path.exists()


def test_a_reader_whose_files_are_merged_under_it_looks_again(tmp_path, monkeypatch):
    for minute in range(3):
        write(tmp_path, AT + 60 * minute, *many(10, first=minute * 10))
    reader = ColdDecisions(tmp_path)
    scan = files.scan

    def merge_first(path, *rest):
        monkeypatch.setattr(files, "scan", scan)
        upkeep.keep(ColdDecisions(tmp_path), kept_bytes=BIG, now=AT + HOUR)
        return scan(path, *rest)

    reader.catalogue()
    monkeypatch.setattr(files, "scan", merge_first)
    assert len(reader.page(Filter(), 100)) == 30


def test_what_a_killed_writer_left_is_removed(tmp_path):
    file = write(tmp_path, AT, *many(1))
    leftover = file.path.with_name(f".{file.path.name}.x7f")
    leftover.write_bytes(b"half")
    assert files.clean(tmp_path) == 1
    assert not leftover.exists()
    assert file.path.exists()


def test_a_file_of_an_older_version_is_read_with_defaults(tmp_path):
    import polars as pl

    path = write(tmp_path, AT, *many(2)).path
    pl.read_parquet(path).drop("hit_class", "terms", "predicted_tokens").with_columns(later=pl.lit(1)).write_parquet(path)
    found = ColdDecisions(tmp_path).page(Filter(), 10)
    assert [one.hit_class for one in found] == ["unpredicted", "unpredicted"]
    assert found[0].terms == {}
    assert found[0].predicted_tokens is None
