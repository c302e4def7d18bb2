"""What the index says after events: case by case. Not here: other processes (test_readers), sockets (tests/behaviour)."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from backend.core.errors import UsageError
from backend.kvindex import PrefixIndex, hashing
from tests.fakes.events import batch, cleared, removed, stored

PROMPT = list(range(100, 148))


def chain(
    blocks: int, *, size: int = 4, first: int = 1, parent: object = None, tokens: list[int] | None = None, **more: object
) -> dict[str, object]:
    """A BlockStored of the prompt's first blocks under engine hashes first, first + 1, ..."""
    return stored(range(first, first + blocks), (tokens or PROMPT)[: blocks * size], parent=parent, block_size=size, **more)


def index_with(*events: object, pod: str = "a", **more: object) -> PrefixIndex:
    index = PrefixIndex(64)
    index.ingest(pod, batch(*events), **more)  # type: ignore[arg-type]
    return index


def test_the_block_hash_is_xxh64_of_little_endian_tokens() -> None:
    tokens = np.array(PROMPT, np.uint32)
    assert hashing.block_hashes(tokens, 12) == [
        xxhash.xxh64_intdigest(tokens[at : at + 12].tobytes(), hashing.SEED) for at in (0, 12, 24, 36)
    ]
    for size in (0, 3, 4, 8, 31, 32, 33, 100):
        assert hashing.xxh64(bytes(range(size)), 5) == xxhash.xxh64_intdigest(bytes(range(size)), 5)


def test_whole_blocks_inside_the_prompt_match() -> None:
    index = index_with(chain(3))
    assert index.match(PROMPT[:12]) == {"a": 12}
    assert index.match(PROMPT[:11]) == {"a": 8}
    assert index.match([*PROMPT[:8], 0, 0, 0, 0]) == {"a": 8}
    assert index.match(PROMPT[:3]) == {}
    assert index.match(PROMPT)["nobody"] == 0


def test_later_blocks_are_chained_to_their_parent() -> None:
    index = index_with(chain(2), stored([3], PROMPT[8:12], parent=2))
    assert index.match(PROMPT) == {"a": 12}
    assert index.match(PROMPT[8:]) == {}


def test_pods_filter_restricts_the_answer() -> None:
    index = index_with(chain(2))
    index.ingest("b", batch(chain(3)))
    assert index.match(PROMPT) == {"a": 8, "b": 12}
    assert list(index.match(PROMPT)) == ["b", "a"]
    assert index.match(PROMPT, pods=["a", "c"]) == {"a": 8}


@pytest.mark.parametrize(
    ("more", "query"),
    [
        ({"lora_name": "adapter"}, {"lora": "adapter"}),
        ({"lora_id": 3}, {"lora": 3}),
        ({"extra_keys": [["tenant"], None]}, {"salt": "tenant"}),
        ({"cache_salt": "tenant"}, {"salt": "tenant"}),
        ({"lora_name": "adapter", "extra_keys": [["adapter", "tenant"], ["adapter"]]}, {"lora": "adapter", "salt": "tenant"}),
    ],
    ids=["adapter_by_name", "adapter_by_number", "salt_in_extra_keys", "salt_as_a_field", "both"],
)
def test_adapter_and_salt_keep_prefixes_apart(more: dict[str, object], query: dict[str, object]) -> None:
    index = index_with(chain(2, **more))
    assert index.match(PROMPT) == {}
    assert index.match(PROMPT, **query) == {"a": 8}  # type: ignore[arg-type]


def test_models_keep_prefixes_apart() -> None:
    index = index_with(chain(2), model="qwen")
    assert index.match(PROMPT) == {}
    assert index.match(PROMPT, model="qwen") == {"a": 8}


def test_multimodal_content_behind_equal_tokens_does_not_match_text() -> None:
    index = index_with(chain(2, extra_keys=[None, [["image-id", 4]]]))
    assert index.match(PROMPT) == {"a": 4}


def test_block_sizes_stand_side_by_side() -> None:
    index = index_with(chain(4))
    index.ingest("b", batch(chain(1, size=16)))
    index.ingest("c", batch(chain(40, size=1)))
    assert index.match(PROMPT[:18]) == {"c": 18, "a": 16, "b": 16}
    assert [index.block_size(pod) for pod in "abcd"] == [4, 16, 1, 0]


def test_a_duplicate_store_survives_one_removal() -> None:
    index = index_with(chain(2), chain(2))
    assert index.counters("a") == (4, 0)
    index.ingest("a", batch(removed(1), removed(2)))
    assert index.match(PROMPT) == {"a": 8}
    index.ingest("a", batch(removed(2)))
    assert index.match(PROMPT) == {"a": 4}
    assert index.held("a") == {1}


def test_removal_takes_one_pod_only() -> None:
    index = index_with(chain(2))
    index.ingest("b", batch(chain(2)))
    result = index.ingest("a", batch(removed(2, 99)))
    assert (result.removed, result.unknown) == (1, 1)
    assert index.match(PROMPT) == {"b": 8, "a": 4}


def test_cleared_empties_one_rank_of_one_pod() -> None:
    index = index_with(chain(2))
    index.ingest("a", batch(chain(3)), rank=1)
    index.ingest("b", batch(chain(1)))
    assert index.ingest("a", batch(cleared()), rank=1).cleared == 1
    assert index.match(PROMPT) == {"a": 8, "b": 4}
    assert index.ingest("a", batch(cleared(), chain(1))).stored == 1
    assert index.match(PROMPT) == {"a": 4, "b": 4}


def test_the_best_rank_of_a_pod_counts() -> None:
    index = index_with(chain(1))
    index.ingest("a", batch(chain(3)), rank=1)
    assert index.match(PROMPT) == {"a": 12}
    assert index.pods() == ("a",)


def test_engine_hashes_of_two_pods_mean_different_things_by_default() -> None:
    index = index_with(chain(2))
    index.ingest("b", batch(stored([1], [7, 7, 7, 7])))
    index.ingest("b", batch(stored([2], PROMPT[4:8], parent=1)))
    assert index.match(PROMPT) == {"a": 8}
    assert index.match([7, 7, 7, 7, *PROMPT[4:8]]) == {"b": 8}


def test_a_shared_domain_lets_one_pod_continue_what_another_stored() -> None:
    index = PrefixIndex(64)
    index.ingest("a", batch(chain(2)), domain="seed-0")
    assert index.ingest("b", batch(stored([3], PROMPT[8:12], parent=2)), domain="seed-0").stored == 1
    index.remove_pod("a")
    assert index.held("b") == {3}
    assert index.ingest("b", batch(stored([4], PROMPT[12:16], parent=2)), domain="seed-0").parked == 1


def test_blocks_with_unknown_parent_wait_for_it() -> None:
    index = PrefixIndex(64)
    late = stored([3], PROMPT[8:12], parent=2)
    assert (index.ingest("a", batch(late)).parked, index.match(PROMPT)) == (1, {})
    assert index.stats().parked == 1
    result = index.ingest("a", batch(chain(2)))
    assert (result.stored, result.parked) == (3, 0)
    assert (index.match(PROMPT), index.stats().parked) == ({"a": 12}, 0)


def test_a_waiting_block_that_is_removed_never_comes() -> None:
    index = PrefixIndex(64)
    index.ingest("a", batch(stored([3], PROMPT[8:12], parent=2)))
    index.ingest("a", batch(removed(3)))
    index.ingest("a", batch(chain(2)))
    assert index.match(PROMPT) == {"a": 8}


def test_waiting_blocks_are_bounded() -> None:
    index = PrefixIndex(64)
    for at in range(2000):
        index.ingest("a", batch(stored([at + 10], PROMPT[:4], parent=5)))
    assert 0 < index.stats().parked <= 256
    assert index.given_up("a") == 2000 - 256
    assert (index.given_up("a", 1), index.given_up("b")) == (0, 0)


def test_groups_that_hold_less_than_prefixes_are_left_out() -> None:
    index = index_with(
        chain(2, group_idx=0, kv_cache_spec_kind="full_attention"), chain(2, group_idx=1, kv_cache_spec_kind="sliding_window")
    )
    result = index.ingest("a", batch(removed(1, 2, group_idx=1)))
    assert (result.ignored, result.removed, index.match(PROMPT)) == (1, 0, {"a": 8})


def test_growth_and_clean_up_lose_nothing() -> None:
    index = PrefixIndex(16)
    rng = np.random.default_rng(3)
    alive: dict[int, list[int]] = {}
    for turn in range(400):
        tokens = rng.integers(0, 1000, 40).tolist()
        first = turn * 10 + 1
        index.ingest("a", batch(stored(range(first, first + 10), tokens)))
        alive[first] = tokens
        if len(alive) > 20:
            oldest = next(iter(alive))
            del alive[oldest]
            index.ingest("a", batch(removed(*range(oldest + 9, oldest - 1, -1))))
    stats = index.stats()
    assert stats.copies == stats.distinct_blocks == 200 == len(index.held("a"))
    assert stats.generation > 2
    assert stats.capacity_blocks <= 1024
    for tokens in alive.values():
        assert index.match(tokens) == {"a": 40}


def test_more_pods_than_one_bitmap_word() -> None:
    index = PrefixIndex(64)
    for pod in range(200):
        index.ingest(f"pod-{pod}", batch(chain(1 + pod % 3)))
    matches = index.match(PROMPT)
    assert len(matches) == 200
    assert all(matches[f"pod-{pod}"] == 4 * (1 + pod % 3) for pod in range(200))
    for pod in range(100):
        index.remove_pod(f"pod-{pod}")
    assert len(index.match(PROMPT)) == 100
    assert index.stats().copies == sum(1 + pod % 3 for pod in range(100, 200))


def test_a_removed_pod_leaves_nothing_and_its_place_is_used_again() -> None:
    index = index_with(chain(3))
    index.remove_pod("a")
    index.remove_pod("never-seen")
    assert (index.match(PROMPT), index.pods(), index.stats().distinct_blocks) == ({}, (), 0)
    index.ingest("b", batch(chain(1)))
    assert index.match(PROMPT) == {"b": 4}


def test_the_map_puts_related_prefixes_side_by_side() -> None:
    index = PrefixIndex(256)
    for prompt in range(4):
        tokens = [prompt * 1000 + at for at in range(40)]
        index.ingest("ab"[prompt % 2], batch(stored(range(prompt * 10 + 1, prompt * 10 + 11), tokens)))
    blocks = index.map(4)
    assert index.pods() == ("a", "b")
    assert blocks.sum(axis=0).tolist() == [10, 10, 10, 10]
    assert set(blocks.flatten().tolist()) == {0, 10}


def test_the_map_counts_every_block_once_a_pod() -> None:
    index = index_with(chain(5))
    index.ingest("a", batch(chain(2)), rank=1)
    index.ingest("b", batch(chain(3)))
    assert index.map(7).sum(axis=1).tolist() == [7, 3]
    assert index.map(1, ["b"]).tolist() == [[3]]
    assert PrefixIndex(8).map(3).shape == (0, 3)


def test_shared_prefixes_are_found_where_they_end() -> None:
    index = index_with(chain(3))
    for pod, own in (("b", 7), ("c", 8)):
        index.ingest(pod, batch(chain(3), stored([20 + own], [own] * 4, parent=3)))
    (shared,) = index.shared()
    assert (shared.pods, shared.depth, shared.tokens, shared.children) == (["a", "b", "c"], 3, 12, 2)


def test_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError):
        PrefixIndex(8).ingest("", batch())
    with pytest.raises(UsageError):
        PrefixIndex(8).ingest("p" * 300, batch())


@pytest.mark.parametrize("tokens", [[-1], [2**32], ["a"], [1.5, None]])
def test_what_is_no_token_is_refused(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="token ids"):
        PrefixIndex(8).match(tokens)


def test_many_messages_in_one_call_do_what_one_by_one_does() -> None:
    messages = [batch(chain(3)), batch(removed(3)), b"broken", batch(cleared()), batch(chain(2))]
    together, alone = PrefixIndex(64), PrefixIndex(64)
    result = together.ingest_many("a", messages)
    for message in messages:
        alone.ingest("a", message)
    assert (result.stored, result.removed, result.cleared, result.reasons) == (5, 1, 1, {"not_a_batch": 1})
    assert together.match(PROMPT) == alone.match(PROMPT) == {"a": 8}
