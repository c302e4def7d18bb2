"""SGLang's hashes and events, version by version, from its contract; and that the project's own decoder reads what is written."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.core.errors import UsageError
from backend.kvindex import decode_batch
from backend.simulate.engine.dialect import parse_version
from backend.simulate.engine.model import AllBlocksCleared, BlockRemoved, BlockStored
from backend.simulate.engine.sglang.events import SglangHasher, sglang_dialect_of, signed_hash

ONE, TWO = bytes(range(200, 232)), bytes(range(32))
FIRST = BlockStored(hashes=[ONE], parent=None, tokens=[1, 2], extra_keys=[None])
NEXT = BlockStored(hashes=[TWO], parent=ONE, tokens=[3, 4], extra_keys=[None])
SALTED = BlockStored(hashes=[ONE], parent=None, tokens=[1, 2], extra_keys=[("s",)], session_id="c", cache_salt="s")


def decoded(version, *events):
    return msgspec.msgpack.decode(sglang_dialect_of(parse_version(version)).encode(1.5, events, block_size=2))


ARRAYS = [
    ("0.4.10.post2", ["BlockStored", [signed_hash(ONE)], None, [1, 2], 2, None], ["BlockRemoved", [signed_hash(ONE)]]),
    ("0.5.16", ["BlockStored", [signed_hash(ONE)], None, [1, 2], 2, None, "GPU"], ["BlockRemoved", [signed_hash(ONE)], "GPU"]),
]


@pytest.mark.parametrize(("version", "stored", "removed"), ARRAYS, ids=[row[0] for row in ARRAYS])
def test_before_0_5_20_events_are_arrays(version, stored, removed):
    assert decoded(version, SALTED, BlockRemoved([ONE]), AllBlocksCleared()) == [1.5, [stored, removed, ["AllBlocksCleared"]], 0]


def test_only_0_5_18_tells_the_salt_in_a_map_at_the_end():
    assert decoded("0.5.18", SALTED)[1][0][7:] == [{"cache_salt": "s"}]
    assert len(decoded("0.5.18", FIRST)[1][0]) == 7


@pytest.mark.parametrize("version", ["0.5.20", "0.5.23", "0.6.0"])
def test_from_0_5_20_on_events_are_maps_with_salt_and_session(version):
    stored, removed = decoded(version, SALTED, BlockRemoved([ONE]))[1]
    assert (stored["type"], stored["cache_salt"], stored["session_id"], stored["medium"]) == ("BlockStored", "s", "c", "GPU")
    assert removed == {"type": "BlockRemoved", "block_hashes": [signed_hash(ONE)], "medium": "GPU"}


@pytest.mark.parametrize(("version", "topic"), [("0.5.20", False), ("0.5.22", True)])
def test_replays_carry_the_topic_from_0_5_22_on(version, topic):
    assert sglang_dialect_of(parse_version(version)).replay_has_topic is topic


@pytest.mark.parametrize(("version", "stores", "removals"), [("0.5.8", 2, 2), ("0.5.23", 1, 1)], ids=["one_a_page", "joined"])
def test_neighbours_are_one_event_in_later_versions(version, stores, removals):
    events = [
        event["type"] if isinstance(event, dict) else event[0]
        for event in decoded(version, FIRST, NEXT, BlockRemoved([TWO]), BlockRemoved([ONE]))[1]
    ]
    assert (events.count("BlockStored"), events.count("BlockRemoved")) == (stores, removals)


def test_a_store_of_several_pages_is_one_event_a_page_in_old_versions():
    both = BlockStored(hashes=[ONE, TWO], parent=None, tokens=[1, 2, 3, 4], extra_keys=[None, None])
    first, second = decoded("0.5.8", both)[1]
    assert (first[3], second[2], second[3]) == ([1, 2], signed_hash(ONE), [3, 4])


def test_stores_of_other_salts_or_chains_stay_apart():
    assert len(decoded("0.5.23", FIRST, SALTED, FIRST)[1]) == 3


def test_what_no_version_published_is_refused():
    with pytest.raises(UsageError, match=r"0\.4\.10"):
        sglang_dialect_of((0, 4, 9))


def chain(tokens, size=2, **how):
    hashes = []
    SglangHasher().extend(hashes, tokens, size, **how)
    return hashes


def test_hashes_are_a_chain_over_little_endian_tokens_and_their_short_form_is_signed():
    first = hashlib.sha256(b"\x01\0\0\0\xff\xff\0\0").digest()
    second = hashlib.sha256(first + b"\x03\0\0\0\x04\0\0\0").digest()
    assert chain([1, 65535, 3, 4, 5]) == [first, second]
    assert signed_hash(b"\xff" * 32) == -1


def test_a_salt_changes_every_hash_and_a_chain_may_be_continued():
    tokens = list(range(8))
    assert not set(chain(tokens)) & set(chain(tokens, cache_salt="a"))
    assert chain(tokens, cache_salt="a") != chain(tokens, cache_salt="b")
    begun = chain(tokens[:4], cache_salt="a")
    SglangHasher().extend(begun, tokens, 2, cache_salt="a")
    assert begun == chain(tokens, cache_salt="a")


@given(
    version=st.sampled_from(["0.4.10", "0.5.8", "0.5.16", "0.5.18", "0.5.20", "0.5.23"]),
    size=st.integers(1, 8),
    tokens=st.lists(st.integers(0, 2**32 - 1), max_size=60),
    salt=st.none() | st.text(max_size=4),
)
def test_the_projects_decoder_gets_back_what_was_told(version, size, tokens, salt):
    hashes = chain(tokens, size, cache_salt=salt)
    told = tokens[: len(hashes) * size]
    events = [BlockStored(hashes, None, told, [None] * len(hashes), cache_salt=salt), BlockRemoved(hashes), AllBlocksCleared()]
    batch = decode_batch(sglang_dialect_of(parse_version(version)).encode(2.5, events, block_size=size))
    by_kind = {kind: [event for event in batch.events if event.kind == kind] for kind in ("stored", "removed", "cleared")}
    expected = [signed_hash(digest) % 2**64 for digest in hashes]
    assert [digest for event in by_kind["stored"] for digest in event.block_hashes] == expected
    assert [token for event in by_kind["stored"] for token in event.token_ids] == told
    assert [digest for event in by_kind["removed"] for digest in event.block_hashes] == expected
    assert len(by_kind["cleared"]) == 1
