"""Every template a service has had can come back, and what nothing needs is forgotten."""

from __future__ import annotations

from backend.storm import Create, Patch, names, plan
from tests.fakes.storm import START, StormWorld, role, storm_service


def _numbers(world: StormWorld) -> list[int]:
    return sorted(item["revision"] for item in world.cluster.list(names.CONTROLLER_REVISIONS))


def test_a_template_that_stays_makes_no_revision() -> None:
    world = StormWorld(storm_service(role("prefill"))).run()
    world.edit(replicas=2)
    world.run()
    assert _numbers(world) == [1]


def test_history_is_kept_to_its_limit_and_an_older_template_gets_the_newest_number() -> None:
    """As observed: with a limit of 2, revisions 3, 4 and 5 are kept; version 4 applied again becomes number 6."""
    world = StormWorld(storm_service(role("prefill"), revisionHistoryLimit=2)).run()
    for version in (2, 3, 4, 5):
        world.set_image(f"engine:v{version}")
        world.run()
    assert _numbers(world) == [3, 4, 5]
    world.set_image("engine:v4")
    world.run()
    assert _numbers(world) == [3, 5, 6]
    assert world.ready


def test_the_current_revision_is_the_last_complete_one_while_a_rollout_is_stuck() -> None:
    world = StormWorld(storm_service(role("prefill", 2), in_place=True)).run()
    stable = world.service["status"]["currentRevision"]
    world.rules.broken = lambda pod, image: image == "broken"
    world.set_image("broken")
    world.run()
    status = world.service["status"]
    assert status["currentRevision"] == stable
    assert status["updateRevision"] != stable
    world.set_image("engine:v3")
    world.run()
    assert world.service["status"]["currentRevision"] == world.service["status"]["updateRevision"] != stable


def test_a_name_that_belongs_to_something_else_is_avoided() -> None:
    service = storm_service(role("prefill"))
    first = _created(service, [])
    foreign = {**first, "metadata": {**first["metadata"], "ownerReferences": [{"uid": "x", "controller": True}]}, "data": {}}
    second = _created(service, [foreign])
    assert second["metadata"]["name"] != first["metadata"]["name"]
    assert plan(service, [], [], [foreign], START).status["collisionCount"] == 1


def _created(service: dict[str, object], revisions: list[dict[str, object]]) -> dict[str, object]:
    actions = plan(service, [], [], revisions, START).actions
    return next(action.object for action in actions if isinstance(action, Create) and action.resource == names.CONTROLLER_REVISIONS)


def test_a_revision_that_is_gone_does_not_stop_the_service() -> None:
    world = StormWorld(storm_service(role("prefill", 2))).run()
    world.cluster.objects[names.CONTROLLER_REVISIONS].clear()
    world.run()
    assert world.ready
    assert _numbers(world) == [1]


def test_unchanged_roles_keep_the_number_of_the_revision_they_came_with() -> None:
    world = StormWorld(storm_service(role("prefill"), role("decode"), in_place=True)).run()
    world.set_image("engine:v2", "decode")
    world.step()
    annotations = world.role_sets[0]["metadata"]["annotations"]
    assert annotations[f"{names.ROLE_REVISION_LABEL}.prefill"] == "1"
    assert annotations[f"{names.ROLE_REVISION_LABEL}.decode"] == "2"
    world.run()
    labels = {pod.role: pod.object["metadata"]["labels"][names.ROLE_REVISION_LABEL] for pod in world.pods}
    assert labels == {"prefill": "1", "decode": "2"}


def test_a_new_number_for_an_old_template_is_a_patch_and_not_a_copy() -> None:
    world = StormWorld(storm_service(role("prefill"))).run()
    world.set_image("engine:v2")
    world.run()
    world.set_image("engine:v1")
    world.step()
    renumbered = [action for action in world.last.actions if action.resource == names.CONTROLLER_REVISIONS]
    assert [type(action) for action in renumbered] == [Patch]
    assert renumbered[0].patch == {"revision": 3}  # type: ignore[union-attr]
