"""A StormService and a request in, the changed object or a refusal that names the field out. And diffs, whatever the values."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.api.actions import Parameters, PlanRequest
from backend.control.actions import changes, diff
from backend.control.actions.model import ClusterState
from backend.core.errors import InvalidRequest, NotFound, StaleState
from tests.fakes.storm_cluster import storm_service


def state(service: dict[str, Any] | None = None, *, revisions: list[dict[str, Any]] | None = None) -> ClusterState:
    return ClusterState("default", "qwen", service or storm_service(), revisions=revisions or [])


def request(action: str, **parameters: Any) -> PlanRequest:
    return PlanRequest(action=action, service="qwen", parameters=Parameters(**parameters))  # type: ignore[arg-type]


ROLES = "spec.template.spec.roles"
CHANGES = [
    ("image_of_one", request("set-image", image="e:2", role="decode"), [f"{ROLES}[decode].template.spec.containers[engine].image"]),
    (
        "image_of_all",
        request("set-image", image="e:2"),
        [f"{ROLES}[{role}].template.spec.containers[engine].image" for role in ("prefill", "decode")],
    ),
    ("image_of_a_container", request("set-image", image="e:2", role="decode", container="engine"), None),
    ("role", request("scale", replicas=3, role="prefill"), [f"{ROLES}[prefill].replicas"]),
    ("groups", request("scale", replicas=3), ["spec.replicas"]),
    ("groups_to_nothing", request("scale", replicas=0), ["spec.replicas"]),
    ("pause", request("pause"), ["spec.paused"]),
]


@pytest.mark.parametrize(("asked", "paths"), [case[1:] for case in CHANGES], ids=[case[0] for case in CHANGES])
def test_a_change_touches_its_fields_and_no_other(asked, paths):
    before = state()
    untouched = copy.deepcopy(before.service)
    change = changes.change(asked, before)
    if paths is not None:
        assert [one.path for one in diff.changes(change.before, change.after)] == paths
    assert before.service == untouched
    assert diff.merged(change.before, change.patch) == change.after


def two_containers() -> dict[str, Any]:
    service = storm_service()
    service["spec"]["template"]["spec"]["roles"][0]["template"]["spec"]["containers"].append({"name": "sidecar", "image": "s:1"})
    return service


REFUSED = [
    ("unknown_role", request("scale", replicas=3, role="prefil"), None, "parameters.role", "prefill, decode"),
    ("negative", request("scale", replicas=-1), None, "parameters.replicas", "0 to 10,000"),
    ("too_many", request("scale", replicas=10_001), None, "parameters.replicas", "0 to 10,000"),
    ("no_number", request("scale"), None, "parameters.replicas", "0 to 10,000"),
    ("no_image", request("set-image"), None, "parameters.image", "vllm"),
    ("spaces", request("set-image", image="a b"), None, "parameters.image", "vllm"),
    ("the_same_image", request("set-image", image="engine:1"), None, "parameters", "another value"),
    ("the_same_size", request("scale", replicas=2, role="decode"), None, "parameters", "another value"),
    ("which_container", request("set-image", image="e:2"), two_containers(), "parameters.container", "engine, sidecar"),
    ("unknown_container", request("set-image", image="e:2", container="x"), None, "parameters.container", "engine"),
    ("not_paused", request("resume"), None, "spec.paused", "Nothing"),
    ("paused_already", request("pause"), storm_service(paused=True), "spec.paused", "Nothing"),
    ("undo", request("undo"), None, "action", "operations/ID/undo"),
    ("create_without_manifest", request("create"), None, "parameters.manifest", "StormService"),
]


@pytest.mark.parametrize(("asked", "service", "param", "fix"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_refusal_names_the_field_and_what_to_do(asked, service, param, fix):
    with pytest.raises(InvalidRequest) as refused:
        changes.change(asked, state(service))
    assert refused.value.param == param
    assert fix in refused.value.fix


def edited(path: str, value: Any) -> dict[str, Any]:
    """The sample with one value changed; None takes the field out."""
    service: Any = storm_service()
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = service
    for part in way:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return service


ROLE_0 = "spec.template.spec.roles.0"
MANIFESTS = [
    ("kind", edited("kind", "RoleSet"), "kind"),
    ("version", edited("apiVersion", "v1"), "apiVersion"),
    ("no_name", edited("metadata.name", None), "metadata.name"),
    ("upper_case", edited("metadata.name", "Qwen"), "metadata.name"),
    ("long_name", edited("metadata.name", "q" * 57), "metadata.name"),
    ("no_spec", edited("spec", None), "spec"),
    ("spec_is_a_list", edited("spec", []), "spec"),
    ("no_template", edited("spec.template", None), "spec.template"),
    ("empty_selector", edited("spec.selector", {}), "spec.selector.matchLabels"),
    ("other_labels", edited("spec.selector.matchLabels", {"app": "x"}), "spec.selector.matchLabels"),
    ("no_roles", edited("spec.template.spec.roles", []), "spec.template.spec.roles"),
    ("negative", edited(f"{ROLE_0}.replicas", -1), "spec.template.spec.roles[0].replicas"),
    ("words", edited("spec.replicas", "two"), "spec.replicas"),
    ("same_name", edited(f"{ROLE_0}.name", "decode"), "spec.template.spec.roles[1].name"),
    ("budget", edited(f"{ROLE_0}.updateStrategy.maxSurge", "25"), "spec.template.spec.roles[0].updateStrategy.maxSurge"),
    (
        "no_image",
        edited(f"{ROLE_0}.template.spec.containers.0.image", None),
        "spec.template.spec.roles[0].template.spec.containers[0].image",
    ),
]


@pytest.mark.parametrize(("manifest", "param"), [case[1:] for case in MANIFESTS], ids=[case[0] for case in MANIFESTS])
def test_a_manifest_is_refused_by_the_path_of_its_wrong_field(manifest, param):
    with pytest.raises(InvalidRequest) as refused:
        changes.check(manifest)
    assert refused.value.param.startswith(param)


def test_a_created_object_leaves_the_server_s_fields_to_the_server():
    manifest = storm_service()
    manifest["status"] = {"replicas": 1}
    manifest["metadata"] |= {"uid": "u", "resourceVersion": "7", "labels": {"a": "b"}}
    change = changes.change(request("create", manifest=manifest), ClusterState("prod", "qwen"))
    assert change.after is not None
    assert change.after["metadata"] == {"name": "qwen", "namespace": "prod", "labels": {"a": "b"}}
    assert "status" not in change.after
    with pytest.raises(StaleState, match="exists already"):
        changes.change(request("create", manifest=manifest), state())


def test_what_does_not_exist_or_is_going_cannot_be_changed():
    with pytest.raises(NotFound, match="default/qwen"):
        changes.change(request("pause"), ClusterState("default", "qwen"))
    going = storm_service()
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    with pytest.raises(StaleState, match="being deleted"):
        changes.change(request("pause"), state(going))


def test_what_was_wrong_before_keeps_nobody_from_changing_the_rest():
    broken = edited(f"{ROLE_0}.updateStrategy.maxSurge", "25")
    assert changes.change(request("scale", replicas=2), state(broken)).patch == {"spec": {"replicas": 2}}


def test_the_size_of_a_role_in_replica_mode_is_a_rollout_and_says_so():
    service = storm_service()
    service["spec"]["updateStrategy"] = {"type": "RollingUpdate"}
    assert "every RoleSet is replaced" in changes.change(request("scale", replicas=3, role="decode"), state(service)).notes[0]


def revision(name: str, image: str) -> dict[str, Any]:
    template = storm_service(image=image)["spec"]["template"]
    return {"metadata": {"name": name}, "data": {"spec": {"template": {**template, "$patch": "replace"}}}}


def test_the_way_back_is_the_template_of_the_revision_before():
    now = state(storm_service(image="e:2"), revisions=[revision("r1", "e:1"), revision("r2", "e:2")])
    change = changes.go_back(now, "r1", None)
    assert {one.after for one in diff.changes(change.before, change.after)} == {"e:1"}
    with pytest.raises(StaleState, match=r"r0 .* is gone") as gone:
        changes.go_back(now, "r0", None)
    assert "r1, r2" in gone.value.fix


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
objects = st.dictionaries(st.text(max_size=3), json_values, max_size=4)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return value


@given(objects.map(without_nulls), objects.map(without_nulls))
def test_a_patch_leads_from_one_object_to_the_other(before, after):
    assert diff.merged(before, diff.merge_patch(before, after)) == after


@given(objects, objects)
def test_no_difference_is_told_of_equal_values_only(before, after):
    assert (diff.changes(before, after) == []) == (_strict(before) == _strict(after))
    assert diff.changes(before, copy.deepcopy(before)) == []


def _strict(value: Any) -> Any:
    """As the API compares: 1 is not true, and named lists have no order."""
    if isinstance(value, dict):
        return {name: _strict(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_strict(one) for one in value]
    return (type(value).__name__, value)
