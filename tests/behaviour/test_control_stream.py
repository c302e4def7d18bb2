"""Control's event stream over a real socket: order, catching up, slow viewers. Not here: rings and versions (tests/unit/control)."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, NamedTuple

import httpx
import msgspec

from backend.api import routes
from backend.api.decisions import DecisionRecord
from backend.control import streaming
from tests.behaviour.test_control_api import TOKEN, Door, door, peers
from tests.behaviour.test_history_of_decisions import send
from tests.fakes.records import record, records
from tests.fakes.valkey import valkey
from tests.fakes.waiting import eventually

__all__ = ["door", "peers", "valkey"]


class Seen(NamedTuple):
    version: int
    event: str
    data: Any


async def read(door: Door, count: int, *, headers: dict[str, str] | None = None, **params: Any) -> list[Seen]:
    """The first `count` events of a new stream."""
    found: list[Seen] = []
    fields: dict[str, str] = {}
    async with asyncio.timeout(10), door.http.stream("GET", routes.STREAM, params=params, headers=headers, timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            name, _, value = line.partition(":")
            if line:
                fields[name] = value.strip()
            elif "event" in fields:
                found.append(Seen(int(fields["id"]), fields["event"], msgspec.json.decode(fields["data"])))
                fields = {}
            if len(found) == count:
                return found
    return found


async def test_a_new_viewer_sees_the_newest_state_first(door):
    await eventually(lambda: door.control.hub.latest(routes.EVENT_SOURCES) is not None)
    await eventually(lambda: door.control.scraper.load("vllm-0").state == "fresh")
    door.control.refresh()
    events = await read(door, 2, topics="fleet,sources")
    assert {event.event for event in events} == {"fleet", "sources"}
    fleet = next(event for event in events if event.event == "fleet")
    assert fleet.data["version"] == fleet.version


async def test_decisions_come_as_they_finish(door, valkey):
    viewer = asyncio.create_task(read(door, 1, topics="decisions"))
    await eventually(lambda: door.control.hub.listeners == 1)
    await send(valkey, records(3))
    (event,) = await viewer
    assert {one.id for one in msgspec.convert(event.data, list[DecisionRecord])} == {one.id for one in records(3)}


async def test_a_returning_viewer_catches_up_by_query_or_header(door, valkey):
    start = door.control.hub.version
    for number in range(3):
        before = door.control.hub.latest(routes.EVENT_DECISIONS)
        await send(valkey, [record(number)])
        await eventually(lambda before=before: door.control.hub.latest(routes.EVENT_DECISIONS) is not before)
    events = await read(door, 3, topics="decisions", since=start)
    assert [event.data[0]["id"] for event in events] == [record(number).id for number in range(3)]
    assert [event.version for event in events] == sorted(event.version for event in events)
    assert await read(door, 1, topics="decisions", headers={"Last-Event-ID": str(events[1].version)}) == events[2:]


async def test_a_version_that_is_too_old_means_reset(door):
    (event,) = await read(door, 1, since=5)
    assert event.event == "reset"
    assert event.version == event.data["version"]


async def test_a_burst_is_cut_to_the_newest_and_says_so(door, valkey):
    await send(valkey, records(400))
    await eventually(lambda: door.control.hub.latest(routes.EVENT_DECISIONS) is not None)
    event = door.control.hub.latest(routes.EVENT_DECISIONS)
    assert len(msgspec.json.decode(event.data)) == 50
    assert event.note == "350 older decisions left out"
    assert b": 350 older decisions left out\n" in streaming.encode(event)


async def test_silence_is_filled_with_comments(door, monkeypatch):
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.05)
    async with asyncio.timeout(5), door.http.stream("GET", routes.STREAM, params={"topics": "decisions"}) as answer:
        lines = answer.aiter_lines()
        while await anext(lines) != ": keep-alive":
            pass


async def test_a_viewer_that_does_not_read_is_dropped_and_the_others_are_served(door, monkeypatch):
    monkeypatch.setattr(streaming, "SLOWEST_WRITE_S", 0.2)
    host, port = httpx.URL(door.url).host, httpx.URL(door.url).port
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lazy.connect((host, port))
    lazy.sendall(f"GET {routes.STREAM}?topics=decisions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
    await eventually(lambda: door.control.hub.listeners == 1)
    for _ in range(100):
        door.control.hub.publish(routes.EVENT_DECISIONS, ["x" * 200_000])
        await asyncio.sleep(0.01)
    await eventually(lambda: door.control.hub.listeners == 0)
    assert (await door.get(routes.FLEET)).status_code == 200
    lazy.close()


async def test_viewers_end_when_the_server_does(door):
    viewer = asyncio.create_task(read(door, 1000, topics="decisions"))
    await eventually(lambda: door.control.hub.listeners == 1)
    door.control.hub.close()
    assert await asyncio.wait_for(viewer, 3) == []
