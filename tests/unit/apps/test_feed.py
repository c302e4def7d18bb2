"""The feed against a control API on a real socket: the whole state, then changes; every trouble has a sentence."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from apps.core.feed import ControlFeed
from apps.core.hub import Change, FeedLost
from backend.api.cache import ProbeRequest
from tests.fakes.control_stream import TOKEN, FakeControl


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    return file


def nothing() -> None:
    """Nobody counts signs of life here."""


async def next_change(changes: Any) -> Change:
    change: Change = await asyncio.wait_for(anext(changes), 5)
    return change


async def test_the_whole_state_comes_first_and_then_every_change(token_file: Path) -> None:
    async with FakeControl(pods=4) as control:
        feed = ControlFeed(control.url, token_file)
        changes = feed.changes(nothing)
        first = await next_change(changes)
        assert first.fleet is not None
        assert len(first.fleet.pods) == 4
        assert [len(part or []) for part in (first.decisions, first.findings, first.sources)] == [60, 2, 4]
        following = asyncio.create_task(next_change(changes))
        await asyncio.wait_for(control.followed.wait(), 5)
        control.step(decisions=2)
        second = await following
        assert second.fleet is not None
        assert second.fleet.version == 2
        assert (await next_change(changes)).sources is not None
        assert len((await next_change(changes)).decisions or []) == 2
        await changes.aclose()
        await feed.close()


async def test_a_reset_fetches_the_whole_state_again(token_file: Path) -> None:
    async with FakeControl() as control:
        feed = ControlFeed(control.url, token_file)
        changes = feed.changes(nothing)
        await next_change(changes)
        following = asyncio.create_task(next_change(changes))
        await asyncio.wait_for(control.followed.wait(), 5)
        control.reset()
        again = await following
        assert again.fleet is not None
        assert again.decisions is not None
        await changes.aclose()
        await feed.close()


async def test_comments_count_as_signs_of_life(token_file: Path) -> None:
    heard: list[int] = []
    async with FakeControl() as control:
        feed = ControlFeed(control.url, token_file)
        changes = feed.changes(lambda: heard.append(1))
        await next_change(changes)
        waiting = asyncio.create_task(anext(changes))
        for _ in range(200):
            await asyncio.sleep(0.01)
            if heard:
                break
        assert heard
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await feed.close()


async def test_a_probe_is_handed_to_control(token_file: Path) -> None:
    async with FakeControl() as control:
        feed = ControlFeed(control.url, token_file)
        assert (await feed.probe(ProbeRequest(tokens=[1, 2, 3]))).tokens == 3
        await feed.close()


async def test_nobody_there_is_said_with_the_address(token_file: Path) -> None:
    feed = ControlFeed("http://127.0.0.1:9", token_file)
    with pytest.raises(FeedLost, match=r"127\.0\.0\.1:9"):
        await anext(feed.changes(nothing))
    await feed.close()


async def test_a_wrong_token_is_said_as_such(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("wrong")
    async with FakeControl() as control:
        feed = ControlFeed(control.url, tmp_path / "token")
        with pytest.raises(FeedLost, match="refuses the dashboard's token"):
            await anext(feed.changes(nothing))
        (tmp_path / "token").write_text(TOKEN)
        assert (await anext(feed.changes(nothing))).fleet is not None, "a new token is read without a restart"
        await feed.close()


async def test_a_missing_token_file_is_said_as_such(tmp_path: Path) -> None:
    feed = ControlFeed("http://127.0.0.1:9", tmp_path / "none")
    with pytest.raises(FeedLost, match="token file cannot be read"):
        await anext(feed.changes(nothing))
