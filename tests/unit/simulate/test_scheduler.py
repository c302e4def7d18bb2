"""The engine core, rule by rule: what is shared, what is published, who waits, who is thrown out. Bytes of events: the goldens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.engines.cost import StepCost
from backend.simulate.engine.hashing import BlockHasher
from backend.simulate.engine.model import AllBlocksCleared, BlockRemoved, BlockStored, CoreSettings
from backend.simulate.engine.scheduler import EngineCore
from tests.fakes.engines import always, sequence


def core(*, block_size=4, num_blocks=17, max_model_len=64, max_num_seqs=8, budget=64, cost=StepCost(1.0, 0.01, 0.1), speed=1.0):  # noqa: B008  frozen
    limits = CoreSettings(
        block_size=block_size,
        num_blocks=num_blocks,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
    )
    return EngineCore(limits, BlockHasher(seed="0"), always(9), cost, speed=speed)


def run(engine, *requests):
    """Run to the end; events of all steps in order."""
    for request in requests:
        engine.add(request)
    events = []
    while step := engine.begin_step(0.0):
        events += engine.finish_step(step, 0.0).events
    return events


def test_a_fully_cached_prompt_computes_at_least_its_last_token():
    engine = core()
    run(engine, sequence(range(8)))
    again = sequence(range(8))
    engine.add(again)
    step = engine.begin_step(0.0)
    assert again.cached_tokens == 4
    assert step.work == [(again, 4)]


@pytest.mark.parametrize(
    ("prompt", "cached"), [(8, 4), (9, 8), (12, 8), (13, 12)], ids=["two_blocks", "and_one_token", "three_blocks", "and_one"]
)
def test_a_hit_is_at_most_the_blocks_before_the_last_token(prompt, cached):
    engine = core()
    run(engine, sequence(range(16)))
    again = sequence(range(prompt))
    run(engine, again)
    assert again.cached_tokens == cached


def test_a_hit_publishes_nothing():
    engine = core()
    run(engine, sequence(range(9)))
    assert run(engine, sequence(range(9))) == []


def test_the_salt_is_in_the_first_blocks_keys_and_changes_all_hashes():
    engine = core()
    plain = run(engine, sequence(range(9)))[0]
    salted = run(engine, sequence(range(9), cache_salt="tenant-A"))[0]
    assert salted.extra_keys == [("tenant-A",), None]
    assert not set(plain.hashes) & set(salted.hashes)


def test_a_removal_is_told_for_each_physical_copy():
    engine = core(num_blocks=5)
    first = run(engine, sequence(range(7), max_tokens=2))  # its second block is filled by decode
    second = run(engine, sequence(range(7), max_tokens=2))
    assert first[-1].hashes[-1] == second[0].hashes[0], "a second copy of one hash"
    events = run(engine, sequence(range(100, 116)))
    copies = [event for event in events if isinstance(event, BlockRemoved) and event.hashes == second[0].hashes]
    assert len(copies) == 2


def test_blocks_without_content_are_used_again_before_anything_is_evicted():
    engine = core(num_blocks=7)
    run(engine, sequence(range(17)))  # four cached blocks and a fifth that is not full
    events = run(engine, sequence(range(100, 108)))  # two blocks: the one never used, and the one without content
    assert [type(event) for event in events] == [BlockStored]


def test_clearing_is_refused_while_a_block_is_in_use_and_told_late_otherwise():
    engine = core()
    engine.add(sequence(range(9), max_tokens=3))
    step = engine.begin_step(0.0)
    assert not engine.clear_cache()
    engine.finish_step(step, 0.0)
    run(engine)
    assert engine.clear_cache()
    events = run(engine, sequence(range(9)))
    assert [type(event) for event in events] == [AllBlocksCleared, BlockStored]


def test_more_requests_than_seats_wait():
    engine = core(max_num_seqs=2)
    for start in (0, 100, 200):
        engine.add(sequence(range(start, start + 4), max_tokens=2))
    engine.begin_step(0.0)
    assert (len(engine.running), len(engine.waiting)) == (2, 1)


def test_a_long_prompt_is_computed_in_chunks_beside_running_decodes():
    engine = core(budget=8)
    short, long = sequence(range(4), max_tokens=5), sequence(range(100, 120))
    engine.add(short)
    engine.finish_step(engine.begin_step(0.0), 0.0)
    engine.add(long)
    chunks = []
    while long.generated == 0:
        step = engine.begin_step(0.0)
        chunks.append({request is long: count for request, count in step.work})
        engine.finish_step(step, 0.0)
    assert chunks == [{False: 1, True: 7}, {False: 1, True: 7}, {False: 1, True: 6}]


def test_the_youngest_is_preempted_for_the_oldest_and_finishes_later():
    engine = core(num_blocks=5, max_model_len=16)
    old, young = sequence(range(4), max_tokens=8), sequence(range(100, 104), max_tokens=8)
    run(engine, old, young)
    assert (old.preemptions, old.generated, old.finish_reason) == (0, 8, "length")
    assert young.preemptions > 0
    assert (young.generated, young.finish_reason) == (8, "length")
    assert engine.blocks.used == 0


def test_an_aborted_request_frees_its_blocks_also_in_the_middle_of_a_step():
    engine = core()
    leaver, stayer = sequence(range(20), max_tokens=5), sequence(range(100, 110), max_tokens=2)
    engine.add(leaver)
    engine.add(stayer)
    step = engine.begin_step(0.0)
    assert engine.abort(leaver)
    result = engine.finish_step(step, 0.0)
    assert [request for request, _ in result.tokens] == [stayer]
    run(engine)
    assert (leaver.finish_reason, engine.blocks.used, engine.idle) == ("abort", 0, True)
    assert not engine.abort(stayer), "it had ended"


def test_usage_counts_blocks_of_running_requests_only():
    engine = core(num_blocks=17)
    engine.add(sequence(range(16), max_tokens=2))
    step = engine.begin_step(0.0)
    assert engine.kv_usage == 4 / 16
    engine.finish_step(step, 0.0)
    run(engine)
    assert engine.kv_usage == 0


def test_a_step_takes_base_plus_kv_plus_prefill_time_over_speed():
    engine = core(speed=2.0)
    engine.add(sequence(range(10), max_tokens=2))
    prefill = engine.begin_step(0.0)
    assert prefill.seconds == pytest.approx((1.0 + 0.01 * 10 + 0.1 * 10) / 2)
    engine.finish_step(prefill, 0.0)
    assert engine.begin_step(0.0).seconds == pytest.approx((1.0 + 0.01 * 11) / 2)


def test_an_answer_stops_at_the_context_length():
    request = sequence(range(60), max_tokens=50)
    run(core(), request)
    assert (len(request.tokens), request.finish_reason) == (64, "length")


REQUESTS = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=24), st.integers(1, 12), st.booleans()), min_size=1, max_size=12
)


@settings(max_examples=150, deadline=None)
@given(REQUESTS, st.integers(9, 14), st.integers(3, 20))
def test_whatever_comes_blocks_are_conserved_and_events_mirror_the_cache(requests, num_blocks, budget):
    """A consumer that counts stores and removals per hash holds at every step exactly what a lookup would find."""
    engine = core(num_blocks=num_blocks, max_model_len=(num_blocks - 1) * 4, budget=budget, max_num_seqs=3)
    seen: dict[bytes, int] = {}
    live = []
    for tokens, max_tokens, leave in requests:
        request = sequence(tokens, max_tokens)
        engine.add(request)
        live.append(request)
        step = engine.begin_step(0.0)
        if leave:
            engine.abort(request)
        if step is not None:
            count(seen, engine.finish_step(step, 0.0).events)
            assert set(seen) == set(engine.blocks.cached_hashes)
    while step := engine.begin_step(0.0):
        count(seen, engine.finish_step(step, 0.0).events)
        assert set(seen) == set(engine.blocks.cached_hashes)
    assert all(request.finish_reason for request in live)
    assert engine.blocks.used == 0


def count(seen, events):
    for event in events:
        for digest in event.hashes:
            change = 1 if isinstance(event, BlockStored) else -1
            seen[digest] = seen.get(digest, 0) + change
            assert seen[digest] >= 0
            if not seen[digest]:
                del seen[digest]
