"""The event stream: parsing, reconnecting, giving up."""

from __future__ import annotations

import contextlib

import msgspec
import pytest

import workbench
from backend.api import routes
from tests.fakes.control_api import decision, fleet
from workbench import errors, stream


def event(kind: str, data: object, version: int) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (version, kind.encode(), msgspec.json.encode(data))


async def lines(text: str):
    for line in text.splitlines():
        yield line


async def test_events_are_typed_and_comments_and_unknown_kinds_are_passed_over():
    sent = event("fleet", fleet(), 7) + b": keep-alive\n\n" + event("weather", {}, 8) + event("decisions", [decision(1)], 9)
    found = [one async for one in stream.parse(lines(sent.decode() + "\n"))]
    assert [(one.kind, one.version) for one in found] == [("fleet", 7), ("decisions", 9)]
    assert found[0].data == fleet()
    assert found[1].data == [decision(1)]


async def take(events, count: int) -> list[stream.Event]:
    found = []
    async with contextlib.aclosing(events):
        async for one in events:
            found.append(one)
            if len(found) == count:
                break
    return found


async def test_a_lost_stream_is_told_and_taken_up_where_it_ended(fake, monkeypatch):
    monkeypatch.setattr(stream, "FIRST_DELAY_S", 0.01)
    fake.stream = [event("fleet", fleet(), 7), event("findings", [], 8)]
    async with workbench.connect(fake.url, token=fake.token, asynchronous=True) as wb:
        found = await take(wb.stream(["fleet", "findings"]), 6)
    assert [one.kind for one in found] == ["connected", "fleet", "findings", "disconnected", "connected", "fleet"]
    asked = [path for path in fake.asked if path.startswith(routes.STREAM)]
    assert asked == [f"{routes.STREAM}?topics=fleet%2Cfindings", f"{routes.STREAM}?topics=fleet%2Cfindings&since=8"]


async def test_a_reset_is_handed_on_and_counting_starts_anew(fake, monkeypatch):
    monkeypatch.setattr(stream, "FIRST_DELAY_S", 0.01)
    fake.stream = [event("reset", {"version": 2}, 2)]
    async with workbench.connect(fake.url, token=fake.token, asynchronous=True) as wb:
        found = await take(stream.follow(wb, since=900), 4)
    assert [one.kind for one in found] == ["connected", "reset", "disconnected", "connected"]
    assert fake.asked[-2:] == [f"{routes.STREAM}?since=900", f"{routes.STREAM}?since=2"]


async def test_a_refused_token_ends_the_stream_instead_of_trying_for_ever(fake):
    async with workbench.connect(fake.url, token=fake.token, asynchronous=True) as wb:
        fake.token = "another"
        with pytest.raises(errors.Unauthorized):
            await take(wb.stream(), 1)
