"""Traces: reading, the tokens they stand for, and what an endless cache would find. Not here: sending them (test_loadgen)."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.core.errors import ConfigError, NotFound
from backend.simulate import traces
from backend.simulate.traces import TraceRequest

SYNTHETIC = Path(__file__).parents[2] / "data" / "traces" / "synthetic-500.jsonl.gz"

LINE = '{"timestamp": 5, "input_length": 600, "output_length": 7, "hash_ids": [1, 2]}'


def test_a_line_is_a_request(tmp_path):
    file = tmp_path / "trace.jsonl"
    file.write_text(f"{LINE}\n\n{LINE}\n")
    assert list(traces.read_mooncake(file)) == [TraceRequest(5.0, 600, 7, (1, 2))] * 2


def test_limit_and_offset_choose_a_part_of_the_trace(tmp_path):
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(LINE.replace("5", str(at), 1) + "\n" for at in range(10)))
    assert [request.timestamp for request in traces.read_mooncake(file, 3, offset=4)] == [4, 5, 6]


BROKEN = [
    ("not_json", "{oops", "is not a request of a Mooncake trace"),
    ("a_field_is_missing", '{"timestamp": 1, "input_length": 3}', "output_length"),
    ("a_field_has_the_wrong_type", LINE.replace("600", '"many"'), "input_length"),
    ("too_few_hash_ids", LINE.replace("[1, 2]", "[1]"), "has 1 hash ids for 600 tokens; blocks of 512 need 2"),
    ("no_prompt", LINE.replace("600", "0"), "below what can be"),
    ("time_runs_backwards", LINE.replace('"timestamp": 5', '"timestamp": 4'), "arrives before the request above it"),
]


@pytest.mark.parametrize(("line", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_line_is_named_with_file_and_number(tmp_path, line, message):
    file = tmp_path / "trace.jsonl"
    file.write_text(f"{LINE}\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        list(traces.read_mooncake(file))
    assert str(caught.value).startswith(f"{file}:2")
    assert message in str(caught.value)


def test_a_file_that_is_no_gzip_is_said_to_be_unreadable(tmp_path):
    file = tmp_path / "trace.jsonl.gz"
    file.write_text(LINE)
    with pytest.raises(ConfigError, match="cannot be read"):
        list(traces.read_mooncake(file))


def test_an_unknown_trace_names_the_packaged_ones():
    with pytest.raises(NotFound, match="conversation-sample"):
        traces.find("nowhere")


# Counted with an independent script: share of blocks whose id occurred in any earlier request.
CEILINGS = [
    ("conversation", traces.PACKAGED / "conversation-sample.jsonl", 2000, 0.28906),
    ("synthetic", SYNTHETIC, 500, 0.08447),
]


@pytest.mark.parametrize(("file", "requests", "rate"), [case[1:] for case in CEILINGS], ids=[case[0] for case in CEILINGS])
def test_the_ceiling_is_the_share_of_blocks_seen_before(file, requests, rate):
    counted = list(traces.read_mooncake(file))
    assert len(counted) == requests
    ids = [hash_id for request in counted for hash_id in request.hash_ids]
    assert traces.ceiling(counted).rate == pytest.approx(1 - len(set(ids)) / len(ids))
    assert traces.ceiling(counted).rate == pytest.approx(rate, abs=5e-6)


def test_the_ceiling_by_tokens_counts_the_shorter_last_block_as_what_it_is():
    first = TraceRequest(0, 612, 1, (1, 2))
    second = TraceRequest(1, 562, 1, (1, 2))
    counted = traces.ceiling([first, second])
    assert (counted.tokens, counted.hit_tokens) == (612 + 562, 562)


def test_a_hash_id_stands_for_the_same_tokens_on_every_machine():
    words = struct.unpack("<512I", hashlib.shake_128(b"mooncake:182789").digest(2048))
    assert traces.block_tokens(182789, 50_000) == [256 + word % (50_000 - 256) for word in words]


requests = st.integers(1, 3000).flatmap(
    lambda length: st.builds(
        TraceRequest,
        timestamp=st.just(0.0),
        input_length=st.just(length),
        output_length=st.just(1),
        hash_ids=st.lists(st.integers(0, 5), min_size=-(-length // 512), max_size=-(-length // 512)).map(tuple),
    )
)


@given(request=requests, kept=st.integers(1, 4))
def test_encoded_prompts_are_the_prompts_tokens(request, kept):
    encoder = traces.PromptEncoder(vocabulary=1024, kept_blocks=kept)
    for _ in range(2):
        tokens = msgspec.json.decode(encoder.encode(request))
        assert tokens == traces.prompt_tokens(request, 1024)
        assert len(tokens) == request.input_length
        assert all(256 <= token < 1024 for token in tokens)


@given(request=requests, longest=st.integers(1, 4096))
def test_a_shortened_prompt_is_the_beginning_of_the_whole_one(request, longest):
    cut = traces.shortened(request, longest)
    assert traces.prompt_tokens(cut) == traces.prompt_tokens(request)[:longest]
    assert len(cut.hash_ids) == -(-cut.input_length // 512)


def test_the_encoder_keeps_no_more_pieces_than_it_may():
    encoder = traces.PromptEncoder(kept_blocks=3)
    for at in range(20):
        encoder.encode(TraceRequest(0, 512, 1, (at,)))
    assert len(encoder._pieces) == 3


def test_a_vocabulary_without_room_is_refused():
    with pytest.raises(ConfigError, match="leaves no token ids"):
        traces.PromptEncoder(vocabulary=256)
