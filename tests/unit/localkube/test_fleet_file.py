"""The fleet file: what it gives, and that every complaint names line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.core.errors import ConfigError
from backend.localkube import fleet_file

MANIFESTS = Path(fleet_file.__file__).parent.parent / "manifests"

WHOLE = """\
pods:
  - name: vllm-{i}
    replicas: 2
    version: 0.10
    model: qwen3-8b
    role: prefill
    labels: {tier: gold}
    args: {block-size: 64, enforce-eager: true}
    env: {SEED: 7, EMPTY: }
    grace: 500ms
    startup: 2m
  - {name: single, model: other}
"""


def test_templates_are_unfolded_and_scalars_stay_as_written():
    first, second, single = fleet_file.parse(WHOLE)
    assert (first.name, second.name, single.name) == ("vllm-0", "vllm-1", "single")
    assert (first.version, first.role, first.labels, first.env) == ("0.10", "prefill", {"tier": "gold"}, {"SEED": "7", "EMPTY": ""})
    assert (first.args, first.grace_s, first.startup_s) == ({"block-size": "64", "enforce-eager": "true"}, 0.5, 120.0)
    assert (single.engine, single.version, single.grace_s) == ("vllm", "", None)


def test_replicas_may_be_none():
    assert fleet_file.parse("pods: [{name: a, model: m, replicas: 0}]") == []


@pytest.mark.parametrize("name", ["fleet.yaml", "fleet-large.yaml"])
def test_our_own_samples_can_be_read(name):
    specs = fleet_file.read(MANIFESTS / name)
    assert len({spec.name for spec in specs}) == len(specs) >= 4


def test_the_digest_changes_with_whatever_the_process_is_started_with():
    texts = ["{name: a, model: m}", "{name: a, model: n}", "{name: a, model: m, args: {x: 1}}", "{name: a, model: m, env: {x: 1}}"]
    digests = [fleet_file.parse(f"pods: [{text}]")[0].digest for text in texts]
    assert len(set(digests)) == len(texts)
    assert digests[0] == fleet_file.parse("pods: [{model: m, name: a}]")[0].digest


BROKEN = [
    # id, text, line, field, a word of the message
    ("not_yaml", "pods: [\n  {name: a", 2, "", "not YAML"),
    ("empty", "", 0, "", "empty"),
    ("a_list_on_top", "- a", 1, "", "table"),
    ("no_pods", "{}", 1, "pods", "required"),
    ("pods_no_list", "pods: 3", 1, "pods", "list"),
    ("unknown_field", "pods:\n  - name: a\n    model: m\n    replica: 3", 4, "pods[0].replica", "no such field"),
    ("no_model", "pods:\n  - name: a", 2, "pods[0].model", "required"),
    ("replicas_a_word", "pods:\n  - name: a-{i}\n    model: m\n    replicas: many", 4, "pods[0].replicas", "whole number"),
    ("replicas_too_many", "pods:\n  - name: a-{i}\n    model: m\n    replicas: 5000", 4, "pods[0].replicas", "250"),
    ("replicas_without_a_place", "pods:\n  - name: a\n    model: m\n    replicas: 2", 2, "pods[0].name", "{i}"),
    ("a_name_that_is_a_path", "pods:\n  - model: m\n    name: ../../etc/x", 3, "pods[0].name", "cannot be a pod's name"),
    ("a_role_of_fantasy", "pods:\n  - name: a\n    model: m\n    role: both", 4, "pods[0].role", "'both'"),
    ("two_of_one_name", "pods:\n  - {name: a, model: m}\n  - {name: a, model: m}", 3, "pods[1].name", "already"),
    ("args_a_list", "pods:\n  - name: a\n    model: m\n    args: [1]", 4, "pods[0].args", "table"),
    ("an_arg_a_table", "pods:\n  - name: a\n    model: m\n    args:\n      x: {y: 1}", 5, "pods[0].args.x", "single value"),
    ("a_field_twice", "pods:\n  - name: a\n    model: m\n    model: n", 4, "pods[0].model", "twice"),
    ("grace_a_word", "pods:\n  - name: a\n    model: m\n    grace: soon", 4, "pods[0].grace", "duration"),
]


@pytest.mark.parametrize(("text", "line", "field", "word"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_file_is_explained(text, line, field, word):
    with pytest.raises(ConfigError) as caught:
        fleet_file.parse(text, file="fleet.yaml")
    assert (caught.value.line, caught.value.field) == (line, field)
    assert word in str(caught.value)
    assert "fleet.yaml" in str(caught.value)


def test_a_missing_file_is_explained(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        fleet_file.read(tmp_path / "none.yaml")


def test_bytes_that_are_no_text_are_explained(tmp_path):
    (tmp_path / "fleet.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        fleet_file.read(tmp_path / "fleet.yaml")
