"""The published CRDs say what the planner assumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import backend.storm
from backend.storm import names
from tests.fakes.storm import StormWorld, role, storm_service

FOLDER = Path(backend.storm.__file__).parents[1] / "manifests" / "crds"
CRDS: dict[str, Any] = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(FOLDER.glob("*.yaml"))}


def _version(plural: str) -> dict[str, Any]:
    version: dict[str, Any] = CRDS[plural]["spec"]["versions"][0]
    return version


def _field(plural: str, path: str) -> dict[str, Any]:
    schema = _version(plural)["schema"]["openAPIV3Schema"]
    for part in path.split("."):
        schema = schema["items"] if part == "[]" else schema["properties"][part]
    found: dict[str, Any] = schema
    return found


ROLE_SET = "spec.template.spec"
ROLE = f"{ROLE_SET}.roles.[]"


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ("spec.replicas", "default", 1),
        ("spec.replicas", "minimum", 0),
        ("spec.revisionHistoryLimit", "default", 10),
        ("spec.revisionHistoryLimit", "minimum", 0),
        ("spec.updateStrategy.type", "enum", ["RollingUpdate", "InPlaceUpdate"]),
        ("spec.updateStrategy.type", "default", "RollingUpdate"),
        ("spec.updateStrategy.maxSurge", "pattern", "^[0-9]+%$"),
        (f"{ROLE_SET}.updateStrategy", "enum", ["Parallel", "Sequential", "Interleave"]),
        (f"{ROLE_SET}.updateStrategy", "default", "Sequential"),
        (f"{ROLE_SET}.roles", "x-kubernetes-list-map-keys", ["name"]),
        (f"{ROLE_SET}.roles", "minItems", 1),
        (f"{ROLE}.replicas", "default", 1),
        (f"{ROLE}.replicas", "minimum", 0),
        (f"{ROLE}.upgradeOrder", "minimum", 1),
        (f"{ROLE}.podGroupSize", "maximum", 100),
        (f"{ROLE}.updateStrategy.type", "enum", ["Recreate", "InPlaceIfPossible"]),
        (f"{ROLE}.template.spec", "x-kubernetes-preserve-unknown-fields", True),
    ],
)
def test_fields_have_the_defaults_and_limits_that_are_documented(path: str, key: str, value: Any) -> None:
    assert _field("stormservices", path)[key] == value


def test_role_sets_have_the_same_specification_inside_a_service_and_alone() -> None:
    assert _field("rolesets", "spec") == _field("stormservices", ROLE_SET)


def test_kinds_have_the_subresources_and_columns_that_users_know() -> None:
    assert list(CRDS) == ["podsets", "rolesets", "stormservices"]
    assert _version("stormservices")["subresources"]["scale"] == {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.scalingTargetSelector",
    }
    assert all("status" in _version(plural)["subresources"] for plural in CRDS)
    columns = {plural: [column["name"] for column in _version(plural)["additionalPrinterColumns"]] for plural in CRDS}
    assert columns["stormservices"] == ["Replicas", "Ready", "Paused", "Age"]
    assert columns["rolesets"] == ["Ready", "Age"]
    assert columns["podsets"] == ["ReadyPods", "TotalPods", "Phase", "Age"]


@pytest.mark.parametrize("plural", CRDS)
def test_schemas_are_structural(plural: str) -> None:
    """Every field has a type (or is a count or percentage), as API servers demand; names and group agree."""
    definition = CRDS[plural]
    assert definition["metadata"]["name"] == f"{plural}.{definition['spec']['group']}"
    assert f"{definition['spec']['group']}/{definition['spec']['versions'][0]['name']}" == names.API_VERSION
    pending = [_version(plural)["schema"]["openAPIV3Schema"]]
    while pending:
        schema = pending.pop()
        assert "type" in schema or schema.get("x-kubernetes-int-or-string"), schema
        pending += [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]


def test_every_status_field_that_is_written_is_in_the_schema() -> None:
    world = StormWorld(storm_service(role("prefill"))).run()
    assert world.service["status"].keys() <= _field("stormservices", "status")["properties"].keys()
    assert world.role_sets[0]["status"].keys() <= _field("rolesets", "status")["properties"].keys()
    counts = _field("stormservices", "status.roleStatuses.[]")["properties"].keys()
    assert world.service["status"]["roleStatuses"][0].keys() <= counts
