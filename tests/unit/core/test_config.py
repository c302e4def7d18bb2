"""Settings from files and variables: what is read, and what is said when something is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from backend.core import config, settings
from backend.core.errors import ConfigError


def load(tmp_path: Path, text: str = "", **env: str) -> settings.GatewaySettings:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    return config.load(settings.GatewaySettings, file, env=env, section="gateway")


def test_defaults_hold_without_file_and_variables() -> None:
    assert config.load(settings.Settings) == settings.Settings()


def test_a_file_sets_nested_fields_and_lists(tmp_path: Path) -> None:
    loaded = load(
        tmp_path, '[listen]\nport = 9\n[routing.prefix_cache]\nimbalance_requests = 3\n[[pods]]\nname="a"\naddress="h:1"\nmodel="m"\n'
    )
    assert (loaded.listen.port, loaded.routing.prefix_cache.imbalance_requests, loaded.pods[0].name) == (9, 3, "a")


def test_a_variable_wins_over_the_file(tmp_path: Path) -> None:
    loaded = load(tmp_path, '[routing]\npolicy = "random"\n', WORKBENCH__GATEWAY__ROUTING__POLICY="least-request")
    assert loaded.routing.policy == "least-request"


@pytest.mark.parametrize(
    ("written", "seconds"), [('"500ms"', 0.5), ('"30s"', 30.0), ('"5m"', 300.0), ("2", 2.0), ("0.25", 0.25)], ids=lambda value: str(value)
)
def test_durations_are_seconds_inside(tmp_path: Path, written: str, seconds: float) -> None:
    assert load(tmp_path, f"[limits]\nconnect_timeout_s = {written}\n").limits.connect_timeout_s == seconds


def test_sizes_are_bytes_inside(tmp_path: Path) -> None:
    assert load(tmp_path, '[limits]\nbody_bytes = "4MiB"\n').limits.body_bytes == 4 * 2**20


WRONG = [
    # id                                text                                             line  field                     says
    ("an_unknown_field", "[listen]\nprot = 9\n", 2, "listen.prot", "no such field"),
    ("a_word_for_a_number", '[listen]\nport = "nine"\n', 2, "listen.port", "whole number"),
    ("a_fraction_for_a_whole_number", "[listen]\nport = 1.5\n", 2, "listen.port", "whole number"),
    ("a_number_for_a_word", "[routing]\npolicy = 3\n", 2, "routing.policy", "must be str"),
    ("a_missing_field_of_a_list_item", '[[pods]]\nname = "a"\nmodel = "m"\n', 0, "pods.0.address", "is required"),
    ("a_value_for_a_table", "listen = 3\n", 1, "listen", "must be a table"),
]


@pytest.mark.parametrize(("text", "line", "field", "says"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_wrong_file_is_refused_with_line_and_field(tmp_path: Path, text: str, line: int, field: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load(tmp_path, text)
    assert (caught.value.line, caught.value.field) == (line, field)
    assert "gateway.toml" in str(caught.value)


def test_a_file_that_is_not_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not TOML") as caught:
        load(tmp_path, "[listen]\nport = = 3\n")
    assert caught.value.line == 2


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match="no such file"):
        config.load(settings.GatewaySettings, Path("nowhere.toml"))


def test_every_setting_says_what_it_means() -> None:
    """Each field has a docstring below it or is a group whose class explains itself."""
    source = Path(settings.__file__).read_text().splitlines()
    groups = [kind for kind in vars(settings).values() if dataclasses.is_dataclass(kind) and isinstance(kind, type)]
    assert all(kind.__doc__ for kind in groups)
    plain = {"int", "float", "str", "bool"}
    silent = []
    for number, line in enumerate(source):
        name, _, kind = line.strip().partition(": ")
        if line.startswith("    ") and name.isidentifier() and kind.split(" ")[0] in plain and '"""' not in source[number + 1]:
            silent.append(name)
    self_evident = {"kvindex_url", "gateway_url", "control_url", "longest_backoff_s"}
    assert set(silent) <= self_evident
