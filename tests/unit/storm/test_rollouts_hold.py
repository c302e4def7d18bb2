"""Whatever the service, the pods and the user do: budgets hold, nothing is done twice, nobody else's objects are touched, it ends well."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from backend.storm import Create, Delete, Plan, names, plan
from backend.storm.groups import owned_groups
from backend.storm.model import read_service
from backend.storm.pods import Pod, by_owner
from tests.fakes.storm import PodRules, StormWorld, role, storm_service

amounts = st.sampled_from([None, 0, 1, 2, "25%", "50%"])
sizes = st.integers(0, 4)
roles = st.builds(
    lambda name, size, stateful, surge, unavailable, order: role(
        name, size, stateful=stateful, surge=surge, unavailable=unavailable, **({"upgradeOrder": order} if order else {})
    ),
    st.just(""),
    sizes,
    st.booleans(),
    amounts,
    amounts,
    st.sampled_from([None, 1, 2]),
)
services = st.builds(
    lambda entries, replicas, in_place, order, surge, unavailable: storm_service(
        *[{**entry, "name": name} for entry, name in zip(entries, ("prefill", "decode", "router"), strict=False)],
        replicas=replicas,
        in_place=in_place,
        order=order,
        surge=surge,
        unavailable=unavailable,
    ),
    st.lists(roles, min_size=1, max_size=3),
    st.integers(0, 4),
    st.booleans(),
    st.sampled_from(["Sequential", "Parallel", "Interleave"]),
    amounts,
    amounts,
)
deeds = st.one_of(
    st.tuples(st.just("image"), st.sampled_from(["good:2", "good:3", "bad:1"])),
    st.tuples(st.just("size"), sizes),
    st.tuples(st.just("replicas"), st.integers(0, 4)),
    st.tuples(st.just("pause"), st.booleans()),
    st.tuples(st.just("order"), st.sampled_from(["Sequential", "Parallel", "Interleave"])),
    st.tuples(st.just("stateful"), st.booleans()),
    st.tuples(st.just("fail"), st.integers(0, 9)),
    st.tuples(st.just("delete pod"), st.integers(0, 9)),
    st.tuples(st.just("delete group"), st.integers(0, 3)),
    st.tuples(st.just("drop role"), st.just(0)),
    st.tuples(st.just("lose status"), st.just(0)),
)


class RandomPods(PodRules):
    """Each pod takes its own time; images named bad never get ready."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)

    def start_s(self, pod: Any) -> float | None:
        bad = pod["spec"]["containers"][0]["image"].startswith("bad")
        return None if bad else self.random.choice([0.0, 0.3, 1.0, 2.5, 7.0])

    def end_s(self, pod: Any) -> float:
        return self.random.choice([0.0, 0.4, 1.5, 6.0])


def _mine(world: StormWorld) -> list[Pod]:
    return [pod for pod in world.pods if pod.uid != "pod-other"]


def _do(world: StormWorld, deed: str, value: Any) -> None:
    entries = world.service["spec"]["template"]["spec"]["roles"]
    if deed == "image":
        world.set_image(value)
    elif deed in ("size", "stateful"):
        field = "replicas" if deed == "size" else "stateful"
        world.edit_roles(lambda item: {**item, field: value} if item is entries[0] else item)
    elif deed in ("replicas", "pause"):
        world.edit(**{"replicas" if deed == "replicas" else "paused": value})
    elif deed == "order":
        world.edit(template={"spec": {"updateStrategy": value}})
    elif deed == "drop role" and len(entries) > 1:
        world.edit_roles(lambda item: None if item is entries[-1] else item)
    elif deed == "fail" and (alive := [pod for pod in _mine(world) if pod.active]):
        world.set_pod(alive[value % len(alive)].name, phase="Failed")
    elif deed == "delete pod" and (pods := _mine(world)):
        pod = pods[value % len(pods)]
        world.cluster.perform(Delete(names.PODS, "default", pod.name, pod.uid, "by hand"))
    elif deed == "delete group" and (groups := [item for item in world.role_sets if item["metadata"]["name"] != "theirs"]):
        meta = groups[value % len(groups)]["metadata"]
        world.cluster.perform(Delete(names.ROLE_SETS, "default", meta["name"], meta["uid"], "by hand"))
    elif deed == "lose status":
        world.cluster.set_status(names.STORM_SERVICES, world.name, {})


def _nothing_twice(world: StormWorld, result: Plan) -> None:
    deleted = [(action.resource, action.uid) for action in result.actions if isinstance(action, Delete)]
    assert len(deleted) == len(set(deleted))
    named = [action.object["metadata"].get("name") for action in result.actions if isinstance(action, Create)]
    assert max(Counter(name for name in named if name).values(), default=1) == 1


class Guard:
    """Looks at the world after each pass."""

    def _groups(self, world: StormWorld) -> dict[str, Any]:
        return {
            group.name: group for group in owned_groups(world.service, world.role_sets, by_owner(world.cluster.list(names.PODS), "default"))
        }

    def __call__(self, world: StormWorld, result: Plan) -> None:
        _nothing_twice(world, result)
        after = self._groups(world)
        self._pods_hold(after, result)
        self._groups_hold(world, after, result)
        if result.status.get("conditions") and world.ready:
            assert all(group.complete for group in after.values()), "Ready while something is missing"

    def _pods_hold(self, after: dict[str, Any], result: Plan) -> None:
        gone = {action.uid for action in result.actions if isinstance(action, Delete) and action.resource == names.PODS}
        made = Counter(
            (action.object["metadata"]["labels"][names.ROLE_SET_LABEL], action.object["metadata"]["labels"][names.ROLE_LABEL])
            for action in result.actions
            if isinstance(action, Create) and action.resource == names.PODS
        )
        for group in after.values():
            for state in () if group.terminating else group.states:
                if made[group.name, state.spec.name]:
                    standing = sum(not pod.over for pod in state.pods)
                    assert standing <= state.budget.wanted + state.budget.surge, f"too many of {state.spec.name}"
                if any(
                    pod.uid in gone and pod.object["status"]["conditions"][0]["status"] == "True" and not pod.over for pod in state.pods
                ):
                    assert state.ready >= state.budget.min_ready, f"too few of {state.spec.name}"

    def _groups_hold(self, world: StormWorld, after: dict[str, Any], result: Plan) -> None:
        spec = read_service(world.service)
        if spec.in_place or spec.paused:
            return
        sets = [action for action in result.actions if action.resource == names.ROLE_SETS]
        if any(isinstance(action, Create) for action in sets):
            assert len(after) <= spec.budget.wanted + spec.budget.surge, "too many groups"
        leaving = {action.uid for action in sets if isinstance(action, Delete)}
        if any(group.uid in leaving and all(state.available for state in group.states) for group in after.values()):
            assert sum(group.available for group in after.values()) >= spec.budget.min_ready, "too few groups"


def _stranger(world: StormWorld) -> list[dict[str, Any]]:
    """A RoleSet and a pod with every label of ours and another owner."""
    owner = [{"apiVersion": names.API_VERSION, "kind": "StormService", "name": "svc", "uid": "other", "controller": True}]
    labels = {"app": "svc", names.SERVICE_LABEL: "svc", names.ROLE_SET_LABEL: "theirs", names.ROLE_LABEL: "prefill"}
    meta = {"namespace": "default", "labels": labels, "ownerReferences": owner}
    role_set = {"metadata": {**meta, "name": "theirs", "uid": "rs-other"}, "spec": {}}
    pod = {"metadata": {**meta, "name": "their-pod", "uid": "pod-other"}, "spec": {"containers": [{"name": "e", "image": "theirs:1"}]}}
    world.cluster.objects[names.ROLE_SETS]["theirs"] = role_set
    world.cluster.objects[names.PODS]["their-pod"] = pod
    return [role_set, pod]


@settings(max_examples=120, deadline=None)
@given(services, st.lists(st.tuples(deeds, st.floats(0.0, 12.0)), max_size=6), st.integers(0, 1 << 16))
def test_budgets_hold_and_every_rollout_ends(service: dict[str, Any], story: list[tuple[tuple[str, Any], float]], seed: int) -> None:
    world = StormWorld(service, RandomPods(seed))
    strangers = _stranger(world)
    world.on_pass.append(Guard())
    world.run()
    for (deed, value), seconds in story:
        _do(world, deed, value)
        world.run(seconds)
    world.edit(paused=False)
    world.set_image("good:9")
    world.run()
    _ended_well(world)
    assert [world.cluster.objects[names.ROLE_SETS]["theirs"], world.cluster.objects[names.PODS]["their-pod"]] == strangers


def _ended_well(world: StormWorld) -> None:
    assert world.ready, world.last.waiting
    spec = read_service(world.service)
    mine = _mine(world)
    wanted = Counter({role.name: role.budget.wanted * spec.budget.wanted for role in spec.groups.roles})
    assert Counter(pod.role for pod in mine) == +wanted
    assert {pod.object["spec"]["containers"][0]["image"] for pod in mine} <= {"good:9"}
    given = [world.cluster.list(resource) for resource in (names.ROLE_SETS, names.PODS, names.CONTROLLER_REVISIONS)]
    assert plan(world.service, *given, world.cluster.now, observed=world.cluster.observed(world.name)).done
