"""What goes wrong in AIBrix's controller, each with the right outcome; the names say what is mended."""

from __future__ import annotations

from typing import Any

import pytest

from backend.storm import Create, Delete, Observed, Patch, Plan, names, plan, plan_role_set
from tests.fakes.storm import START, StormWorld, image_of, role, storm_service

ORDERS = ["Sequential", "Parallel", "Interleave"]


def _pooled(*roles: dict[str, Any], order: str = "Sequential", **spec: Any) -> StormWorld:
    return StormWorld(storm_service(*roles, in_place=True, order=order, **spec)).run()


def _images(world: StormWorld) -> set[str]:
    return {image_of(item) for item in world.cluster.list(names.PODS)}


def test_equal_selectors_in_two_namespaces_leave_each_other_alone() -> None:
    mine, theirs = (StormWorld(storm_service(role("prefill"), namespace=namespace, replicas=2)).run() for namespace in ("default", "other"))
    everything = [mine.cluster.list(resource) + theirs.cluster.list(resource) for resource in (names.ROLE_SETS, names.PODS)]
    result = plan(mine.service, *everything, mine.cluster.list(names.CONTROLLER_REVISIONS), START)
    assert result.actions == ()
    assert result.status["replicas"] == 2


def test_a_role_set_with_our_labels_and_another_owner_is_not_counted_scaled_or_deleted() -> None:
    world = StormWorld(storm_service(role("prefill"), replicas=1)).run()
    twin = {**world.role_sets[0], "metadata": {**world.role_sets[0]["metadata"], "name": "twin", "uid": "twin"}}
    for owner in ([], [{"uid": "somebody", "controller": True}]):
        twin["metadata"]["ownerReferences"] = owner
        result = plan(
            world.service, [*world.role_sets, twin], world.cluster.list(names.PODS), world.cluster.list(names.CONTROLLER_REVISIONS), START
        )
        assert result.actions == ()
        assert result.status["replicas"] == 1
    twin["metadata"] |= {"namespace": "other", "ownerReferences": world.role_sets[0]["metadata"]["ownerReferences"]}
    given = [world.cluster.list(names.PODS), world.cluster.list(names.CONTROLLER_REVISIONS)]
    assert plan(world.service, [*world.role_sets, twin], *given, START).status["replicas"] == 1


def test_pods_of_a_removed_role_are_deleted() -> None:
    world = _pooled(role("prefill"), role("decode", 2))
    world.edit_roles(lambda item: None if item["name"] == "decode" else item)
    world.run()
    assert [pod.role for pod in world.pods] == ["prefill"]
    assert world.ready


def test_a_pod_whose_role_label_was_changed_is_replaced_and_deleted() -> None:
    world = _pooled(role("prefill", 2))
    pod = world.cluster.objects[names.PODS][world.pods[0].name]
    pod["metadata"] = {**pod["metadata"], "labels": {**pod["metadata"]["labels"], names.ROLE_LABEL: "mine"}}
    world.run()
    assert [pod.role for pod in world.pods] == ["prefill", "prefill"]


@pytest.mark.parametrize("stateful", [False, True], ids=["stateless", "stateful"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("size", "surge", "unavailable"), [(3, None, None), (3, 1, 1), (4, 0, 2), (1, 1, 0)])
def test_the_rollback_of_a_stuck_rollout_ends(order: str, stateful: bool, size: int, surge: Any, unavailable: Any) -> None:
    roles = [role(name, size, stateful=stateful, surge=surge, unavailable=unavailable) for name in ("prefill", "decode")]
    world = _pooled(*roles, order=order)
    world.rules.broken = lambda pod, image: image == "broken"
    world.set_image("broken")
    world.run()
    assert not world.ready
    kept = size - (1 if surge is None else unavailable)
    assert min(world.low["prefill"], world.low["decode"]) >= kept
    world.set_image("engine:v1")
    world.run()
    assert world.ready
    assert _images(world) == {"engine:v1"}


@pytest.mark.parametrize("order", ORDERS)
def test_an_old_version_that_never_gets_ready_is_replaced(order: str) -> None:
    world = StormWorld(storm_service(role("prefill", 2), role("decode", 2), in_place=True, order=order))
    world.rules.broken = lambda pod, image: image == "engine:v1"
    world.run()
    world.set_image("good")
    world.run()
    assert world.ready


@pytest.mark.parametrize("order", ORDERS)
def test_ready_is_never_said_before_every_wanted_pod_is_updated_and_ready(order: str) -> None:
    world = _pooled(role("prefill", 3, surge=1, unavailable=0), role("decode", 2), order=order)

    def check(world: StormWorld, result: Plan) -> None:
        if world.ready:
            assert _images(world) == {"engine:v2"}
            assert all(pod.ready for pod in world.pods)
            assert len(world.pods) == 5

    world.on_pass.append(check)
    world.set_image("engine:v2")
    world.run()
    assert world.ready


def test_a_broken_version_of_a_role_of_one_with_surge_is_not_ready() -> None:
    world = _pooled(role("prefill", surge=1, unavailable=0), order="Parallel")
    world.rules.broken = lambda pod, image: image == "broken"
    world.set_image("broken")
    world.run()
    assert world.conditions()["Ready"][0] == "False"
    assert world.service["status"]["readyReplicas"] == 1
    assert world.service["status"]["updatedReplicas"] == 0


def test_counts_of_updated_groups_are_never_vacuous() -> None:
    """Without pods nothing is updated, so the number only rises in a rollout."""
    world = StormWorld(storm_service(role("prefill", 2), replicas=3, surge=1, unavailable=0))
    seen: list[int] = []
    world.on_pass.append(lambda world, result: seen.append(result.status["updatedReplicas"]))
    world.step()
    assert seen == [0]
    world.run()
    seen.clear()
    world.set_image("engine:v2")
    world.run()
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, 3)


def test_a_service_that_cannot_get_on_says_which_pod_it_waits_for_and_why() -> None:
    world = _pooled(role("prefill", 2))
    world.rules.broken = lambda pod, image: image == "missing:v9"
    world.set_image("missing:v9")
    world.run()
    broken = next(pod for pod in world.pods if not pod.ready)
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "missing:v9"'}}}
    item = world.cluster.objects[names.PODS][broken.name]
    world.cluster.objects[names.PODS][broken.name] = {**item, "status": {**item["status"], "containerStatuses": [waiting]}}
    world.step()
    status, reason, message = world.conditions()["Ready"]
    assert (status, reason) == ("False", "Processing")
    assert f'{broken.name} (ImagePullBackOff: Back-off pulling image "missing:v9")' in message


def test_ready_becomes_false_and_does_not_vanish() -> None:
    world = _pooled(role("prefill", 2))
    world.set_pod(world.pods[0].name, ready=False)
    world.step()
    assert world.conditions()["Ready"][0] == "False"
    assert world.role_sets[0]["status"]["conditions"][0]["status"] == "False"


def test_role_set_indexes_are_unique_through_a_rollout() -> None:
    world = StormWorld(storm_service(role("prefill"), replicas=3, surge=2, unavailable=0))

    def check(world: StormWorld, result: Plan) -> None:
        indexes = [item["metadata"]["annotations"][names.INDEX_ANNOTATION] for item in world.role_sets]
        assert len(indexes) == len(set(indexes))

    world.on_pass.append(check)
    world.run()
    world.set_image("engine:v2")
    world.run()
    assert world.ready


def test_a_size_of_a_role_changes_under_a_rolling_update_without_new_groups() -> None:
    world = StormWorld(storm_service(role("prefill"), role("decode", 2), replicas=2)).run()
    before = {pod.uid for pod in world.pods}
    world.edit_roles(lambda item: {**item, "replicas": 3} if item["name"] == "decode" else item)
    world.run()
    assert world.ready
    assert len(world.pods) == 8
    assert before <= {pod.uid for pod in world.pods}


def test_turning_stateful_on_keeps_the_budget() -> None:
    world = _pooled(role("prefill", 3), order="Parallel")
    world.low.clear()
    world.edit_roles(lambda item: {**item, "stateful": True})
    world.run()
    assert world.ready
    assert world.low["prefill"] == 2
    assert {pod.slot for pod in world.pods} == {0, 1, 2}


def test_a_failed_pod_of_a_stateful_role_is_replaced_in_its_slot() -> None:
    world = _pooled(role("prefill", 2, stateful=True))
    name = world.pods[0].name
    world.set_pod(name, phase="Failed")
    world.run()
    assert world.ready
    assert name in {pod.name for pod in world.pods}


def test_a_service_of_another_owner_is_neither_overwritten_nor_in_the_way() -> None:
    world = StormWorld(storm_service(role("prefill")))
    foreign = {"metadata": {"name": "svc", "namespace": "default", "uid": "x"}, "spec": {"clusterIP": "10.0.0.1", "selector": {"a": "b"}}}
    world.cluster.adopt(names.SERVICES, [foreign])
    world.run()
    assert world.cluster.objects[names.SERVICES]["svc"] == foreign
    assert world.ready
    assert "Service svc exists" in world.conditions()["HeadlessService"][2]
    world.cluster.objects[names.SERVICES].clear()
    world.run()
    assert "HeadlessService" not in world.conditions()
    assert world.cluster.objects[names.SERVICES]["svc"]["spec"]["publishNotReadyAddresses"] is True


def test_a_headless_service_that_was_deleted_or_edited_comes_back() -> None:
    world = StormWorld(storm_service(role("prefill"))).run()
    own = world.cluster.objects[names.SERVICES]["svc"]
    world.cluster.objects[names.SERVICES]["svc"] = {**own, "spec": {**own["spec"], "selector": {"a": "b"}}}
    world.run()
    assert world.cluster.objects[names.SERVICES]["svc"]["spec"]["selector"] == {names.SERVICE_LABEL: "svc"}
    world.cluster.objects[names.SERVICES].clear()
    assert [action.resource for action in plan(
        world.service, world.role_sets, world.cluster.list(names.PODS), world.cluster.list(names.CONTROLLER_REVISIONS), START,
        observed=Observed(headless=None),
    ).actions] == [names.SERVICES]  # fmt: skip


def test_a_pause_holds_a_pooled_rollout_half_way() -> None:
    world = _pooled(role("prefill", 4))
    world.set_image("engine:v2")
    world.run(2.0)
    world.edit(paused=True)
    world.run()
    versions = sorted(image_of(item) for item in world.cluster.list(names.PODS))
    assert versions.count("engine:v1") >= 2
    assert all(pod.ready for pod in world.pods)
    assert "paused" in world.conditions()["Ready"][2]
    world.edit(paused=False)
    world.run()
    assert _images(world) == {"engine:v2"}


def test_a_broken_role_lets_the_sizes_of_the_others_be_kept() -> None:
    """One role's error does not starve those after it."""
    world = _pooled(role("prefill", 1), role("decode", 2))
    role_set = world.role_sets[0]
    failing = plan_role_set(role_set, [], START, observed=Observed(errors={role_set["metadata"]["name"]: "quota: no more pods"}))
    assert [action.object["metadata"]["labels"][names.ROLE_LABEL] for action in failing.actions if isinstance(action, Create)] == [
        "prefill",
        "decode",
        "decode",
    ]
    assert {item["type"]: item["message"] for item in failing.status["conditions"]}["ReplicaFailure"] == "quota: no more pods"


def test_an_error_below_is_told_by_the_service() -> None:
    world = _pooled(role("prefill"))
    name = world.role_sets[0]["metadata"]["name"]
    given = [world.role_sets, world.cluster.list(names.PODS), world.cluster.list(names.CONTROLLER_REVISIONS)]
    result = plan(world.service, *given, START, observed=Observed(errors={name: "exceeded quota"}))
    messages = {item["type"]: item["message"] for item in result.status["conditions"]}
    assert "exceeded quota" in messages["ReplicaFailure"]
    assert "exceeded quota" in messages["Ready"]


def test_a_sequence_waits_for_a_broken_role_and_goes_on_when_it_is_healed() -> None:
    world = StormWorld(storm_service(role("router", 1, upgradeOrder=1), role("prefill", 2, upgradeOrder=2), in_place=True)).run()
    router = next(pod.name for pod in world.pods if pod.role == "router")
    world.set_pod(router, ready=False)
    world.set_image("engine:v2", "prefill")
    world.run()
    assert _images(world) == {"engine:v1"}
    assert any("router: 0 of 1" in wait for wait in world.last.waiting)
    world.set_pod(router, ready=True)
    world.run()
    assert world.ready


def test_user_labels_on_a_role_set_survive_an_update_and_those_of_the_old_template_go() -> None:
    world = _pooled(role("prefill"))
    world.edit(template={"metadata": {"labels": {"tier": "gold"}}})
    world.run()
    item = world.role_sets[0]
    world.cluster.objects[names.ROLE_SETS][item["metadata"]["name"]] = {
        **item, "metadata": {**item["metadata"], "labels": {**item["metadata"]["labels"], "mine": "yes"}},
    }  # fmt: skip
    world.edit(template={"metadata": {"labels": {"tier": None}}})
    world.run()
    labels = world.role_sets[0]["metadata"]["labels"]
    assert labels["mine"] == "yes"
    assert "tier" not in labels
    assert world.ready


def test_deletion_takes_pods_then_role_sets_then_the_service() -> None:
    world = StormWorld(storm_service(role("prefill", 2), role("decode", 1, stateful=True), replicas=2)).run()
    order: list[str] = []
    world.on_pass.append(lambda world, result: order.extend(action.resource for action in result.actions))
    world.delete()
    world.run()
    assert {resource: len(items) for resource, items in world.cluster.objects.items()} == dict.fromkeys(world.cluster.objects, 0)
    assert order == [names.ROLE_SETS] * 2 + [names.PODS] * 6 + [names.ROLE_SETS] * 2 + [names.STORM_SERVICES]


def test_a_role_set_deleted_by_hand_is_replaced() -> None:
    world = StormWorld(storm_service(role("prefill"), replicas=2)).run()
    meta = world.role_sets[0]["metadata"]
    world.cluster.perform(Delete(names.ROLE_SETS, "default", meta["name"], meta["uid"], "by hand"))
    world.run()
    assert world.ready
    assert meta["name"] not in {item["metadata"]["name"] for item in world.role_sets}


def test_finalizers_are_written_against_the_version_that_was_read() -> None:
    service = storm_service(role("prefill"))
    service["metadata"] |= {"resourceVersion": "7", "finalizers": ["others"]}
    first = plan(service, [], [], [], START).actions[0]
    assert isinstance(first, Patch)
    assert first.patch["metadata"] == {"finalizers": ["others", names.SERVICE_FINALIZER], "resourceVersion": "7"}


def test_a_status_that_differs_in_times_alone_is_the_old_one() -> None:
    world = StormWorld(storm_service(role("prefill"))).run()
    given = [world.role_sets, world.cluster.list(names.PODS), world.cluster.list(names.CONTROLLER_REVISIONS)]
    later = plan(world.service, *given, START + 1000)
    assert later.status == world.service["status"]
    assert later.done
