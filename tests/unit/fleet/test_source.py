"""Reading and following the list of pods. Not here: how the pod runtime writes it (tests/unit/localkube)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from backend.api.fleet import Pod
from backend.core.errors import ConfigError
from backend.core.files import write_atomic
from backend.core.settings import FleetSettings, PodSettings
from backend.fleet.source import FleetSource
from tests.fakes.waiting import eventually

BROKEN = [
    # id, content, what the message must name
    ("empty", b"", [":1", "JSON"]),
    ("half_written", b'[{"name": "a",\n "ip": "127.0', [":2", "JSON"]),
    ("not_a_list", b'{"name": "a"}', ["array"]),
    ("no_ip", b'[{"name": "a", "ip": "1.2.3.4"}, {"name": "b"}]', ["`[1]`", "`ip`"]),
    ("port_is_a_word", b'[{"name": "a", "ip": "1.2.3.4", "port": "x"}]', ["`[0].port`", "int"]),
    ("unknown_state", b'[{"name": "a", "ip": "1.2.3.4", "state": "happy"}]', ["`[0].state`", "happy"]),
    ("two_of_one_name", b'[{"name": "a", "ip": "1.2.3.4"}, {"name": "a", "ip": "1.2.3.5"}]', ["`[1].name`", "'a'"]),
]


def write(file: Path, *names: str) -> None:
    write_atomic(file, msgspec.json.encode([Pod(name=name, ip="127.0.0.1") for name in names]))


def follow(file: Path) -> FleetSource:
    return FleetSource(FleetSettings(file=file, poll_s=0.01))


async def upcoming(changes: AsyncIterator[list[Pod]]) -> list[str]:
    return [pod.name for pod in await asyncio.wait_for(anext(changes), 5)]


@pytest.mark.parametrize(("content", "named"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_file_is_named_with_its_field(tmp_path, content, named):
    file = tmp_path / "pods.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        follow(file).read()
    message = str(caught.value)
    assert str(file) in message
    for word in named:
        assert word in message


def test_a_missing_file_says_who_writes_it(tmp_path):
    with pytest.raises(ConfigError, match="no such file") as caught:
        follow(tmp_path / "pods.json").read()
    assert "pod runtime" in caught.value.fix


def test_pods_of_the_configuration_need_no_file():
    source = FleetSource(FleetSettings(), (PodSettings("a", "[::1]:8001", "m", labels={"k": "v"}),))
    (pod,) = source.read()
    assert (pod.name, pod.ip, pod.port, pod.ready, pod.labels) == ("a", "::1", 8001, True, {"k": "v"})


@pytest.mark.parametrize("address", ["10.0.0.1", ":80", "host:", "host:web", "host:70000"])
def test_an_address_without_host_or_port_is_refused(address):
    with pytest.raises(ConfigError, match=r"pods\[0\]\.address"):
        FleetSource(FleetSettings(), (PodSettings("a", address, "m"),))


async def test_a_follower_sees_the_first_list_at_once_and_then_every_change(tmp_path):
    file = tmp_path / "pods.json"
    write(file, "a")
    changes = follow(file).changes()
    assert await upcoming(changes) == ["a"]
    write(file, "a", "b")
    assert await upcoming(changes) == ["a", "b"]
    await changes.aclose()


async def test_a_broken_file_keeps_the_last_good_list_and_is_told_once(tmp_path, caplog):
    file = tmp_path / "pods.json"
    write(file, "a")
    source = follow(file)
    changes = source.changes()
    assert await upcoming(changes) == ["a"]
    waiting = asyncio.create_task(upcoming(changes))
    file.write_bytes(b'[{"name": "a"')
    await eventually(lambda: source.problem is not None)
    assert not waiting.done()
    assert [pod.name for pod in source.pods] == ["a"]
    file.unlink()
    await eventually(lambda: "no such file" in str(source.problem))
    assert source.problems == 1
    assert caplog.text.count("stays in use") == 1
    write(file, "b")
    assert await waiting == ["b"]
    assert source.problem is None
    await changes.aclose()


async def test_a_missing_file_is_an_empty_fleet_until_it_appears(tmp_path):
    file = tmp_path / "pods.json"
    changes = follow(file).changes()
    assert await upcoming(changes) == []
    write(file, "a")
    assert await upcoming(changes) == ["a"]
    await changes.aclose()


async def test_without_a_file_the_list_never_changes():
    source = FleetSource(FleetSettings(), (PodSettings("a", "127.0.0.1:1", "m"),))
    assert [[pod.name for pod in pods] async for pods in source.changes()] == [["a"]]


async def test_a_rewrite_of_the_same_size_within_a_tick_is_seen(tmp_path):
    file = tmp_path / "pods.json"
    file.write_bytes(b'[{"name": "a", "ip": "1.1.1.1"}]')
    changes = follow(file).changes()
    assert await upcoming(changes) == ["a"]
    file.write_bytes(b'[{"name": "b", "ip": "1.1.1.1"}]')
    assert await upcoming(changes) == ["b"]
    file.write_bytes(b'[{"name": "c", "ip": "1.1.1.1"}]')
    assert await upcoming(changes) == ["c"]
    await changes.aclose()
