"""The arithmetic of rollouts, pass by pass, where everything gets ready between two passes."""

from __future__ import annotations

from typing import Any

import pytest

from backend.storm import stateful, stateless
from backend.storm.groups import Group
from backend.storm.model import RoleSpec, ServiceSpec, read_role_set, read_service
from backend.storm.pods import Pod
from backend.storm.replicas import moves_of_groups, proportion
from backend.storm.revisions import Revision, Revisions
from backend.storm.roles import RoleState, count_roles
from backend.storm.strategies import moves_of_roles
from tests.fakes.storm import role, storm_service

OLD, NEW = Revision("svc-old", 1, {}), Revision("svc-new", 2, {})


def _spec(replicas: int, surge: Any, unavailable: Any) -> ServiceSpec:
    return read_service(storm_service(role("prefill"), replicas=replicas, surge=surge, unavailable=unavailable))


def _group(name: str, revision: Revision, *, ready: bool = True) -> Group:
    item = {"metadata": {"name": name}, "spec": {"other": name}}
    return Group(name, "default", name, revision.name, 0, False, read_role_set({}), [], [], (), item, available=ready)


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "passes"),
    [
        (3, 1, 1, [(1, 1), (1, 1), (1, 1)]),
        (3, 0, 1, [(1, 0), (0, 1), (1, 0), (0, 1), (1, 0), (0, 1)]),
        (3, None, None, [(1, 0), (0, 1), (1, 0), (0, 1), (1, 0), (0, 1)]),
        (3, 1, 0, [(0, 1), (1, 0), (0, 1), (1, 0), (0, 1), (1, 0)]),
        (4, "25%", "25%", [(1, 1), (1, 1), (1, 1), (1, 1)]),
        (10, "25%", "20%", [(2, 3), (1, 0), (2, 3), (1, 0), (2, 3), (1, 0), (1, 1)]),
    ],
    ids=["3,1,1", "3,0,1", "3 unset", "3,1,0", "4,25%,25%", "10,25%,20%"],
)
def test_replica_mode_replaces_groups_in_these_passes(replicas: int, surge: Any, unavailable: Any, passes: list[tuple[int, int]]) -> None:
    """Each pass: (groups deleted, groups created)."""
    spec, revisions = _spec(replicas, surge, unavailable), Revisions(NEW, OLD, 0, ())
    groups = [_group(f"old{number}", OLD) for number in range(replicas)]
    seen = []
    while moves := moves_of_groups(spec, groups, revisions):
        leaving = [group for group, _ in moves.delete]
        seen.append((len(leaving), len(moves.create)))
        groups = [group for group in groups if group not in leaving] + [_group(f"new{len(seen)}{n}", NEW) for n in range(len(moves.create))]
    assert seen == passes
    assert [group.revision for group in groups] == [NEW.name] * replicas


@pytest.mark.parametrize(("unavailable", "stands"), [(0, (3, 1)), (1, (2, 2))], ids=["surge 1, unavailable 0", "surge 1, unavailable 1"])
def test_a_new_version_that_never_gets_ready_stops_within_the_budget(unavailable: int, stands: tuple[int, int]) -> None:
    spec, revisions = _spec(3, 1, unavailable), Revisions(NEW, OLD, 0, ())
    groups = [_group(f"old{number}", OLD) for number in range(3)]
    for step in range(10):
        moves = moves_of_groups(spec, groups, revisions)
        leaving = [group for group, _ in moves.delete]
        groups = [group for group in groups if group not in leaving] + [
            _group(f"new{step}{n}", NEW, ready=False) for n in range(len(moves.create))
        ]
    old = [group for group in groups if group.revision == OLD.name]
    assert (len(old), len(groups) - len(old)) == stands


@pytest.mark.parametrize(
    ("desired", "current", "updated", "expected"),
    [(4, 2, 2, (2, 2)), (6, 2, 2, (3, 3)), (3, 3, 3, (2, 1)), (5, 0, 0, (0, 5)), (3, 4, 0, (3, 0)), (10, 1, 2, (3, 7))],
)
def test_paused_services_keep_the_shares_of_two_revisions(desired: int, current: int, updated: int, expected: tuple[int, int]) -> None:
    assert proportion(desired, current, updated) == expected


def _role(name: str, replicas: int, **fields: Any) -> RoleSpec:
    return read_role_set({"roles": [role(name, replicas, **fields)]}).roles[0]


def _pod(spec: RoleSpec, name: str, *, new: bool, slot: int | None = None, ready: bool = True) -> Pod:
    version = spec.template_hash if new else "older"
    return Pod(name, "default", name, "", spec.name, version, slot, False, False, ready, {"metadata": {}})


def _play(specs: list[RoleSpec], strategy: str, *, limit: int = 40) -> list[str]:
    """Passes of a rollout from all old and ready, as words such as `-p` (old prefill deleted) and `+d1` (slot 1 of decode made)."""
    pods = [
        _pod(spec, f"{spec.name}-old{number}", new=False, slot=number if spec.stateful else None)
        for spec in specs
        for number in range(spec.budget.wanted)
    ]
    passes: list[str] = []
    for made in range(limit):
        states, _ = count_roles(specs, pods)
        words = []
        for state, moves in moves_of_roles(states, strategy, "rs"):
            for slot, _ in moves.create:
                words.append(f"+{state.spec.name[0]}{'' if slot is None else slot}")
                pods.append(_pod(state.spec, f"{state.spec.name}-new{made}{len(words)}", new=True, slot=slot))
            for pod, _ in moves.delete:
                words.append(f"-{state.spec.name[0]}{'' if pod.slot is None else pod.slot}")
                pods.remove(pod)
        if not words:
            return passes
        passes.append(" ".join(words))
    raise AssertionError(f"no end after {passes}")


P4, D2 = _role("prefill", 4), _role("decode", 2)


@pytest.mark.parametrize(
    ("specs", "strategy", "passes"),
    [
        ([P4, D2], "Interleave", ["-p -d", "+p +d", "-p -d", "+p +d", "-p", "+p", "-p", "+p"]),
        ([P4, D2], "Sequential", ["-p", "+p"] * 4 + ["-d", "+d"] * 2),
        ([P4, D2], "Parallel", ["-p -d", "+p +d", "-p -d", "+p +d", "-p", "+p", "-p", "+p"]),
        ([_role("prefill", 4, unavailable=2), D2], "Interleave", ["-p -p -d", "+p +p +d", "-p -p -d", "+p +p +d"]),
        (
            [_role("prefill", 1, upgradeOrder=2), _role("decode", 1, upgradeOrder=1), _role("router", 1)],
            "Sequential",
            ["-d", "+d", "-p", "+p", "-r", "+r"],
        ),
        ([_role("prefill", 1, upgradeOrder=2), _role("decode", 1, upgradeOrder=2)], "Sequential", ["-p", "+p", "-d", "+d"]),
        ([_role("slots", 3, stateful=True)], "Parallel", ["-s0", "+s0", "-s1", "+s1", "-s2", "+s2"]),
        ([_role("slots", 3, stateful=True, surge=1, unavailable=0)], "Parallel", ["+s0", "-s0", "+s1", "-s1", "+s2", "-s2"]),
        ([_role("slots", 3, stateful=True, surge=1, unavailable=1)], "Parallel", ["+s1 -s0", "+s0 -s1", "-s2", "+s2"]),
    ],
    ids=["interleaved", "sequence", "parallel", "in proportion", "order", "equal order", "slots 0,1", "slots 1,0", "slots 1,1"],
)
def test_pooled_mode_replaces_pods_in_these_passes(specs: list[RoleSpec], strategy: str, passes: list[str]) -> None:
    assert _play(specs, strategy) == passes


P1, D1 = (_role(name, 1, surge=1, unavailable=0) for name in ("prefill", "decode"))


@pytest.mark.parametrize(
    ("strategy", "passes"),
    [("Sequential", ["+p", "+d", "-p -d"]), ("Parallel", ["+p +d", "-p -d"]), ("Interleave", ["+p +d", "-p -d"])],
)
def test_a_pair_of_the_older_version_stays_until_there_is_one_of_the_newer(strategy: str, passes: list[str]) -> None:
    assert _play([P1, D1], strategy) == passes


def test_the_last_older_pod_waits_for_the_other_roles_new_one_to_be_ready() -> None:
    new = _pod(P1, "p-new", new=True)
    pods = [_pod(P1, "p-old", new=False), new, _pod(D1, "d-old", new=False), _pod(D1, "d-new", new=True, ready=False)]
    states, _ = count_roles([P1, D1], pods)
    assert all(not moves for _, moves in moves_of_roles(states, "Parallel", "rs"))
    states, _ = count_roles([P1, D1], [*pods[:3], _pod(D1, "d-new", new=True)])
    assert [pod.name for _, moves in moves_of_roles(states, "Parallel", "rs") for pod, _ in moves.delete] == ["p-old", "d-old"]


@pytest.mark.parametrize(
    ("surge", "unavailable", "old_ready", "old_broken", "new_ready", "expected"),
    [
        (0, 1, 3, 0, 0, 1),
        (0, 1, 2, 1, 0, 0),
        (1, 1, 3, 0, 0, 1),
        (0, 1, 2, 0, 1, 2),
        (1, 1, 1, 0, 2, 2),
        (1, 1, 2, 1, 0, 1),
    ],
    ids=[
        "none updated",
        "none updated, one old not ready",
        "two a step",
        "first step made",
        "two a step, first made",
        "two a step, one old not ready",
    ],
)
def test_interleaved_steps_truncate_toward_zero(
    surge: int, unavailable: int, old_ready: int, old_broken: int, new_ready: int, expected: int
) -> None:
    spec = _role("prefill", 3, surge=surge, unavailable=unavailable)
    pods = [_pod(spec, f"o{n}", new=False) for n in range(old_ready)]
    pods += [_pod(spec, f"b{n}", new=False, ready=False) for n in range(old_broken)]
    pods += [_pod(spec, f"n{n}", new=True) for n in range(new_ready)]
    (state,), _ = count_roles([spec], pods)
    assert stateless.current_step(state) == (False, expected)


def _state(spec: RoleSpec, pods: list[Pod]) -> RoleState:
    return count_roles([spec], pods)[0][0]


def test_scale_in_lets_older_and_not_ready_pods_go_first() -> None:
    spec = _role("prefill", 1)
    pods = [
        _pod(spec, "new-ready", new=True),
        _pod(spec, "new-broken", new=True, ready=False),
        _pod(spec, "old-ready", new=False),
        _pod(spec, "old-broken", new=False, ready=False),
    ]
    moves = stateless.scale(_state(spec, pods))
    assert [pod.name for pod, _ in moves.delete] == ["old-broken", "old-ready", "new-broken"]


def test_slots_beyond_the_wanted_go_only_while_enough_others_are_ready() -> None:
    """A scale-in must not take the only ready pods."""
    spec = _role("slots", 2, stateful=True)
    pods = [_pod(spec, f"s{slot}", new=True, slot=slot, ready=slot >= 2) for slot in range(4)]
    moves = stateful.scale(_state(spec, pods), "rs")
    assert [pod.name for pod, _ in moves.delete] == ["s3"]
    ready = [_pod(spec, f"s{slot}", new=True, slot=slot) for slot in range(4)]
    assert [pod.name for pod, _ in stateful.scale(_state(spec, ready), "rs").delete] == ["s3", "s2"]


def test_an_old_pod_beside_its_ready_successor_stays_while_it_is_needed() -> None:
    spec = _role("slots", 3, stateful=True, surge=1, unavailable=0)
    pods = [
        _pod(spec, "old0", new=False, slot=0),
        _pod(spec, "new0", new=True, slot=0),
        _pod(spec, "new1", new=True, slot=1),
        _pod(spec, "new2", new=True, slot=2, ready=False),
    ]
    assert stateful.scale(_state(spec, pods), "rs").delete == []
    pods[3].ready = True
    assert [pod.name for pod, _ in stateful.scale(_state(spec, pods), "rs").delete] == ["old0"]
