"""What is executed for a pod, and where it listens."""

from __future__ import annotations

import sys

import pytest

from backend.core.errors import ConfigError, UsageError
from backend.localkube.runtime import addresses, commands
from backend.localkube.runtime.model import PodSpec

ROW = (
    "{python}",
    "-m",
    "engine",
    "--version",
    "{version}",
    "--role",
    "{role}",
    "--at",
    "{ip}:{port}",
    "--events",
    "tcp://{ip}:{events_port}",
)
ADDRESS = addresses.Address("127.73.112.1")


def test_a_row_is_filled_in_and_flags_follow():
    spec = PodSpec(name="a", model="m", version="0.32.0", role="prefill", args={"block-size": "64", "eager": "true", "log": "false"})
    words = commands.argv(spec, ADDRESS, {"vllm": ROW})
    assert words[0] == sys.executable
    expected = "--version 0.32.0 --role prefill --at 127.73.112.1:8000 --events tcp://127.73.112.1:5557 --block-size 64 --eager"
    assert " ".join(words[3:]) == expected


def test_a_flag_without_a_value_is_left_to_the_engines_default():
    assert commands.argv(PodSpec(name="a", model="m"), ADDRESS, {"vllm": ROW})[3:5] == ["--at", "127.73.112.1:8000"]


def test_an_unknown_engine_is_explained():
    with pytest.raises(ConfigError, match=r"engine 'tgi'[\s\S]*Known engines: vllm"):
        commands.argv(PodSpec(name="a", model="m", engine="tgi"), ADDRESS, {"vllm": ROW})


def test_an_unknown_place_is_explained():
    with pytest.raises(ConfigError, match=r"\{gpu\}"):
        commands.argv(PodSpec(name="a", model="m"), ADDRESS, {"vllm": ("x", "{gpu}")})


def test_a_pods_environment_has_none_of_the_users_secrets():
    found = commands.environment(PodSpec(name="a", model="m", env={"SEED": "7"}), {"PATH": "/bin", "AWS_SECRET": "x"}, {"LIFE": "3"})
    assert found == {"PATH": "/bin", "PYTHONUNBUFFERED": "1", "WORKBENCH_POD": "a", "LIFE": "3", "SEED": "7"}


def test_every_port_base_has_a_subnet_of_its_own():
    assert addresses.subnet_of(18800) == "127.73.112"
    assert len({addresses.subnet_of(base) for base in range(1024, 65_000, 10)}) == len(range(1024, 65_000, 10))


def test_one_address_means_many_ports():
    space = addresses.Space("", 18800)
    listening = [port for slot in range(3) for port in (space.at(slot).http_port, space.at(slot).events_port, space.at(slot).replay_port)]
    assert len(set(listening)) == 9
    assert {space.at(slot).ip for slot in range(3)} == {"127.0.0.1"}


@pytest.mark.parametrize("space", [addresses.Space("127.73.112", 18800), addresses.Space("", 18800)], ids=["subnet", "one_address"])
def test_a_slot_is_found_again_by_its_address(space):
    for slot in (0, 1, 249):
        assert space.slot_of(space.at(slot).ip, space.at(slot).http_port) == slot
    assert space.slot_of("10.0.0.1", 8000) is None


def test_slots_stay_and_holes_are_filled():
    slots = addresses.Slots(4)
    assert slots.take("b", 2) == 2
    assert [slots.take(name) for name in ("a", "b", "c", "d")] == [0, 2, 1, 3]
    slots.release("a")
    assert slots.take("e") == 0


def test_more_pods_than_addresses_are_refused():
    slots = addresses.Slots(2)
    slots.take("a")
    slots.take("b")
    with pytest.raises(UsageError, match="at most 2"):
        slots.take("c")
