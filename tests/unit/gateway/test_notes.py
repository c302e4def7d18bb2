"""What is read from answers in passing, the classes of hits, and what the shared files hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.api.fleet import Pod
from backend.gateway.classify import Evidence, classify
from backend.gateway.counts import Counts
from backend.gateway.fleet_table import FleetReader, FleetTable
from backend.gateway.series import Counters, totals
from backend.gateway.stream import StreamNotes, find_usage, read_answer
from tests.fakes.upstream import DELTA, DONE, ROLE, TOKEN

HITS = [
    # id                                             predicted  cached  evidence                         expected
    ("the_same_number",                              64,        64,     Evidence(),                      "exact"),
    ("a_block_more",                                 64,        80,     Evidence(),                      "within_block"),
    ("a_block_less",                                 64,        48,     Evidence(),                      "within_block"),
    ("more_and_blocks_were_stored_meanwhile",        0,         64,     Evidence(5, 0, 9, 0),            "raced"),
    ("more_and_others_were_running_there",           0,         64,     Evidence(in_flight=1),           "raced"),
    ("more_without_a_reason",                        0,         64,     Evidence(5, 1, 5, 9),            "unknown"),
    ("less_and_blocks_were_removed_meanwhile",       64,        0,      Evidence(0, 1, 0, 5),            "evicted"),
    ("less_without_a_reason",                        64,        0,      Evidence(0, 1, 9, 1, 3),         "unknown"),
    ("no_index_was_asked",                           None,      64,     Evidence(),                      "unpredicted"),
    ("the_engine_did_not_say",                       64,        None,   Evidence(),                      "unpredicted"),
]  # fmt: skip


@pytest.mark.parametrize(("predicted", "cached", "evidence", "expected"), [hit[1:] for hit in HITS], ids=[hit[0] for hit in HITS])
def test_a_hit_is_classed_by_its_evidence(predicted: int | None, cached: int | None, evidence: Evidence, expected: str) -> None:
    assert classify(predicted, cached, 16, evidence) == expected


@pytest.mark.parametrize("size", [1, 5, 64, 10_000])
@pytest.mark.parametrize("chat", [True, False])
def test_first_token_and_count_do_not_depend_on_packets(size: int, chat: bool) -> None:
    events = ([ROLE] if chat else []) + [DELTA if chat else TOKEN] * 3 + ['data: {"choices":[],"usage":{"prompt_tokens":7}}\n\n', DONE]
    wire = b"".join(b"%x\r\n%b\r\n" % (len(event), event.encode()) for event in events) + b"0\r\n\r\n"
    notes, first_at = StreamNotes(), 0.0
    role_ends = len(b"%x\r\n" % len(ROLE)) + len(ROLE) if chat else 0
    for at in range(0, len(wire), size):
        notes.packet(wire[at : at + size], float(at + 1))
        first_at = first_at or (notes.token_at if notes.token_at else 0.0)
    assert notes.token_at > (role_ends if size < role_ends else 0)
    usage = notes.usage()
    assert usage is not None
    assert usage.prompt_tokens == 7


def test_usage_is_found_behind_text_that_speaks_of_usage() -> None:
    text = rb'{"choices":[{"text":"\"usage\": {}"}],"usage":{"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":2}},"x":{}}'
    usage = find_usage(text)
    assert usage is not None
    assert (usage.counted().prompt, usage.counted().cached) == (3, 2)


def test_an_answer_with_odd_types_still_gives_its_usage() -> None:
    answer = read_answer(b'{"choices":"odd","usage":{"prompt_tokens":3}}')
    assert answer is not None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    assert read_answer(b"<html>") is None


def test_counts_are_summed_over_workers_and_a_dead_worker_is_forgotten(tmp_path: Path) -> None:
    master, worker = Counts(tmp_path, create=True), Counts(tmp_path)
    worker.claim(0)
    other = Counts(tmp_path)
    other.claim(1)
    worker.plus(7)
    worker.plus(7)
    other.plus(7)
    other.plus(8)
    assert master.in_flight([7, 8, 9], master.used_rows()) == [3, 1, 0]
    master.clear(1)
    assert master.in_flight([7, 8, 9], [0, 1]) == [2, 0, 0]
    worker.minus(9)
    assert master.in_flight([9], [0, 1]) == [0]
    for counts in (master, worker, other):
        counts.close()


def test_slots_stay_with_their_pods_and_outlive_the_master(tmp_path: Path) -> None:
    table = FleetTable(tmp_path)
    table.write([Pod(name="a", ip="1"), Pod(name="b", ip="2")])
    before = {row.pod.name: row.slot for row in table.rows}
    table.close()
    successor = FleetTable(tmp_path)
    assert {row.pod.name: row.slot for row in successor.rows} == before
    successor.write([Pod(name="c", ip="3"), Pod(name="b", ip="2")])
    reader = FleetReader(tmp_path)
    _, rows = reader.read()
    after = {row.pod.name: row.slot for row in rows}
    assert after["b"] == before["b"]
    assert after["c"] not in before.values()
    reader.close()
    successor.close()


def test_a_successor_in_the_row_counts_on(tmp_path: Path) -> None:
    first = Counters(tmp_path, 0)
    first.add(("request", "m"), 2)
    first.close()
    second, other = Counters(tmp_path, 0), Counters(tmp_path, 1)
    second.add(("request", "m"))
    other.add(("request", "m"), 5)
    assert totals(tmp_path)["request", "m"] == 8
    second.close()
    other.close()
