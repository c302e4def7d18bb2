"""The scenarios that AIBrix's controller was seen in, replayed: pods and RoleSets come and go in the order in which they did there.

Where we differ on purpose, `DIFFERENT` says why, and another test shows what is right.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.storm import Delete, names
from tests.fakes.storm import START, PodRules, StormWorld

SCENARIOS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "data/storm/scenarios.json").read_text())
DIFFERENT = {
    "crash_old_int_stateless": "defect there: nothing ever happens; here pods that are not ready are replaced in any step",
    "stuck_pool_int": "defect there: the rollback of a stuck interleaved rollout wedges; here the broken pods go",
    "pool_roles_add_remove": "defect there: pods of a removed role stay; here they are deleted",
    "toggle_stateful": "defect there: every pod goes at once; here the budget holds",
    "pause_pool": "there a pause doesn't hold the pods of a group that has its new template; here it does",
    "stuck_pool_par_1p1d_s1u0": "same moves; there the service says Ready, here it doesn't",
    "delete_cascade": "has a role of several pods a replica, which is refused so far; the cascade is a test of its own",
    "seq_blocked_by_broken_role": "same, the healing of the broken role is a test of its own",
}
UNORDERED = {
    "rep_n4_25pct": "a new group gets ready just when an old one is gone; which is seen first is chance",
    "twice_rep_n4_s1u0": "of groups of two older revisions any may go first there, here the oldest does",
}
BROKEN = {"stuck": "engine:v2", "crash": "engine:v1"}
"""Images that never get ready, by the first word of the scenario's name."""


class Lagging(PodRules):
    """As the recorded node agent, and a little more for a RoleSet to be seen ready, which breaks ties as they were broken there."""

    def __init__(self) -> None:
        super().__init__(start_s=1.25, end_s=0.6)


def _image(world: StormWorld, what: str) -> None:
    image, positions = re.match(r"set image (\S+) on role index \[(.*)\]", what).groups()  # type: ignore[union-attr]
    roles = world.service["spec"]["template"]["spec"]["roles"]
    world.set_image(image, *(roles[int(position)]["name"] for position in positions.split(",")))


def _sizes(world: StormWorld, what: str) -> None:
    wanted = {name: int(size) for name, size in re.findall(r"(\w+) \d+->(\d+)", what)}
    world.edit_roles(lambda item: {**item, "replicas": wanted.get(item["name"], item["replicas"])})


def _replicas(world: StormWorld, what: str) -> None:
    world.edit(replicas=int(re.search(r"(?:replicas=|scale to )(\d+)", what)[1]))  # type: ignore[index]


def _fail(world: StormWorld, what: str) -> None:
    world.set_pod(next(pod.name for pod in world.pods if pod.role == "prefill"), phase="Failed")


def _delete_pod(world: StormWorld, what: str) -> None:
    pod = next(pod for pod in world.pods if pod.role in what)
    world.cluster.perform(Delete(names.PODS, "default", pod.name, pod.uid, what))


def _delete_group(world: StormWorld, what: str) -> None:
    meta = world.role_sets[0]["metadata"]
    world.cluster.perform(Delete(names.ROLE_SETS, "default", meta["name"], meta["uid"], what))


def _lose_node(world: StormWorld, what: str) -> None:
    world.set_pod(next(pod.name for pod in world.pods if pod.role == "prefill"), ready="ready again" in what)


def _hang(world: StormWorld, what: str) -> None:
    lost = next(pod for pod in world.pods if not pod.ready)
    world.set_pod(lost.name, ready=False, deletionTimestamp="2026-01-01T00:00:00Z")


def _node_back(world: StormWorld, what: str) -> None:
    lost = next(pod for pod in world.pods if pod.terminating)
    del world.cluster.objects[names.PODS][lost.name]


def _label(world: StormWorld, what: str) -> None:
    world.edit(template={"metadata": {"labels": {"added": "yes"}}})


def _wipe(world: StormWorld, what: str) -> None:
    world.cluster.set_status(names.STORM_SERVICES, world.name, {})


def _nothing(world: StormWorld, what: str) -> None: ...


DEEDS: list[tuple[str, Callable[[StormWorld, str], None]]] = [
    ("create StormService", _nothing),
    ("set image", _image),
    (r"replicas=|scale to", _replicas),
    (r"\w+ \d+->\d+", _sizes),
    ("pause", lambda world, what: world.edit(paused=True)),
    ("resume", lambda world, what: world.edit(paused=False)),
    ("becomes Failed", _fail),
    ("delete one RoleSet", _delete_group),
    ("delete one", _delete_pod),
    ("delete StormService", lambda world, what: world.delete()),
    ("node lost|turns not ready|turns ready again", _lose_node),
    ("hangs in Terminating", _hang),
    ("node comes back", _node_back),
    ("label on the StormService|user adds a label", _nothing),
    ("label in spec.template", _label),
    ("status wiped", _wipe),
]


def _deed(what: str) -> Callable[[StormWorld, str], None]:
    return next(deed for pattern, deed in DEEDS if re.search(pattern, what))


def _replay(name: str) -> list[tuple[str, list[str], dict[str, list[str]]]]:
    """What was done in each phase, in the words of the record."""
    scenario = SCENARIOS[name]
    service = scenario["service"]
    service["metadata"] = {"name": "svc", "namespace": "default", "uid": "uid-svc", "generation": 1}
    rules = Lagging()
    broken = BROKEN.get(name.split("_")[0])
    rules.broken = lambda pod, image: image == broken
    world, seen = StormWorld(service, rules), []
    first = scenario["phases"][0]["t"]
    following = [*(phase["t"] for phase in scenario["phases"][1:]), first + 1000]
    for phase, until in zip(scenario["phases"], following, strict=True):
        begin, revisions = len(world.log), _revision_numbers(world)
        if name == "fault_unready" and "ready again" in phase["what"]:
            world.set_pod(next(pod.name for pod in world.pods if not pod.ready), ready=True)
        else:
            _deed(phase["what"])(world, phase["what"])
        groups: list[str] = []
        world.on_pass = [lambda world, plan, groups=groups, known=revisions: groups.extend(_group_words(world, plan, known))]
        world.run(START + until - first - world.cluster.now)
        roles: dict[str, list[str]] = {}
        for _, sign, kind, role, image in world.log[begin:]:
            if kind == "pod":
                roles.setdefault(role, []).append(sign + image.split(":")[1])
        seen.append((phase["what"], groups, roles))
    return seen


def _revision_numbers(world: StormWorld) -> dict[str, str]:
    """RoleSets by name with the number of their revision in order of appearance, kept over the whole replay."""
    if not hasattr(world, "numbers"):
        world.numbers, world.known_groups = {}, {}  # type: ignore[attr-defined]
    return world.known_groups  # type: ignore[attr-defined, no-any-return]


def _group_words(world: StormWorld, plan: Any, known: dict[str, str]) -> list[str]:
    numbers: dict[str, str] = world.numbers  # type: ignore[attr-defined]
    words = []
    for item in world.role_sets:
        revision = item["metadata"]["labels"][names.REVISION_LABEL]
        known[item["metadata"]["name"]] = numbers.setdefault(revision, str(len(numbers) + 1))
    for action in plan.actions:
        if action.resource == names.ROLE_SETS and isinstance(action, Delete):
            words.append("-" + known[action.name])
        elif action.resource == names.ROLE_SETS and hasattr(action, "object"):
            words.append("+" + numbers[action.object["metadata"]["labels"][names.REVISION_LABEL]])
    return words


@pytest.mark.parametrize("name", sorted(SCENARIOS.keys() - DIFFERENT.keys()))
def test_pods_and_role_sets_come_and_go_as_they_were_seen_to(name: str) -> None:
    for phase, (what, groups, roles) in zip(SCENARIOS[name]["phases"], _replay(name), strict=True):
        if name in UNORDERED:
            groups, phase["groups"] = sorted(groups), sorted(phase["groups"])
        assert groups == phase["groups"], what
        assert {role: Counter(words) for role, words in roles.items()} == {
            role: Counter(words) for role, words in phase["roles"].items()
        }, what
        if name.startswith("pool"):
            assert roles == phase["roles"], what
