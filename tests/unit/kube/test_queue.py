"""The work queue's promises, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.core.metrics import Registry
from backend.kube.backoff import Backoff
from backend.kube.figures import KubeFigures
from backend.kube.queue import WorkQueue

pytestmark = pytest.mark.looptime


def now() -> float:
    return asyncio.get_running_loop().time()


async def take(queue: WorkQueue[str]) -> tuple[str, float]:
    key = await queue.get()
    return key, round(now(), 3)


async def test_adds_within_the_window_become_one_piece_of_work() -> None:
    queue: WorkQueue[str] = WorkQueue(coalesce_s=0.05)
    for _ in range(10):
        queue.add("a")
        await asyncio.sleep(0.004)
    assert await take(queue) == ("a", 0.05)
    queue.done("a")
    assert len(queue) == 0


async def test_a_key_added_during_work_comes_again_and_never_twice_at_once() -> None:
    queue: WorkQueue[str] = WorkQueue(coalesce_s=0.0)
    queue.add("a")
    assert (await queue.get()) == "a"
    queue.add("a")
    second = asyncio.create_task(take(queue))
    await asyncio.sleep(5)
    assert not second.done(), "the first worker is not done yet"
    queue.done("a")
    assert await second == ("a", 5.0)


async def test_the_earlier_of_two_dates_holds() -> None:
    queue: WorkQueue[str] = WorkQueue(coalesce_s=0.05)
    queue.add_after("a", 60)
    queue.add_after("b", 30)
    queue.add_after("a", 10)
    queue.add_after("b", 40)
    assert [await take(queue), await take(queue)] == [("a", 10.0), ("b", 30.0)]


async def test_a_failing_key_waits_longer_each_time_and_others_do_not() -> None:
    queue: WorkQueue[str] = WorkQueue(coalesce_s=0.0, backoff=Backoff(first_s=1.0, longest_s=5.0))
    queue.add("bad")
    seen: list[float] = []
    for _ in range(5):
        key, at = await take(queue)
        seen.append(at)
        queue.retry(key)
        queue.done(key)
    assert seen == [0.0, 1.0, 3.0, 7.0, 12.0]
    queue.add("good")
    assert await take(queue) == ("good", 12.0)
    queue.done("good")
    await queue.get()
    queue.forget("bad")
    queue.retry("bad")
    queue.done("bad")
    assert queue.failures("bad") == 1
    assert await take(queue) == ("bad", 18.0), "after success the first delay holds again"


async def test_an_event_does_not_wait_for_the_back_off() -> None:
    queue: WorkQueue[str] = WorkQueue(coalesce_s=0.05, backoff=Backoff(first_s=60.0, longest_s=60.0))
    queue.retry("a")
    queue.add("a")
    assert await take(queue) == ("a", 0.05)


async def test_a_cancelled_worker_takes_no_key_with_it() -> None:
    queue: WorkQueue[str] = WorkQueue(coalesce_s=0.05)
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    await asyncio.sleep(0.0499)
    first.cancel()
    assert await second == "a"


async def test_a_wake_up_and_a_cancellation_at_the_same_moment_lose_nothing() -> None:
    queue: WorkQueue[str] = WorkQueue(coalesce_s=0.0)
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    asyncio.get_running_loop().call_later(0, first.cancel)
    done, _ = await asyncio.wait({first, second}, timeout=1, return_when=asyncio.ALL_COMPLETED)
    assert [task.result() for task in done if not task.cancelled()] == ["a"]
    second.cancel()


async def test_done_without_work_is_a_mistake_that_is_told() -> None:
    with pytest.raises(RuntimeError, match="not being worked on"):
        WorkQueue[str]().done("a")


async def test_depth_wait_and_work_are_counted() -> None:
    registry = Registry()
    queue: WorkQueue[str] = WorkQueue("storm", coalesce_s=0.0, figures=KubeFigures(registry))
    queue.add("a")
    queue.add_after("b", 100)
    await asyncio.sleep(2)
    await queue.get()
    await asyncio.sleep(3)
    queue.done("a")
    text = registry.render().decode()
    assert 'kube_queue_depth{queue="storm"} 1.0' in text
    assert 'kube_queue_wait_seconds_sum{queue="storm"} 2.0' in text
    assert 'kube_queue_work_seconds_sum{queue="storm"} 3.0' in text


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["add", "later", "retry", "forget", "pause"]), st.sampled_from("abc"), st.floats(0, 3)), max_size=40
)


@settings(max_examples=60, deadline=None)
@given(operations=OPERATIONS, workers=st.integers(1, 3), work_s=st.floats(0, 1))
def test_whatever_is_added_is_worked_on_afterwards_and_by_one_worker_at_a_time(
    operations: list[tuple[str, str, float]], workers: int, work_s: float
) -> None:
    asyncio.run(_check(operations, workers, work_s))


async def _check(operations: list[tuple[str, str, float]], workers: int, work_s: float) -> None:
    """In real time a hundred times faster, since the loop of a hypothesis example is made here."""
    queue: WorkQueue[str] = WorkQueue(coalesce_s=0.0005, backoff=Backoff(0.0005, 0.002))
    asked: dict[str, float] = {}
    started: dict[str, float] = {}
    working: set[str] = set()

    async def worker() -> None:
        while True:
            key = await queue.get()
            assert key not in working
            working.add(key)
            started[key] = now()
            await asyncio.sleep(work_s / 500)
            working.discard(key)
            queue.done(key)

    tasks = [asyncio.create_task(worker()) for _ in range(workers)]
    for name, key, seconds in operations:
        if name == "pause":
            await asyncio.sleep(seconds / 500)
        elif name == "forget":
            queue.forget(key)
        else:
            asked[key] = now()
            if name == "add":
                queue.add(key)
            elif name == "later":
                queue.add_after(key, seconds / 500)
            else:
                queue.retry(key)
    async with asyncio.timeout(5):
        while len(queue) or working:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    for task in tasks:
        assert not task.done(), task.exception()
        task.cancel()
    assert all(started[key] >= at for key, at in asked.items())
