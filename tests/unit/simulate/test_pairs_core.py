"""Prefill and decode in the engine core: what is held, fetched, given up; and that no block is ever lost, whatever comes in which order."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backend.simulate.engine.model import BlockStored
from tests.fakes.engines import sequence
from tests.unit.simulate.test_scheduler import core, run


def fetching(engine, tokens, **more):
    request = sequence(tokens, fetch=True, **more)
    engine.add(request)
    assert engine.begin_step(0.0) is None
    return request


def finish(engine):
    events = []
    while step := engine.begin_step(0.0):
        events += engine.finish_step(step, 0.0).events
    return events


def test_a_prefill_that_was_asked_to_keeps_its_blocks_until_they_are_released():
    engine = core()
    request = sequence(range(9), hold=True)
    run(engine, request)
    assert (engine.idle, engine.blocks.used) == (True, 3)
    assert engine.held.release(request.request_id)
    assert engine.blocks.used == 0
    assert not engine.held.release(request.request_id)


def test_one_that_ends_by_itself_or_is_aborted_keeps_nothing():
    engine = core()
    run(engine, sequence(range(9), hold=True, limit_reason="stop"))
    assert engine.blocks.used == 0
    aborted = sequence(range(9), hold=True)
    engine.add(aborted)
    engine.begin_step(0.0)
    engine.abort(aborted)
    assert engine.blocks.used == 0


@pytest.mark.parametrize(("prompt", "blocks"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_a_decode_has_room_for_its_prompt_and_is_not_in_the_batch(prompt, blocks):
    engine = core()
    request = fetching(engine, range(prompt))
    assert (engine.blocks.used, engine.running, engine.fetch_starts) == (blocks, [], [request])
    assert request.external_tokens == prompt


def test_when_the_kv_has_come_only_the_last_token_is_computed_and_full_blocks_are_told():
    engine = core()
    request = fetching(engine, range(9), max_tokens=2)
    assert engine.fetched(request)
    step = engine.begin_step(3.0)
    assert step.work == [(request, 1)]
    assert request.scheduled_at == 3.0
    (event,) = engine.finish_step(step, 3.0).events
    assert (type(event), len(event.hashes)) == (BlockStored, 2)


def test_what_is_cached_here_is_not_fetched():
    engine = core()
    run(engine, sequence(range(9)))
    request = fetching(engine, [*range(8), 99, 98])
    assert (request.cached_tokens, request.external_tokens) == (8, 2)


def test_kv_that_does_not_come_ends_the_request_and_frees_its_blocks():
    engine = core()
    request = fetching(engine, range(9))
    assert engine.fetch_failed(request)
    assert (request.finish_reason, engine.blocks.used, engine.idle) == ("error", 0, True)
    assert not engine.fetched(request)
    assert not engine.fetch_failed(request)


def test_a_decode_waits_for_room_and_whoever_is_behind_it_waits_too():
    engine = core(num_blocks=4)
    running = sequence(range(9), max_tokens=2)
    engine.add(running)
    step = engine.begin_step(0.0)
    wanted, behind = sequence(range(50, 55), fetch=True), sequence([7])
    engine.add(wanted)
    engine.add(behind)
    assert engine.fetch_starts == []
    engine.finish_step(step, 0.0)
    finish(engine)
    assert engine.fetch_starts == [wanted]
    assert behind.finish_reason == "length"


def test_a_decode_that_loses_its_place_computes_its_prompt_itself():
    engine = core(num_blocks=6)
    first = sequence(range(9), max_tokens=8)
    engine.add(first)
    step = engine.begin_step(0.0)
    request = sequence(range(50, 57), max_tokens=8, fetch=True)
    engine.add(request)
    engine.finish_step(step, 0.0)
    engine.begin_step(0.0)
    engine.fetched(request)
    finish(engine)
    assert (request.preemptions > 0, request.generated, engine.blocks.used) == (True, 8, 0)


def test_leases_end_but_not_while_somebody_is_there():
    engine = core()
    for name in ("a", "b"):
        request = sequence(range(9), hold=True)
        request.request_id = name
        run(engine, request)
    lease = engine.settings.lease_s
    assert engine.held.next_expiry() == lease
    assert engine.held.pin("a") == 9
    assert engine.held.expire(lease) == ["b"]
    assert engine.held.next_expiry() is None
    engine.held.unpin("a", lease)
    assert engine.held.expire(2 * lease) == ["a"]
    assert engine.blocks.used == 0
    assert engine.held.pin("a") is None


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.booleans(), st.booleans(), st.sampled_from(["run", "come", "fail", "abort", "release"])),
        max_size=30,
    )
)
@settings(max_examples=100)
@example([*[(1, False, True, "run")] * 4, (5, False, True, "run"), (19, False, False, "run"), (29, False, True, "run")])
def test_no_block_is_lost_whatever_happens_to_whom(story):
    engine = core(num_blocks=20)
    known = []
    for number, (length, hold, fetch, then) in enumerate(story):
        request = sequence(range(number, number + length), max_tokens=3, hold=hold, fetch=fetch)
        request.request_id = str(number)
        engine.add(request)
        known.append(request)
        step = engine.begin_step(0.0)
        if then == "come" and engine.fetching:
            engine.fetched(engine.fetching[0])
        elif then == "fail" and engine.fetching:
            engine.fetch_failed(engine.fetching[-1])
        elif then == "abort":
            engine.abort(known[number // 2])
        elif then == "release":
            engine.held.release(str(number // 2))
        if step is not None:
            engine.finish_step(step, 0.0)
    for _ in range(1000):
        for request in list(engine.fetching):
            engine.fetched(request)
        engine.held.expire(1e9)
        step = engine.begin_step(0.0)
        if step is not None:
            engine.finish_step(step, 0.0)
    assert engine.idle
    assert len(engine.held) == 0
    assert engine.blocks.used == 0
    assert all(request.finish_reason for request in known)
