"""Labels of blocks and their encoding, version by version."""

import hashlib
import pickle

import msgspec
import pytest

from backend.core.errors import UsageError
from backend.simulate.engine.dialect import dialect_of, parse_version
from backend.simulate.engine.hashing import BlockHasher
from backend.simulate.engine.model import AllBlocksCleared, BlockRemoved, BlockStored

DIGEST = bytes(range(32))
LOW = int.from_bytes(DIGEST[-8:], "big")
STORED = BlockStored(hashes=[DIGEST], parent=None, tokens=[1, 2], extra_keys=[None])
TOLD = BlockStored(hashes=[DIGEST], parent=DIGEST, tokens=[1, 2], extra_keys=[("salt",)], session_id="s")

ARRAYS = [
    ("0.9.2", [LOW, None, [1, 2], 2, None], [[LOW]]),
    ("0.10.2", [LOW, None, [1, 2], 2, None, "GPU"], [[LOW], "GPU"]),
    ("0.14.1", [LOW, None, [1, 2], 2, None, "GPU", None], [[LOW], "GPU"]),
    ("0.17.1", [LOW, None, [1, 2], 2, None, "GPU", None, [None]], [[LOW], "GPU"]),
    ("0.20.2", [LOW, None, [1, 2], 2, None, "GPU", None, [None], 0], [[LOW], "GPU", 0]),
    ("0.22.1", [LOW, None, [1, 2], 2, None, "GPU", None, [None], 0, "full_attention"], [[LOW], "GPU", 0]),
]


def decoded(version, *events, **how):
    return msgspec.msgpack.decode(dialect_of(parse_version(version), **how).encode(1.5, events, block_size=2))


@pytest.mark.parametrize(("version", "stored", "removed"), ARRAYS, ids=[row[0] for row in ARRAYS])
def test_before_0_24_events_are_arrays_that_end_before_their_empty_fields(version, stored, removed):
    at, events, rank = decoded(version, STORED, BlockRemoved([DIGEST]), AllBlocksCleared())
    assert (at, rank) == (1.5, 0)
    assert events == [["BlockStored", [stored[0]], *stored[1:]], ["BlockRemoved", *removed], ["AllBlocksCleared"]]


@pytest.mark.parametrize("version", ["0.24.0", "0.26.0", "0.29.0", "0.32.0", "0.40.0"])
def test_from_0_24_on_events_are_maps_with_the_type_first(version):
    stored, removed, cleared = decoded(version, STORED, BlockRemoved([DIGEST]), AllBlocksCleared())[1]
    assert list(stored) == [
        *("type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id"),
        *("medium", "lora_name", "extra_keys", "group_idx", "kv_cache_spec_kind"),
    ]
    assert removed == {"type": "BlockRemoved", "block_hashes": [LOW], "medium": "GPU", "group_idx": 0}
    assert cleared == {"type": "AllBlocksCleared"}


@pytest.mark.parametrize(("version", "told"), [("0.29.0", False), ("0.30.0", True)])
def test_session_ids_are_told_from_0_30_on(version, told):
    assert ("session_id" in decoded(version, TOLD)[1][0]) is told


@pytest.mark.parametrize(("version", "topic"), [("0.25.1", False), ("0.26.0", True)])
def test_replays_carry_the_topic_from_0_26_on(version, topic):
    assert dialect_of(parse_version(version)).replay_has_topic is topic


def test_hashes_may_be_whole_digests():
    assert decoded("0.32.0", TOLD, byte_hashes=True)[1][0]["parent_block_hash"] == DIGEST


@pytest.mark.parametrize(("version", "how"), [("0.8.5", {}), ("0.10.0", {"byte_hashes": True})])
def test_what_a_version_never_had_is_refused(version, how):
    with pytest.raises(UsageError):
        dialect_of(parse_version(version), **how)


def test_a_version_that_is_none_is_refused():
    with pytest.raises(UsageError, match="not a version"):
        parse_version("latest")


def chain(hasher, tokens, block_size=2, **how):
    hashes: list[bytes] = []
    hasher.extend(hashes, tokens, block_size, **how)
    return hashes


def test_the_chain_is_sha256_over_pickles_of_parent_tokens_and_extra_keys():
    def digest(value):
        return hashlib.sha256(pickle.dumps(value, protocol=5)).digest()

    root = digest("42")
    first = digest((root, (1, 2), (("cache_salt", "t"),)))
    assert chain(BlockHasher(seed="42"), [1, 2, 3, 4, 5], cache_salt="t") == [first, digest((first, (3, 4), None))]


def test_cbor_hashes_are_over_the_canonical_encoding():
    def digest(hexadecimal):
        return hashlib.sha256(bytes.fromhex(hexadecimal)).digest()

    root = digest("613" + "0")  # the text "0"
    # [bytes(32), [1, 70000], null]
    expected = digest("83" + "5820" + root.hex() + "82" + "01" + "1a00011170" + "f6")
    assert chain(BlockHasher(algorithm="sha256_cbor", seed="0"), [1, 70_000]) == [expected]


def test_without_a_seed_engines_agree_from_0_31_on_and_differ_before():
    assert chain(BlockHasher(version=(0, 31)), [1, 2]) == chain(BlockHasher(version=(0, 32)), [1, 2])
    assert chain(BlockHasher(version=(0, 30)), [1, 2]) != chain(BlockHasher(version=(0, 30)), [1, 2])


def test_only_new_full_blocks_are_hashed():
    hasher = BlockHasher(seed="0")
    hashes = chain(hasher, [1, 2, 3])
    before = list(hashes)
    hasher.extend(hashes, [1, 2, 3, 4, 5], 2)
    assert (hashes[:1], len(hashes)) == (before, 2)
