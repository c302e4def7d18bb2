"""No task dies in silence. Time is virtual: back-off of minutes passes at once."""

from __future__ import annotations

import asyncio
import itertools
import logging

import pytest

from backend.core.supervise import Supervisor


@pytest.mark.looptime
async def test_a_dead_task_is_started_again_with_growing_pauses(caplog: pytest.LogCaptureFixture) -> None:
    starts: list[float] = []

    async def body() -> None:
        starts.append(asyncio.get_running_loop().time())
        raise ValueError("boom")

    with caplog.at_level(logging.CRITICAL):
        async with Supervisor("test") as tasks:
            tasks.start("fragile", body)
            await asyncio.sleep(60)
            pauses = [round(after - before, 1) for before, after in itertools.pairwise(starts)]
    assert pauses[:4] == [0.2, 0.4, 0.8, 1.6]
    assert max(pauses) == 10.0
    assert tasks.restarts["fragile"] == len(starts)


async def test_a_task_that_matters_ends_the_process_with_its_error(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        raise ValueError("cannot go on")

    async with Supervisor("test") as tasks:
        tasks.start("vital", body, on_death="stop")
        with pytest.raises(ValueError, match="cannot go on"):
            await tasks.wait_stopped()
    assert "vital of test died" in caplog.text


async def test_closing_ends_every_task_and_waits_for_its_clean_up() -> None:
    cleaned: list[str] = []

    async def body() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("done")

    async with Supervisor("test") as tasks:
        tasks.start("waiting", body)
        await asyncio.sleep(0)
    assert cleaned == ["done"]


async def test_two_tasks_cannot_share_a_name() -> None:
    async def body() -> None:
        await asyncio.Event().wait()

    async with Supervisor("test") as tasks:
        tasks.start("one", body)
        with pytest.raises(RuntimeError, match="runs already"):
            tasks.start("one", body)


@pytest.mark.looptime
async def test_a_task_that_swallows_one_cancellation_is_cancelled_again() -> None:
    swallowed: list[str] = []

    async def body() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.append("once")
        await asyncio.Event().wait()

    async with Supervisor("test") as tasks:
        tasks.start("deaf", body)
        await asyncio.sleep(0)
    assert swallowed == ["once"]


async def test_tasks_that_returned_are_forgotten():
    async def body() -> None: ...

    async with Supervisor("test") as tasks:
        for number in range(50):
            tasks.start(f"once {number}", body)
        await asyncio.sleep(0.01)
        assert tasks._tasks == {}
        tasks.start("once 0", body)
