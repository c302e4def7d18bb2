"""Plan, confirm, apply, watch, abort, undo, audit against the real planner in virtual time. Not here: HTTP, Redis, a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from backend.api.actions import Actor, ApplyRequest, Operation, Parameters, PlanRequest, VerbRequest
from backend.control.actions import planning
from backend.control.actions.forecast import forecast
from backend.control.actions.model import ClusterState
from backend.control.actions.progress import Limits
from backend.control.actions.service import Actions
from backend.core.errors import InvalidRequest, NotFound, StaleState, Unauthorized, Unavailable
from backend.core.supervise import Supervisor
from tests.fakes.storm_cluster import BAD_IMAGE, FakeCluster, FakeStore, LoopClock, storm_service

pytestmark = pytest.mark.looptime
ALICE = Actor(user="alice", source="cli")


class Bench:
    """A cluster, a store, and a control that can be killed and started again."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster, self.store = cluster, FakeStore()
        self.published: list[Operation] = []
        self.cached: dict[str, int] | None = None
        self.read_only = False
        self.restart()

    def restart(self) -> None:
        self.tasks = Supervisor("control")
        self.actions = Actions(
            self.cluster,
            self.store,
            forecast,
            self.tasks,
            clock=LoopClock(),
            publish=lambda operation: self.published.append(msgspec.structs.replace(operation)),
            cached=lambda: self.cached,
            limits=Limits(stall_s=120.0, trouble_s=30.0),
            read_only=self.read_only,
        )
        self.actions.start()

    async def kill(self) -> None:
        await self.tasks.close()

    async def plan(self, action: str, *, service: str = "qwen", **parameters: object):
        asked = Parameters(**parameters)
        return await self.actions.plan(PlanRequest(action=action, service=service, parameters=asked, by=ALICE))

    async def apply(self, plan, **more: str) -> Operation:
        return await self.actions.apply(plan.id, ApplyRequest(confirm=plan.confirm, reason="needed", by=ALICE, **more))

    async def do(self, action: str, **parameters: object) -> Operation:
        return await self.end(await self.apply(await self.plan(action, **parameters)))

    async def end(self, operation: Operation) -> Operation:
        async with asyncio.timeout(3_000):
            while (found := await self.actions.operation(operation.id)).active:  # noqa: ASYNC110 - as a client does
                await asyncio.sleep(1.0)
        return found


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """With a service that is ready."""
    cluster = FakeCluster()
    cluster.seed(storm_service())
    made = Bench(cluster)
    yield made
    await made.kill()
    await cluster.close()


async def test_a_service_is_created_and_ready(bench):
    made = storm_service("other")
    plan = await bench.plan("create", manifest=made, service="")
    assert (plan.service, plan.risk, plan.confirm) == ("other", "low", "")
    assert (await bench.end(await bench.apply(plan))).state == "done"
    assert bench.cluster.images("other") == ["engine:1"] * 4


async def test_an_upgrade_runs_as_its_plan_says(bench):
    bench.cached = {pod["metadata"]["name"]: 100 for pod in bench.cluster.pods()}
    plan = await bench.plan("set-image", image="engine:2")
    assert [(one.path, one.before, one.after) for one in plan.diff] == [
        (f"spec.template.spec.roles[{role}].template.spec.containers[engine].image", "engine:1", "engine:2")
        for role in ("prefill", "decode")
    ]
    assert plan.warm_tokens_lost == 400
    assert sum(sum(step.pods_in.values()) for step in plan.steps) == 4
    assert {one.role: (one.before, one.worst, one.after) for one in plan.capacity} == {"prefill": (2, 1, 2), "decode": (2, 1, 2)}
    assert plan.risk == "medium"
    assert plan.confirm == "qwen"
    assert plan.start_seconds["prefill"] == pytest.approx(20.0, abs=1.0)
    ended = await bench.end(await bench.apply(plan))
    assert (ended.state, ended.steps_done) == ("done", ended.steps_total)
    assert bench.cluster.images() == ["engine:2"] * 4
    assert ended.ended_at - ended.started_at == pytest.approx(plan.seconds, rel=0.2)


async def test_steps_are_told_while_they_happen(bench):
    bench.published.clear()
    await bench.do("set-image", image="engine:2")
    counts = [one.steps_done for one in bench.published]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert len(set(counts)) > 3
    assert [one.state for one in bench.published][-1] == "done"


async def test_every_act_is_audited_before_and_after(bench):
    bench.store.entries.clear()
    operation = await bench.do("set-image", image="engine:2")
    before, after = bench.store.entries
    assert (before.id, before.outcome, before.user, before.source) == (after.id, "started", "alice", "cli")
    assert (after.outcome, after.operation_id, after.reason, after.ended_at) == ("done", operation.id, "needed", operation.ended_at)
    assert before.plan_hash


async def test_a_stale_plan_is_refused_with_what_changed(bench):
    plan = await bench.plan("set-image", image="engine:2")
    await bench.cluster.patch("default", "qwen", {"spec": {"replicas": 2}})
    with pytest.raises(StaleState, match=r"spec\.replicas: 1 > 2"):
        await bench.apply(plan)
    assert bench.store.entries[-1].outcome == "refused"


async def test_a_plan_is_stale_when_fewer_pods_are_ready_than_it_counted(bench):
    plan = await bench.plan("set-image", image="engine:2")
    pod = bench.cluster.pods()[0]
    bench.cluster.world.objects["pods"][pod["metadata"]["name"]] = {**pod, "status": {"phase": "Failed"}}
    with pytest.raises(StaleState, match=r"ready pods of role prefill: 2 > 1"):
        await bench.apply(plan)


async def test_a_status_that_moved_does_not_make_a_plan_stale(bench):
    plan = await bench.plan("set-image", image="engine:2")
    service = bench.cluster.world.objects["stormservices"]["qwen"]
    bench.cluster.world.objects["stormservices"]["qwen"] = {**service, "status": {**service["status"], "note": "new"}}
    assert bench.cluster.service()["metadata"]["resourceVersion"] != plan.resource_version
    assert (await bench.apply(plan)).state == "running"


async def test_an_expired_plan_is_refused(bench):
    plan = await bench.plan("set-image", image="engine:2")
    await asyncio.sleep(planning.VALID_S)
    with pytest.raises(StaleState, match="expired"):
        await bench.apply(plan)


@pytest.mark.parametrize("confirm", ["", "qwenn", "QWEN"])
async def test_a_wrong_confirmation_changes_nothing(bench, confirm):
    plan = await bench.plan("set-image", image="engine:2")
    with pytest.raises(InvalidRequest, match="qwen"):
        await bench.actions.apply(plan.id, ApplyRequest(confirm=confirm))
    assert bench.cluster.images() == ["engine:1"] * 4


async def test_high_risk_needs_a_reason(bench):
    plan = await bench.plan("delete")
    assert (plan.risk, plan.confirm, plan.reason_required) == ("high", "qwen", True)
    with pytest.raises(InvalidRequest, match="reason"):
        await bench.actions.apply(plan.id, ApplyRequest(confirm="qwen"))


async def test_a_second_apply_is_the_first_one_again_with_its_key_and_refused_without(bench):
    plan = await bench.plan("set-image", image="engine:2")
    first = await bench.apply(plan, key="k")
    written = len(bench.cluster.writes)
    assert (await bench.apply(plan, key="k")).id == first.id
    for key in ("", "other"):
        with pytest.raises(StaleState, match=first.id):
            await bench.apply(plan, key=key)
    assert len(bench.cluster.writes) == written


async def test_two_calls_at_once_are_one_operation(bench):
    plan = await bench.plan("set-image", image="engine:2")
    first, second = await asyncio.gather(bench.apply(plan, key="k"), bench.apply(plan, key="k"))
    assert first.id == second.id


async def test_a_change_between_check_and_write_is_lost_by_neither(bench):
    plan = await bench.plan("set-image", image="engine:2")
    bench.cluster.meanwhile = {"spec": {"revisionHistoryLimit": 3}}
    with pytest.raises(StaleState):
        await bench.apply(plan)
    spec = bench.cluster.service()["spec"]
    assert spec["revisionHistoryLimit"] == 3
    assert bench.cluster.images() == ["engine:1"] * 4
    assert [entry.outcome for entry in bench.store.entries] == ["started", "failed"]


async def test_an_abort_leaves_what_somebody_else_changed_meanwhile(bench):
    operation = await bench.apply(await bench.plan("set-image", image="engine:2"))
    await asyncio.sleep(30)
    bench.cluster.meanwhile = {"spec": {"revisionHistoryLimit": 3}}
    await bench.actions.tell(operation.id, "abort", VerbRequest(confirm="qwen"))
    assert (await bench.end(operation)).state == "aborted"
    assert bench.cluster.service()["spec"]["revisionHistoryLimit"] == 3


async def test_one_operation_at_a_time_on_a_service(bench):
    first = await bench.apply(await bench.plan("set-image", image="engine:2"))
    plan = await bench.plan("scale", role="decode", replicas=3)
    with pytest.raises(StaleState, match=first.id):
        await bench.apply(plan)


@pytest.mark.parametrize("away_s", [0, 1_000])
async def test_a_killed_control_goes_on_where_it_was(bench, away_s):
    operation = await bench.apply(await bench.plan("set-image", image="engine:2"))
    await asyncio.sleep(30)
    await bench.kill()
    await asyncio.sleep(away_s)
    bench.restart()
    ended = await bench.end(operation)
    assert ended.state == "done"
    assert [one.outcome for one in bench.store.entries if one.operation_id == operation.id] == ["started", "done"]


@pytest.mark.parametrize("arrived", [True, False], ids=["arrived", "never_sent"])
async def test_a_change_whose_answer_was_lost_is_made_exactly_once(bench, arrived):
    plan = await bench.plan("set-image", image="engine:2")
    written = len(bench.cluster.writes)
    if arrived:
        bench.cluster.lose_answers = True
        operation = await bench.apply(plan)
    else:
        record = bench.actions._record(await bench.store.plan(plan.id), ApplyRequest(by=ALICE))
        operation = (await bench.store.begin(record)).operation
    await bench.kill()
    bench.restart()
    assert (await bench.end(operation)).state == "done"
    assert len(bench.cluster.writes) == written + 1


async def test_a_change_that_was_never_sent_is_not_sent_on_another_state(bench):
    plan = await bench.plan("set-image", image="engine:2")
    record = bench.actions._record(await bench.store.plan(plan.id), ApplyRequest(by=ALICE))
    await bench.store.begin(record)
    await bench.kill()
    await bench.cluster.patch("default", "qwen", {"spec": {"revisionHistoryLimit": 3}})
    bench.restart()
    ended = await bench.end(record.operation)
    assert ended.state == "failed"
    assert "revisionHistoryLimit" in ended.message
    assert bench.cluster.images() == ["engine:1"] * 4


async def test_a_copy_that_lags_behind_our_write_is_not_taken_for_somebody_else_s_change(bench):
    bench.cluster.lagging = await bench.cluster.observe("default", "qwen")
    assert (await bench.do("set-image", image="engine:2")).state == "done"
    bench.cluster.lagging = ClusterState("default", "other")
    made = await bench.apply(await bench.plan("create", service="", manifest=storm_service("other")))
    assert (await bench.end(made)).state == "done"


async def test_a_cluster_that_is_away_is_waited_for(bench):
    operation = await bench.apply(await bench.plan("set-image", image="engine:2"))
    bench.cluster.unreachable = True
    await asyncio.sleep(500)
    assert "does not answer" in (await bench.actions.operation(operation.id)).message
    bench.cluster.unreachable = False
    assert (await bench.end(operation)).state == "done"


async def test_an_image_that_never_gets_ready_fails_with_its_reason_and_abort_brings_the_old_one_back(bench):
    ended = await bench.do("set-image", image=BAD_IMAGE)
    assert ended.state == "failed"
    assert "No progress for" in ended.message
    assert "not ready" in ended.message
    assert ended.verbs == ["abort", "undo"]
    assert bench.cluster.images().count("engine:1") == 3, "the rollout stands within its budget"
    with pytest.raises(InvalidRequest, match="qwen"):
        await bench.actions.tell(ended.id, "abort", VerbRequest())
    await bench.actions.tell(ended.id, "abort", VerbRequest(confirm="qwen", by=ALICE))
    aborted = await bench.end(ended)
    assert (aborted.state, aborted.verbs) == ("aborted", [])
    assert bench.cluster.images() == ["engine:1"] * 4


async def test_an_abort_in_the_middle_stops_and_reverts(bench):
    operation = await bench.apply(await bench.plan("set-image", image="engine:2"))
    await asyncio.sleep(30)
    assert 0 < bench.cluster.images().count("engine:2") < 4
    told = await bench.actions.tell(operation.id, "abort", VerbRequest(confirm="qwen", reason="slow", by=ALICE))
    assert told.state == "aborting"
    assert (await bench.end(operation)).state == "aborted"
    assert bench.cluster.images() == ["engine:1"] * 4
    assert not bench.cluster.service()["spec"].get("paused")
    last = {entry.action: entry for entry in bench.store.entries}
    assert (last["abort"].outcome, last["abort"].reason, last["set-image"].message) == ("done", "slow", "Aborted.")


async def test_an_abort_survives_a_killed_control(bench):
    operation = await bench.apply(await bench.plan("set-image", image="engine:2"))
    await asyncio.sleep(30)
    bench.cluster.unreachable = True
    await bench.actions.tell(operation.id, "abort", VerbRequest(confirm="qwen"))
    await bench.kill()
    bench.cluster.unreachable = False
    bench.restart()
    assert (await bench.end(operation)).state == "aborted"
    assert bench.cluster.images() == ["engine:1"] * 4


async def test_a_paused_operation_waits_without_limit_and_goes_on(bench):
    operation = await bench.apply(await bench.plan("set-image", image="engine:2"))
    await asyncio.sleep(25)
    await bench.actions.tell(operation.id, "pause", VerbRequest())
    written = len(bench.cluster.writes)
    assert (await bench.actions.tell(operation.id, "pause", VerbRequest())).state == "paused"
    assert len(bench.cluster.writes) == written, "told twice is told once"
    await asyncio.sleep(1_000)
    paused = await bench.actions.operation(operation.id)
    assert (paused.state, paused.verbs) == ("paused", ["resume", "abort"])
    assert "engine:1" in bench.cluster.images()
    await bench.actions.tell(operation.id, "resume", VerbRequest())
    assert (await bench.end(operation)).state == "done"


async def test_an_undo_is_a_plan_back_and_marks_what_it_undid(bench):
    done = await bench.do("set-image", image="engine:2")
    plan = await bench.actions.undo(done.id, VerbRequest(by=ALICE))
    assert plan.action == "undo"
    assert {one.after for one in plan.diff} == {"engine:1"}
    assert (await bench.end(await bench.apply(plan))).state == "done"
    assert bench.cluster.images() == ["engine:1"] * 4
    assert (await bench.actions.operation(done.id)).state == "undone"


async def test_an_undo_to_a_revision_that_is_gone_is_refused_clearly(bench):
    done = await bench.do("set-image", image="engine:2")
    bench.cluster.world.objects["controllerrevisions"].pop(done.revision)
    with pytest.raises(StaleState, match=rf"{done.revision}.* is gone"):
        await bench.actions.undo(done.id, VerbRequest())


@pytest.mark.parametrize(
    ("asked", "pods", "risk"),
    [
        ({"role": "decode", "replicas": 3}, 5, "low"),
        ({"role": "decode", "replicas": 1}, 3, "medium"),
        ({"role": "decode", "replicas": 0}, 2, "high"),
        ({"replicas": 2}, 8, "low"),
    ],
    ids=["role_out", "role_in", "role_to_nothing", "groups_out"],
)
async def test_scaling_and_its_undo(bench, asked, pods, risk):
    plan = await bench.plan("scale", **asked)
    assert plan.risk == risk
    done = await bench.end(await bench.apply(plan))
    assert done.state == "done"
    assert len(bench.cluster.pods()) == pods
    assert (await bench.end(await bench.apply(await bench.actions.undo(done.id, VerbRequest())))).state == "done"
    assert len(bench.cluster.pods()) == 4


async def test_pause_and_resume_of_a_service_hold_an_operation_too(bench):
    operation = await bench.apply(await bench.plan("set-image", image="engine:2"))
    await asyncio.sleep(25)
    assert (await bench.do("pause")).state == "done"
    await asyncio.sleep(100)
    assert (await bench.actions.operation(operation.id)).state == "paused"
    resumed = await bench.apply(await bench.plan("resume"))
    assert (await bench.end(operation)).state == "done"
    assert (await bench.end(resumed)).state == "done"


async def test_a_deletion_ends_when_the_last_pod_is_gone(bench):
    plan = await bench.plan("delete")
    assert {one.role: one.worst for one in plan.capacity} == {"prefill": 0, "decode": 0}
    assert (await bench.end(await bench.apply(plan))).state == "done"
    assert bench.cluster.pods() == []
    with pytest.raises(NotFound):
        await bench.plan("delete")


async def test_somebody_else_s_change_in_the_middle_ends_the_operation_with_its_fields(bench):
    operation = await bench.apply(await bench.plan("set-image", image="engine:2"))
    await asyncio.sleep(10)
    await bench.cluster.patch("default", "qwen", {"spec": {"replicas": 3}})
    ended = await bench.end(operation)
    assert ended.state == "failed"
    assert "spec.replicas: 1 > 3" in ended.message


async def test_an_object_deleted_by_hand_ends_the_operation(bench):
    operation = await bench.apply(await bench.plan("set-image", image="engine:2"))
    await asyncio.sleep(10)
    bench.cluster.remove()
    ended = await bench.end(operation)
    assert (ended.state, ended.verbs) == ("failed", [])
    assert "was deleted" in ended.message


async def test_read_only_plans_and_changes_nothing(bench):
    await bench.kill()
    bench.read_only = True
    bench.restart()
    plan = await bench.plan("set-image", image="engine:2")
    with pytest.raises(Unauthorized, match="read-only"):
        await bench.apply(plan)


async def test_a_cluster_that_does_not_answer_is_said_so(bench):
    bench.cluster.unreachable = True
    with pytest.raises(Unavailable, match="does not answer"):
        await bench.plan("delete")


async def test_services_are_shown_with_their_roles_and_what_is_under_way(bench):
    operation = await bench.apply(await bench.plan("set-image", image="engine:2"))
    (view,) = (await bench.actions.services()).items
    assert (view.name, view.mode, view.operation) == ("qwen", "pooled", operation.id)
    assert [(role.name, role.wanted) for role in view.roles] == [("prefill", 2), ("decode", 2)]
