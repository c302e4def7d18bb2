"""The engine core against what a real vLLM 0.32.0 sent: same requests, same output tokens, same bytes but for the time stamp.

The recorded engine had 63 usable blocks of 32 tokens and PYTHONHASHSEED=0.
"""

import json
from pathlib import Path

import msgspec
import pytest

from backend.engines.cost import StepCost
from backend.simulate.engine.dialect import dialect_of
from backend.simulate.engine.hashing import BlockHasher
from backend.simulate.engine.model import BlockRemoved, Event
from backend.simulate.engine.scheduler import EngineCore
from backend.simulate.engine.tokenizer import FileTokenizer
from tests.fakes.engines import SMALL, always, sequence

DATA = Path(__file__).parents[2] / "data" / "engines"
BASIC = json.loads((DATA / "http" / "completion_basic.json").read_text())["response"]["json"]["choices"][0]["prompt_token_ids"]


def recorded(name: str) -> list[dict]:
    return json.loads((DATA / "kv_events" / f"{name}.json").read_text())["batches"]


def engine(token: int) -> EngineCore:
    return EngineCore(SMALL, BlockHasher(seed="0"), always(token), StepCost(0, 0, 0))


def batches(core: EngineCore, *requests) -> list[list[Event]]:
    """Run requests to their end; the events of each step that had any."""
    for request in requests:
        core.add(request)
    found = []
    while step := core.begin_step(0.0):
        events = core.finish_step(step, 0.0).events
        if events:
            found.append(events)
    return found


def assert_same_bytes(found: list[list[Event]], expected: list[dict], block_size: int = 32) -> None:
    dialect = dialect_of((0, 32, 0))
    for events, batch in zip(found, expected, strict=True):
        written = dialect.encode(batch["decoded"][0], events, block_size=block_size)
        assert written.hex() == batch["frames_hex"][2]


def test_a_new_prompt_is_stored_at_prefill_and_its_next_block_when_decode_fills_it():
    assert_same_bytes(batches(engine(226), sequence(BASIC, 8)), recorded("01_new_prompt"))


def test_a_repeated_prompt_publishes_only_a_second_copy_of_the_block_beyond_it():
    core = engine(226)
    batches(core, sequence(BASIC, 8))
    assert_same_bytes(batches(core, sequence(BASIC, 8)), recorded("02_same_prompt"))


def test_a_prompt_that_diverges_stores_its_own_blocks_behind_the_shared_parent():
    first, second = (batch["decoded"][1][0]["token_ids"] for batch in recorded("03_shared_prefix"))
    core = engine(226)
    batches(core, sequence(BASIC, 8))
    prompt = BASIC[:64] + first + second[:18]
    assert_same_bytes(batches(core, sequence(prompt, 20)), recorded("03_shared_prefix"))


def test_chat_messages_become_the_recorded_tokens_and_blocks():
    body = json.loads((DATA / "http" / "chat_basic.json").read_text())["request"]["json"]
    tokenizer = FileTokenizer(DATA / "tiny_model" / "tokenizer.json")
    prompt = tokenizer.chat(body["messages"], add_generation_prompt=True)
    assert_same_bytes(batches(engine(992), sequence(prompt, 8)), recorded("05_chat"))


def test_hits_are_told_too_when_the_request_asks_for_a_full_report():
    tokens = recorded("14_report_mode_full")[0]["decoded"][1][0]["token_ids"]
    core = engine(7)
    batches(core, sequence([*tokens, 1]))
    again = sequence([*tokens, 1], report_hits=True, session_id="s-1")
    assert_same_bytes(batches(core, again), recorded("14_report_mode_full"))


def test_a_cleared_cache_is_told_in_front_of_the_next_step():
    prompt = json.loads((DATA / "pd_nixl" / "01_prefill.json").read_text())["request"]["json"]["prompt"]
    core = engine(384)
    assert core.clear_cache()
    assert_same_bytes(batches(core, sequence(prompt, 1)), recorded("20_pd_prefill_P"))


def test_a_full_cache_gives_its_oldest_tails_one_by_one_before_what_is_stored():
    expected = recorded("07_decode_blocks")
    first, second = (expected[at]["decoded"][1] for at in (0, 1))
    core = engine(380)
    fillers = [sequence(range(1000 + 64 * number, 1064 + 64 * number)) for number in range(30)]
    for filler in fillers:
        batches(core, filler)  # two cached blocks each, three blocks never used
    found = batches(core, sequence(first[1]["token_ids"] + second[0]["token_ids"][:4], 200))

    removed = [event.hashes for events in found for event in events if isinstance(event, BlockRemoved)]
    tail_first = [[digest] for filler in fillers for digest in reversed(filler.hashes)]
    assert removed == tail_first[: len(removed)]

    kept = [[event for event in events if not isinstance(event, BlockRemoved)] for events in found]
    shape = [[event["type"] for event in batch["decoded"][1]] for batch in expected]
    assert [[type(event).__name__ for event in events] for events in found] == shape
    for events, batch in zip(kept, expected, strict=True):
        stored = [event for event in batch["decoded"][1] if event["type"] == "BlockStored"]
        written = msgspec.msgpack.decode(dialect_of((0, 32, 0)).encode(0.0, events, block_size=32))
        assert written[1] == stored


@pytest.mark.parametrize("name", ["01_new_prompt", "05_chat"])
def test_another_seed_gives_other_hashes_for_the_same_tokens(name):
    batch = recorded(name)[0]["decoded"][1][0]
    other = BlockHasher(seed="1")
    hashes: list[bytes] = []
    other.extend(hashes, batch["token_ids"], 32)
    assert len(hashes) == len(batch["block_hashes"])
    assert not {int.from_bytes(digest[-8:], "big") for digest in hashes} & set(batch["block_hashes"])
