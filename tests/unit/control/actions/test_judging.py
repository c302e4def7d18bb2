"""How far an operation is, whether a plan is stale, how risky a change is: tables of literals."""

from __future__ import annotations

from typing import Any

import pytest

from backend.api.actions import ActionPlan, AuditRecord, Operation, Parameters, PlanStep, RoleCapacity
from backend.control.actions import objects, planning, progress
from backend.control.actions.model import ClusterState, Fingerprint, OperationRecord, StoredPlan
from tests.fakes.storm_cluster import storm_service

LIMITS = progress.Limits(stall_s=100.0, trouble_s=10.0)


def pod(name: str, role: str, *, image: str = "engine:2", ready: bool = True, going: bool = False, waiting: str = "") -> dict[str, Any]:
    status: dict[str, Any] = {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]}
    if waiting:
        status["containerStatuses"] = [{"name": "engine", "state": {"waiting": {"reason": waiting, "message": "no such image"}}}]
    about = {"name": name, "uid": name, "labels": {objects.ROLE_LABEL: role}}
    if going:
        about["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return {"metadata": about, "spec": {"containers": [{"name": "engine", "image": image}]}, "status": status}


def service(*, ready: bool = True, generation: int = 2, observed: int = 2, **spec: Any) -> dict[str, Any]:
    made = storm_service(image="engine:2", prefill=1, decode=1, **spec)
    made["metadata"] |= {"generation": generation, "uid": "u"}
    made["status"] = {"observedGeneration": observed, "conditions": [{"type": "Ready", "status": str(ready)}]}
    return made


NEW = [pod("p2", "prefill"), pod("d2", "decode")]
SETTLED = [
    ("all_new", service(), NEW, True),
    ("controller_not_ready", service(ready=False), NEW, False),
    ("controller_has_not_seen_it", service(observed=1), NEW, False),
    ("ready_said_too_early", service(), [pod("p1", "prefill", image="engine:1"), pod("d2", "decode")], False),
    ("one_not_ready", service(), [pod("p2", "prefill", ready=False), pod("d2", "decode")], False),
    ("one_too_few", service(), [pod("p2", "prefill")], False),
    ("one_too_many", service(), [*NEW, pod("p3", "prefill")], False),
    ("one_still_leaving", service(), [*NEW, pod("p1", "prefill", going=True)], False),
    ("of_a_removed_role", service(), [*NEW, pod("x", "router")], False),
    ("nothing_wanted", service(replicas=0), [], True),
]


@pytest.mark.parametrize(("found", "pods", "wanted"), [case[1:] for case in SETTLED], ids=[case[0] for case in SETTLED])
def test_settled_means_that_controller_and_pods_agree(found, pods, wanted):
    assert progress.settled(ClusterState("default", "qwen", found, pods=pods)) is wanted


def record(action: str = "set-image", state: str = "running", **more: Any) -> OperationRecord:
    steps = [
        PlanStep(at_s=0.0, pods_out={"prefill": 1}, pods_in={"prefill": 1}),
        PlanStep(at_s=9.0, pods_out={"decode": 1}, pods_in={"decode": 1}),
    ]
    about: dict[str, Any] = {"action": action, "namespace": "default", "service": "qwen"}
    plan = ActionPlan(id="plan", hash="h", parameters=Parameters(), made_at=0, expires_at=9, steps=steps, **about)
    stored = StoredPlan(plan=plan, fingerprint=Fingerprint(exact={}), before={}, after=service(), pods={"p1": "prefill", "d1": "decode"})
    operation = Operation(id="op", plan_id="plan", state=state, steps_total=2, **about)
    audit = AuditRecord(id="a", at=0.0, action=action, target="default/qwen")
    facts: dict[str, Any] = {"sent": True, "spec": service()["spec"], "progress_at": 1_000.0, **more}
    return OperationRecord(operation=operation, stored=stored, audit=audit, **facts)


OLD = [pod("p1", "prefill", image="engine:1"), pod("d1", "decode", image="engine:1")]
BUSY = service(ready=False)
STUCK = [pod("p2", "prefill", ready=False, waiting="ImagePullBackOff"), OLD[1]]
CASES = [
    ("done", record(), service(), NEW, 0, "done", 2, "as wanted"),
    ("begins", record(), BUSY, OLD, 5, "running", 0, "prefill 0/1, decode 0/1"),
    ("half", record(), BUSY, [NEW[0], OLD[1]], 5, "running", 1, "prefill 1/1, decode 0/1"),
    ("leaving", record(), BUSY, [pod("p1", "prefill", going=True), OLD[1]], 5, "running", 0, "1 leaving"),
    ("paused", record(), service(ready=False, paused=True), OLD, 999, "paused", 0, "Paused"),
    ("resting_within_limit", record(), BUSY, OLD, 99, "running", 0, ""),
    ("stalled", record(), BUSY, OLD, 101, "failed", 0, "No progress for 101 s"),
    ("trouble_is_waited_for", record(), BUSY, STUCK, 9, "running", 0, "ImagePullBackOff: no such image"),
    ("trouble_fails_early", record(best=1), BUSY, STUCK, 11, "failed", 0, "pod p2: ImagePullBackOff: no such image"),
    ("moving_again", record(best=0), BUSY, [NEW[0], OLD[1]], 500, "running", 1, ""),
    ("gone", record(), None, [], 0, "failed", 0, "was deleted"),
    ("changed_by_others", record(), service(replicas=2), NEW, 0, "failed", 0, "spec.replicas: 1 > 2"),
    ("aborting", record(state="aborting"), BUSY, OLD, 5, "aborting", 0, ""),
    ("aborted", record(state="aborting"), service(), NEW, 5, "aborted", 0, "Reverted"),
    ("abort_stuck", record(state="aborting"), BUSY, OLD, 101, "failed", 0, "No progress"),
    ("abort_of_paused", record(state="aborting", was_paused=True), service(ready=False, paused=True), OLD, 5, "aborted", 0, "was paused"),
    ("pausing", record("pause"), BUSY, OLD, 0, "running", 0, "Waits"),
    ("pause_done", record("pause"), service(paused=True), OLD, 0, "done", 2, "Paused"),
    ("deleting", record("delete"), None, [OLD[1]], 5, "running", 0, "1 pods"),
    ("deleted", record("delete"), None, [], 5, "done", 2, "gone"),
    ("deletion_hangs", record("delete", best=2), BUSY, OLD, 101, "failed", 0, "No progress"),
]


@pytest.mark.parametrize(
    ("of", "found", "pods", "waited", "state", "steps", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_an_operation_is_judged_by_what_the_cluster_shows(of, found, pods, waited, state, steps, message):
    judged = progress.judge(of, ClusterState("default", "qwen", found, pods=pods), 1_000.0 + waited, LIMITS)
    assert (judged.state, judged.steps_done) == (state, steps)
    assert message in judged.message


VERBS = [
    ("running", "set-image", True, ["pause", "abort"]),
    ("paused", "scale", True, ["resume", "abort"]),
    ("failed", "set-image", True, ["abort", "undo"]),
    ("done", "undo", True, ["undo"]),
    ("aborting", "set-image", True, []),
    ("aborted", "set-image", True, []),
    ("undone", "set-image", True, []),
    ("planned", "set-image", False, []),
    ("failed", "set-image", False, []),
    ("running", "delete", True, []),
    ("done", "create", True, []),
]


@pytest.mark.parametrize(("state", "action", "sent", "wanted"), VERBS, ids=[f"{case[1]}_{case[0]}_{case[2]}" for case in VERBS])
def test_verbs_are_offered_only_where_they_can_be_true(state, action, sent, wanted):
    assert progress.verbs(record(action, state, sent=sent)) == wanted


RISKS = [
    ("create", [], "low"),
    ("delete", [], "high"),
    ("pause", [(2, 2)], "low"),
    ("scale", [(2, 2)], "low"),
    ("scale", [(2, 1)], "medium"),
    ("scale", [(3, 1)], "high"),
    ("scale", [(0, 0)], "low"),
    ("set-image", [(2, 2)], "medium"),
    ("set-image", [(2, 1), (4, 3)], "medium"),
    ("set-image", [(1, 0)], "high"),
    ("undo", [(2, 2)], "medium"),
    ("resume", [(4, 3)], "medium"),
    ("resume", [(4, 4)], "low"),
]


@pytest.mark.parametrize(("action", "capacity", "risk"), RISKS, ids=[f"{case[0]}_{case[1]}" for case in RISKS])
def test_risk_is_what_may_be_missing_on_the_way(action, capacity, risk):
    rows = [RoleCapacity(role=str(at), before=before, worst=worst, after=before) for at, (before, worst) in enumerate(capacity)]
    assert planning.risk_of(action, rows) == risk


MOVED = [
    ("nothing", {"a": 1}, {"p": 2}, []),
    ("a_field", {"a": 2}, {"p": 2}, ["a"]),
    ("fewer_pods", {"a": 1}, {"p": 1}, ["ready pods of role p"]),
    ("no_pods", {"a": 1}, {}, ["ready pods of role p"]),
    ("more_pods", {"a": 1}, {"p": 3, "q": 1}, []),
]


@pytest.mark.parametrize(("exact", "ready", "paths"), [case[1:] for case in MOVED], ids=[case[0] for case in MOVED])
def test_a_plan_is_stale_by_other_fields_and_by_fewer_ready_pods(exact, ready, paths):
    moved = planning.moved(Fingerprint(exact={"a": 1}, ready={"p": 2}), Fingerprint(exact=exact, ready=ready))
    assert [one.path for one in moved] == paths


def test_the_hash_is_of_state_and_change():
    seen = Fingerprint(exact={"a": 1, "b": 2}, ready={"p": 2})
    same = Fingerprint(exact={"b": 2, "a": 1}, ready={"p": 2})
    assert planning.digest(seen, {"x": 1}) == planning.digest(same, {"x": 1})
    hashes = {planning.digest(seen, None), planning.digest(seen, {"x": 1}), planning.digest(Fingerprint(exact={"a": 1}), {"x": 1})}
    assert len(hashes) == 3


def test_starts_are_observed_from_creation_to_ready_of_pods_that_never_restarted():
    def started(seconds: int, restarts: int = 0) -> dict[str, Any]:
        one = pod("x", "decode")
        one["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
        one["status"]["conditions"][0]["lastTransitionTime"] = f"2026-01-01T00:00:{seconds:02}Z"
        one["status"]["containerStatuses"] = [{"restartCount": restarts}]
        return one

    assert objects.start_seconds([started(10), started(20), started(30), started(59, restarts=1)]) == {"decode": 20.0}
