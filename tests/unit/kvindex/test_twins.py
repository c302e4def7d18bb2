"""The kernels and plain Python must agree on every message: what is applied, what is skipped and why, and every word of the table.
Not here: whether what they agree on is right (test_wire, test_index)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from backend.kvindex import PrefixIndex, hashing, kernels
from backend.kvindex import layout as at
from backend.kvindex.tokens import parse_token_array
from tests.fakes.events import batch, cleared, removed, stored

settings.register_profile("twins", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("twins")

SMALL = st.integers(0, 12)
HASHES = st.one_of(
    SMALL,
    SMALL.map(lambda value: value - 2**40),
    st.integers(-(2**63), 2**64 - 1),
    SMALL.map(lambda value: value.to_bytes(32, "big")),
    SMALL.map(lambda value: f"{value:016x}"),
)
ODD = st.one_of(
    st.none(), st.booleans(), st.floats(), st.text(max_size=3), st.binary(max_size=9), st.lists(SMALL, max_size=2), st.integers(-9, 2**40)
)
NAMES = st.sampled_from(["adapter", "", "sliding_window", "full_attention", "tenant"])
FIELDS = {
    "lora_id": st.one_of(st.none(), SMALL, ODD),
    "medium": st.sampled_from([None, "GPU", "cpu"]),
    "lora_name": st.one_of(st.none(), NAMES, ODD),
    "extra_keys": st.one_of(
        st.none(), st.lists(st.one_of(st.none(), st.lists(st.one_of(NAMES, SMALL, ODD), max_size=3), NAMES), max_size=4), ODD
    ),
    "group_idx": st.one_of(st.none(), st.integers(0, 3), ODD),
    "kv_cache_spec_kind": st.one_of(st.none(), NAMES, ODD),
}


@st.composite
def stored_events(draw: st.DrawFn) -> object:
    size = draw(st.sampled_from([1, 2, 3, 16, 17]))
    count = draw(st.integers(0, 4))
    tokens = draw(st.lists(st.integers(0, 300), min_size=size * count, max_size=size * count))
    if draw(st.integers(0, 9)) == 0:
        tokens = [*tokens, draw(st.one_of(ODD, SMALL))]
    event: dict[str, object] = {
        "type": "BlockStored",
        "block_hashes": draw(st.lists(st.one_of(HASHES, HASHES, HASHES, ODD), min_size=count, max_size=count)),
        "parent_block_hash": draw(st.one_of(st.none(), HASHES, ODD)),
        "token_ids": tokens,
        "block_size": draw(st.one_of(st.just(size), st.just(size), ODD)),
    }
    chosen = draw(st.integers(0, len(FIELDS)))
    event |= {name: draw(field) for name, field in list(FIELDS.items())[:chosen]}
    if draw(st.booleans()):
        return ["BlockStored", *list(event.values())[1:]]
    if draw(st.booleans()):
        event["cache_salt"] = draw(st.one_of(NAMES, ODD))
    event["locality"] = "LOCAL"
    return event


EVENTS = st.one_of(
    stored_events(),
    stored_events(),
    st.lists(HASHES, max_size=3).map(lambda hashes: ["BlockRemoved", hashes, "GPU"]),
    st.tuples(st.lists(HASHES, max_size=3), st.integers(0, 3)).map(lambda pair: removed(*pair[0], group_idx=pair[1])),
    st.sampled_from([cleared(), ["AllBlocksCleared"], ["Unknown", 1], {"type": 3}, [], {}, 7, [7], None, {"typ": "BlockStored"}]),
)
BATCHES = st.one_of(
    st.lists(EVENTS, max_size=5).map(lambda events: msgspec.msgpack.encode([1.5, events, 0])),
    st.lists(EVENTS, max_size=3).map(lambda events: msgspec.msgpack.encode({"timestamp": 1.5, "events": events})),
    ODD.map(msgspec.msgpack.encode),
)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    payload = draw(BATCHES)
    if draw(st.integers(0, 3)) == 0:
        payload = payload[: draw(st.integers(0, len(payload)))]
    return payload


@contextlib.contextmanager
def served_by(*, compiled: bool) -> Iterator[None]:
    """Calls inside are served by kernels or by plain Python."""
    kernels.load_writing()
    with mock.patch.object(kernels, "ready", return_value=compiled):
        yield


def _words(index: PrefixIndex) -> np.ndarray:
    words = index._table.array.copy()
    words[[at.H_VERSION, at.H_DIRECTORY_VERSION]] = 0
    return words


def _ingest(messages: list[bytes], *, compiled: bool) -> tuple[list[object], PrefixIndex]:
    index = PrefixIndex(32)
    with served_by(compiled=compiled):
        return [index.ingest("a", message, model="m") for message in messages], index


@given(st.lists(payloads(), min_size=1, max_size=6))
@settings(max_examples=400)
@example([b"\x92\xcb"])
@example([b"\x93\x01\xdd\xff\xff\xff\xff"])
@example([b"\x92\x01\x91\x86\xa4type\xabBlockStored\xacblock_hashes\xdd\xff\xff\xff\xff"])
@example([batch(stored([1], range(4), lora_name="\ud800".encode("utf-16", "surrogatepass").decode("latin-1")))])
@example([batch(stored([1], range(4)))[:-1] + b"\xc1"])
def test_kernel_and_plain_python_agree_on_every_message(messages: list[bytes]) -> None:
    compiled_results, compiled = _ingest(messages, compiled=True)
    plain_results, plain_index = _ingest(messages, compiled=False)
    assert compiled_results == plain_results
    assert np.array_equal(_words(compiled), _words(plain_index))
    assert compiled.held("a") == plain_index.held("a")


@given(st.lists(payloads(), min_size=1, max_size=3), st.data())
@settings(max_examples=300)
def test_mutated_bytes_neither_crash_the_kernel_nor_break_its_counts(messages: list[bytes], data: st.DataObject) -> None:
    index = PrefixIndex(32)
    for message in messages:
        raw = bytearray(message)
        for _ in range(data.draw(st.integers(1, 4))):
            if raw:
                raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        index.ingest("a", bytes(raw))
    stats = index.stats()
    assert int(index.map(3).sum()) == stats.copies == stats.distinct_blocks


@given(st.lists(st.integers(0, 2**32 - 1), max_size=70), st.integers(1, 33), st.integers(0, 2**64 - 1))
def test_hash_chains_agree_for_any_block_size(tokens: list[int], block_size: int, start: int) -> None:
    array = np.array(tokens, np.uint32)
    keys = np.zeros(len(tokens) // block_size, np.uint64)
    kernels.load().hash_prompt(array, block_size, np.uint64(start), np.uint64(0), keys)
    assert keys.tolist() == hashing.chain_keys(array, block_size, start)


@given(
    st.one_of(
        st.text('[]0123456789, \n-.e"', max_size=24).map(str.encode),
        st.binary(max_size=16),
        st.lists(st.integers(0, 2**33)).map(msgspec.json.encode),
    )
)
@settings(max_examples=400)
@example(b"[1,2")
@example(b"[01]")
@example(b"[-0]")
@example(b"[1.0]")
@example(b" [ 4294967295 , 0 ] ")
@example(b"[4294967296]")
@example(b"[true]")
@example(b"[]")
@example(b"[ ]")
@example(b"[1,]")
@example(b"[1]]")
@example(b"[18446744073709551617]")
def test_token_parsers_agree_on_every_text(raw: bytes) -> None:
    def parse(compiled: bool) -> object:
        with served_by(compiled=compiled):
            try:
                return parse_token_array(b"9]" + raw + b",9]", 2, 2 + len(raw)).tolist()
            except ValueError:
                return "refused"

    assert parse(True) == parse(False)


@given(st.lists(st.integers(0, 2), min_size=0, max_size=40), st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=8))
def test_compiled_and_plain_look_ups_agree(tokens: list[int], holdings: list[tuple[str, int]]) -> None:
    index = PrefixIndex(64)
    for pod, blocks in holdings:
        index.ingest(pod, batch(stored(range(1, blocks + 1), [0, 1, 2, 0] * blocks)))
    text = b'{"prompt":' + msgspec.json.encode(tokens) + b"}"
    found = []
    for compiled in (True, False):
        with served_by(compiled=compiled):
            found.append(dict(index.match(tokens)))
            lookup = index.lookup(["c", "nobody", "a"])
            assert lookup.match_text(text, 10, len(text) - 1) == ([found[-1].get("c", 0), 0, found[-1].get("a", 0)], len(tokens))
            with pytest.raises(ValueError, match="token ids"):
                lookup.match_text(text, 9, len(text) - 1)
    assert found[0] == found[1]
