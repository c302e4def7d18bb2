"""decode_batch on every variant of the wire, and on recorded engine bytes. Not here: that the kernel agrees (test_twins)."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from backend.core.errors import WireError
from backend.kvindex import decode_batch
from backend.kvindex.wire import batch_timestamp
from tests.fakes.events import batch, stored

RECORDED = sorted((Path(__file__).parents[2] / "data" / "engines" / "kv_events").glob("*.json"))
KINDS = {"BlockStored": "stored", "BlockRemoved": "removed", "AllBlocksCleared": "cleared"}
TOKENS = [1, 2, 3, 4]

STORED_BY_VERSION = [
    # id                   event as that version writes it
    ("vllm_0_9", ["BlockStored", [7], None, TOKENS, 4, None]),
    ("vllm_0_13", ["BlockStored", [7], None, TOKENS, 4, None, "GPU"]),
    ("vllm_0_16_lora_name", ["BlockStored", [7], None, TOKENS, 4, 3, "gpu", "adapter"]),
    ("vllm_0_19_extra_keys", ["BlockStored", [7], None, TOKENS, 4, None, "GPU", None, [["tenant"]]]),
    ("vllm_0_23_tail", ["BlockStored", [7], None, TOKENS, 4, None, "GPU", None, None, 0, "full_attention", None]),
    ("vllm_0_24_map", stored([7], TOKENS)),
    (
        "vllm_0_32_map",
        stored([7], TOKENS, group_idx=0, kv_cache_spec_kind="full_attention", locality="LOCAL", ownership="x", session_id="s"),
    ),
    ("unknown_keys_are_ignored", stored([7], TOKENS, brand_new=[{"deep": 1}])),
    ("sglang_0_5_8", ["BlockStored", [7], None, TOKENS, 4, None]),
    ("sglang_0_5_18_metadata", ["BlockStored", [7], None, TOKENS, 4, None, "GPU", {"cache_salt": "tenant"}]),
    ("sglang_0_5_23_map", stored([7], TOKENS, medium="CPU_PINNED", cache_salt="tenant", session_id=None)),
    ("hash_of_32_bytes", stored([(2**80 + 7).to_bytes(32, "big")], TOKENS)),
    ("hash_as_hexadecimal_text", stored(["ffff0000000000000007"], TOKENS)),
]


@pytest.mark.parametrize("event", [case[1] for case in STORED_BY_VERSION], ids=[case[0] for case in STORED_BY_VERSION])
def test_a_stored_block_is_read_from_every_version(event: object) -> None:
    decoded = decode_batch(batch(event, timestamp=12.5, rank=1))
    assert (decoded.timestamp, decoded.rank, decoded.skipped) == (12.5, 1, {})
    (found,) = decoded.events
    assert (found.kind, found.block_hashes, found.parent_hash, found.token_ids, found.block_size) == ("stored", [7], None, TOKENS, 4)
    assert found.medium in (None, "GPU", "CPU_PINNED")


def test_signed_and_unsigned_hashes_are_the_same_hash() -> None:
    signed, unsigned = decode_batch(batch(stored([-5], TOKENS), stored([2**64 - 5], TOKENS))).events
    assert signed.block_hashes == unsigned.block_hashes == [2**64 - 5]


@pytest.mark.parametrize("file", RECORDED, ids=[file.stem for file in RECORDED])
def test_recorded_messages_of_a_real_engine_are_read_in_full(file: Path) -> None:
    for recorded in json.loads(file.read_text())["batches"]:
        payload = bytes.fromhex(recorded["frames_hex"][2])
        timestamp, events, rank = recorded["decoded"]
        decoded = decode_batch(payload)
        assert (decoded.timestamp, decoded.rank, decoded.skipped) == (timestamp, rank, {})
        assert batch_timestamp(payload) == timestamp
        assert [event.kind for event in decoded.events] == [KINDS[event["type"]] for event in events]
        for found, expected in zip(decoded.events, events, strict=True):
            assert found.block_hashes == expected.get("block_hashes", [])
            assert found.token_ids == expected.get("token_ids", [])
            assert found.parent_hash == expected.get("parent_block_hash")


BROKEN = [
    # id                       event                                                   reason
    ("no_event_at_all", 7, "not_an_event"),
    ("map_without_type", {"block_hashes": [1]}, "not_an_event"),
    ("unknown_kind", ["BlockMoved", [1]], "unknown_kind"),
    ("hash_is_a_float", stored([1.5], TOKENS), "bad_hash"),
    ("hash_is_no_hexadecimal", stored(["xyz"], TOKENS), "bad_hash"),
    ("parent_is_a_list", stored([1], TOKENS, parent=[1]), "bad_parent"),
    ("token_is_negative", stored([1], [1, 2, 3, -4]), "bad_token"),
    ("token_is_too_large", stored([1], [1, 2, 3, 2**32]), "bad_token"),
    ("block_size_is_zero", stored([1], TOKENS, block_size=0), "bad_block_size"),
    ("fewer_tokens_than_blocks_need", stored([1, 2], TOKENS), "token_count"),
]


@pytest.mark.parametrize(("event", "reason"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_event_is_counted_and_the_rest_of_the_batch_counts(event: object, reason: str) -> None:
    decoded = decode_batch(batch(event, stored([9], TOKENS)))
    assert decoded.skipped == {reason: 1}
    assert [found.block_hashes for found in decoded.events] == [[9]]


def test_a_message_that_breaks_off_keeps_what_came_before() -> None:
    whole = batch(stored([1], TOKENS), stored([2], TOKENS))
    decoded = decode_batch(whole[:-20])
    assert [event.block_hashes for event in decoded.events] == [[1]]
    assert decoded.skipped == {"truncated": 1}


def test_nesting_without_end_is_skipped_not_followed() -> None:
    deep = b"\x91" * 100_000 + b"\x01"
    payload = b"\x92\xc0\x92" + deep + msgspec.msgpack.encode(stored([9], TOKENS))
    decoded = decode_batch(payload)
    assert (decoded.skipped, [event.block_hashes for event in decoded.events]) == ({"not_an_event": 1}, [[9]])


@pytest.mark.parametrize("payload", [b"", b"\xc0", b"\x91\x01", b"\x92\x01\x02", b"hello", msgspec.msgpack.encode({"a": 1})])
def test_what_is_no_batch_is_said_to_be_none(payload: bytes) -> None:
    with pytest.raises(WireError) as raised:
        decode_batch(payload)
    assert raised.value.reason == "not_a_batch"
