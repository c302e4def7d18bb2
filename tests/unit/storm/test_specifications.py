"""What cannot be obeyed is refused with the field's path and what to do; what is left out has the defaults that are documented."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.storm import names, plan, plan_role_set
from backend.storm.budgets import Budget, resolve
from backend.storm.model import read_service
from tests.fakes.storm import START, StormWorld, role, storm_service


@pytest.mark.parametrize(
    ("wanted", "surge", "unavailable", "expected"),
    [
        (3, None, None, (0, 1)),
        (3, 0, 0, (0, 1)),
        (4, "25%", "25%", (1, 1)),
        (10, "25%", "20%", (3, 2)),
        (3, "1%", None, (1, 0)),
        (3, None, "1%", (0, 1)),
        (2, 0, 5, (0, 2)),
        (0, 3, 3, (0, 0)),
        (5, "100%", 0, (5, 0)),
    ],
)
def test_budgets_round_surge_up_and_unavailable_down(wanted: int, surge: Any, unavailable: Any, expected: tuple[int, int]) -> None:
    assert resolve(wanted, surge, unavailable) == Budget(wanted, *expected)


def _service(**changes: Any) -> dict[str, Any]:
    service = storm_service(role("prefill", 2), role("decode", 2))
    service["spec"] |= changes
    return service


def _with_role(**changes: Any) -> dict[str, Any]:
    service = _service()
    service["spec"]["template"]["spec"]["roles"][1] |= changes
    return service


def _named(name: str) -> dict[str, Any]:
    service = _service()
    service["metadata"]["name"] = name
    return service


ROLE_1 = "spec.template.spec.roles[1]"
REFUSED = {
    "percent without its sign": (_service(updateStrategy={"maxSurge": "25"}), "spec.updateStrategy.maxSurge"),
    "negative surge": (_service(updateStrategy={"maxSurge": -1}), "spec.updateStrategy.maxSurge"),
    "negative percentage": (_service(updateStrategy={"maxUnavailable": "-5%"}), "spec.updateStrategy.maxUnavailable"),
    "role's percentage": (_with_role(updateStrategy={"maxSurge": "a%"}), f"{ROLE_1}.updateStrategy.maxSurge"),
    "unknown strategy": (_service(updateStrategy={"type": "Blue"}), "spec.updateStrategy.type"),
    "negative replicas": (_service(replicas=-1), "spec.replicas"),
    "negative role replicas": (_with_role(replicas=-1), f"{ROLE_1}.replicas"),
    "negative history": (_service(revisionHistoryLimit=-1), "spec.revisionHistoryLimit"),
    "empty selector": (_service(selector={}), "spec.selector"),
    "selector of others": (_service(selector={"matchLabels": {"app": "x"}}), "spec.selector.matchLabels[app]"),
    "expression of others": (
        _service(selector={"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}),
        "spec.selector.matchExpressions[0]",
    ),
    "no roles": (_service(template={"metadata": {"labels": {"app": "svc"}}, "spec": {"roles": []}}), "spec.template.spec.roles"),
    "no template": (_service(template={"metadata": {"labels": {"app": "svc"}}}), "spec.template.spec.roles"),
    "role twice": (_with_role(name="prefill"), f"{ROLE_1}.name"),
    "role with capitals": (_with_role(name="Decode_1"), f"{ROLE_1}.name"),
    "role without containers": (_with_role(template={"spec": {}}), f"{ROLE_1}.template.spec.containers"),
    "container's name": (
        _with_role(template={"spec": {"containers": [{"name": "A_b", "image": "i"}]}}),
        f"{ROLE_1}.template.spec.containers[0].name",
    ),
    "container without an image": (
        _with_role(template={"spec": {"containers": [{"name": "engine"}]}}),
        f"{ROLE_1}.template.spec.containers[0].image",
    ),
    "order 0": (_with_role(upgradeOrder=0), f"{ROLE_1}.upgradeOrder"),
    "replicas as text": (_with_role(replicas="2"), f"{ROLE_1}.replicas"),
    "roles as a map": (_service(template={"metadata": {"labels": {"app": "svc"}}, "spec": {"roles": {}}}), "spec.template.spec.roles"),
    "label as a number": (_with_role(template={"metadata": {"labels": {"a": 1}}}), f"{ROLE_1}.template.metadata.labels[...]"),
    "strategy as text": (_service(updateStrategy="RollingUpdate"), "spec.updateStrategy"),
    "groups of pods": (_with_role(podGroupSize=2), f"{ROLE_1}.podGroupSize"),
    "name of 57 letters": (_named("a" * 57), "metadata.name"),
    "name with a dot": (_named("a.b"), "metadata.name"),
}


@pytest.mark.parametrize(("service", "path"), REFUSED.values(), ids=REFUSED.keys())
def test_a_field_that_cannot_be_obeyed_is_named_and_nothing_is_touched(service: dict[str, Any], path: str) -> None:
    result = plan(service, [], [], [], START)
    assert [problem.path for problem in result.problems] == [path]
    assert result.actions == ()
    conditions = {item["type"]: item for item in result.status["conditions"]}
    assert conditions["Ready"]["status"] == "False"
    assert conditions["ReplicaFailure"]["reason"] == "InvalidSpec"
    assert path in conditions["ReplicaFailure"]["message"]


def test_all_wrong_fields_are_told_at_once() -> None:
    service = _with_role(replicas=-2, name="B")
    service["spec"] |= {"replicas": -1, "selector": {}}
    paths = {problem.path for problem in read_service(service).problems}
    assert paths == {"spec.replicas", "spec.selector", f"{ROLE_1}.name", f"{ROLE_1}.replicas"}


def test_pods_that_run_are_kept_and_repaired_while_a_new_specification_is_refused() -> None:
    world = StormWorld(storm_service(role("prefill", 2))).run()
    world.edit(updateStrategy={"maxSurge": "10"})
    world.set_pod(world.pods[0].name, phase="Failed")
    world.run()
    assert sum(pod.ready for pod in world.pods) == 2
    assert not world.ready
    assert "spec.updateStrategy.maxSurge" in world.conditions()["Ready"][2]


def test_replicas_that_are_left_out_are_one() -> None:
    world = StormWorld(storm_service(role("prefill", None), replicas=None)).run()
    assert (len(world.role_sets), len(world.pods)) == (1, 1)
    assert world.ready


def test_a_name_of_56_letters_works_to_the_last_label() -> None:
    world = StormWorld(storm_service(role("prefill", 1, stateful=True), name="a" * 56)).run()
    assert world.ready
    values = [value for item in [*world.role_sets, *world.cluster.list(names.PODS)] for value in item["metadata"]["labels"].values()]
    assert max(map(len, values)) <= 63
    assert max(len(item["metadata"]["name"]) for item in [*world.role_sets, *world.cluster.list(names.PODS)]) <= 63


def test_fields_without_effect_are_told_and_in_nobodys_way() -> None:
    service = _with_role(disruptionTolerance={"maxUnavailable": 1})
    service["spec"]["template"]["spec"]["roles"][0]["updateStrategy"] = {"type": "InPlaceIfPossible"}
    service["spec"]["template"]["spec"]["schedulingStrategy"] = {"podGroup": {"minMember": 2}}
    world = StormWorld(service).run()
    assert world.ready
    assert {warning.path for warning in world.last.warnings} == {
        "spec.template.spec.schedulingStrategy",
        "spec.template.spec.roles[0].updateStrategy.type",
        "spec.template.spec.roles[1].disruptionTolerance",
    }


def test_an_empty_tolerance_is_no_field() -> None:
    """The API server of others writes `disruptionTolerance: {}` into every role."""
    assert plan(_with_role(disruptionTolerance={}), [], [], [], START).warnings == ()


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.sampled_from(["", "x", "25%", "A B"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "name", "spec"]), inner, max_size=2),
    max_leaves=4,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, child in children for inner in _paths(child, (*path, key)))]


@given(st.data(), junk)
def test_whatever_stands_in_a_field_is_planned_or_refused_and_never_breaks(data: st.DataObject, value: Any) -> None:
    service = _with_role(updateStrategy={"maxSurge": 1, "maxUnavailable": "10%"}, upgradeOrder=1, stateful=True, podGroupSize=1)
    service["spec"]["updateStrategy"] |= {"maxSurge": "10%"}
    service["spec"]["selector"]["matchExpressions"] = [{"key": "app", "operator": "Exists"}]
    place = data.draw(st.sampled_from([path for path in _paths(service["spec"]) if path]))
    into: Any = service["spec"]
    for key in place[:-1]:
        into = into[key]
    into[place[-1]] = value
    result = plan(json.loads(json.dumps(service)), [], [], [], START)
    assert bool(result.problems) != bool(result.actions)
    if result.actions and read_service(service).budget.wanted:
        StormWorld(json.loads(json.dumps(service))).run()


def test_a_role_set_made_by_hand_is_kept_too() -> None:
    role_set = {"metadata": {"name": "own", "namespace": "n", "uid": "u"}, "spec": {"roles": [role("decode", 2)]}}
    result = plan_role_set(role_set, [], START)
    assert [action.resource for action in result.actions] == [names.ROLE_SETS, names.PODS, names.PODS]
    assert "subdomain" not in result.actions[1].object["spec"]  # type: ignore[union-attr]
