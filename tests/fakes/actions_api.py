"""The Action part of a made-up control API: one service, plans of one step, operations that go on by one step a look."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from backend.api import routes
from backend.api.actions import (
    ActionPlan,
    ApplyRequest,
    AuditPage,
    AuditRecord,
    FieldChange,
    Operation,
    OperationPage,
    PairRatio,
    PlanRequest,
    PlanStep,
    RoleCapacity,
    RoleView,
    ServicePage,
    ServiceView,
    VerbRequest,
)

AT = 1_763_800_000.0
STEPS = 3


class FakeActions:
    """What happened is in `applied`, `told`, `planned` and `audit`. `ends_as` is the state that operations come to."""

    def __init__(self, service: str = "qwen") -> None:
        self.service = service
        self.away = ""
        """When set, there is no cluster, for this reason."""
        self.planned: list[PlanRequest] = []
        self.applied: list[ApplyRequest] = []
        self.told: list[tuple[str, VerbRequest]] = []
        self.plans: dict[str, ActionPlan] = {}
        self.operations: dict[str, Operation] = {}
        self.ends_as = "done"
        self.holds = False
        """Operations do not go on."""
        self.looks = 0

    def register(self, app: web.Application) -> None:
        get, post = app.router.add_get, app.router.add_post
        get(routes.SERVICES, self._services)
        get(routes.SERVICE, self._service)
        post(routes.PLANS, self._plan)
        get(routes.PLAN, self._get_plan)
        post(routes.APPLY, self._apply)
        get(routes.OPERATIONS, self._list)
        get(routes.OPERATION, self._look)
        for verb, path in (("pause", routes.OPERATION_PAUSE), ("resume", routes.OPERATION_RESUME), ("abort", routes.OPERATION_ABORT)):
            post(path, self._verb(verb))
        post(routes.OPERATION_UNDO, self._undo)
        get(routes.AUDIT, self._audit)

    def make_plan(self, asked: PlanRequest) -> ActionPlan:
        risky = asked.action in ("delete", "undo", "set-image")
        number = len(self.plans) + 1
        self.plans[f"plan-{number}"] = ActionPlan(
            id=f"plan-{number}",
            hash="h",
            action=asked.action,
            namespace=asked.namespace,
            service=asked.service,
            parameters=asked.parameters,
            made_at=AT,
            expires_at=AT + 300,
            risk="medium" if risky else "low",
            confirm=asked.service if risky else "",
            diff=[FieldChange(path="spec.replicas", before=1, after=2), FieldChange(path="spec.<b>", before="x", after={"a": 1})],
            steps=[PlanStep(at_s=0.0, pods_out={"decode": 1}, pods_in={"decode": 1}, ready={"decode": 1}, reason="outdated")],
            capacity=[RoleCapacity(role="decode", before=2, worst=1, after=2)],
            pair_ratio=PairRatio(before=1.0, lowest=1.0, highest=2.0, after=1.0),
            warm_tokens_lost=1234,
            seconds=90.0,
            notes=["A note."],
        )
        return self.plans[f"plan-{number}"]

    async def _services(self, _: web.Request) -> web.Response:
        return self._unless_away(ServicePage(items=[_view(self.service)]))

    async def _service(self, request: web.Request) -> web.Response:
        return _json(_view(self.service)) if request.match_info["name"] == self.service else _error(404, "NotFound", "No StormService.")

    async def _plan(self, request: web.Request) -> web.Response:
        self.planned.append(msgspec.json.decode(await request.read(), type=PlanRequest))
        if self.planned[-1].parameters.image == "unknown":
            return _error(400, "InvalidRequest", "No image is named 'unknown'.")
        return _json(self.make_plan(self.planned[-1]))

    async def _get_plan(self, request: web.Request) -> web.Response:
        found = self.plans.get(request.match_info["id"])
        return _json(found) if found else _error(404, "NotFound", "No plan.")

    async def _apply(self, request: web.Request) -> web.Response:
        plan, asked = self.plans[request.match_info["id"]], msgspec.json.decode(await request.read(), type=ApplyRequest)
        if asked.confirm != plan.confirm:
            return _error(400, "InvalidRequest", f"This plan must be confirmed by {plan.confirm!r}.")
        self.applied.append(asked)
        return _json(self.begin(plan, asked))

    def begin(self, plan: ActionPlan, asked: ApplyRequest) -> Operation:
        """The operation of a plan; the same one for the same plan."""
        operation = Operation(
            id=f"op-{plan.id}",
            plan_id=plan.id,
            action=plan.action,
            namespace=plan.namespace,
            service=plan.service,
            state="running",
            steps_total=STEPS,
            summary=plan.action,
            verbs=["pause", "abort"],
            started_at=AT,
            updated_at=AT,
            reason=asked.reason,
            by=asked.by,
        )
        return self.operations.setdefault(operation.id, operation)

    async def _list(self, _: web.Request) -> web.Response:
        return self._unless_away(OperationPage(items=list(reversed(self.operations.values()))))

    async def _look(self, request: web.Request) -> web.Response:
        operation = self.operations.get(request.match_info["id"])
        if operation is None:
            return _error(404, "NotFound", "No operation.")
        self.looks += 1
        if not self.holds:
            self.advance(operation)
        return _json(operation)

    def advance(self, operation: Operation) -> None:
        """One step on, unless it has ended."""
        if not operation.active:
            return
        operation.steps_done += 1
        if operation.steps_done >= STEPS:
            operation.state = "aborted" if operation.state == "aborting" else self.ends_as  # type: ignore[assignment]
            operation.message, operation.verbs = "It ended so.", ["undo"]

    def _verb(self, verb: str) -> Any:
        states = {"pause": "paused", "resume": "running", "abort": "aborting"}

        async def tell(request: web.Request) -> web.Response:
            self.told.append((verb, msgspec.json.decode(await request.read(), type=VerbRequest)))
            operation = self.operations[request.match_info["id"]]
            operation.state = states[verb]  # type: ignore[assignment]
            operation.verbs = ["resume", "abort"] if verb == "pause" else ["pause", "abort"] if verb == "resume" else []
            return _json(operation)

        return tell

    async def _undo(self, request: web.Request) -> web.Response:
        operation = self.operations[request.match_info["id"]]
        return _json(self.make_plan(PlanRequest(action="undo", namespace=operation.namespace, service=operation.service)))

    async def _audit(self, request: web.Request) -> web.Response:
        items = [
            AuditRecord(id="a", at=AT, user="alice", source="cli", action="scale", target="default/qwen", outcome="done", reason="<why>")
        ]
        return self._unless_away(AuditPage(items=items, next=None if request.query.get("before") else "1-0"))

    def _unless_away(self, page: object) -> web.Response:
        return _error(503, "Unavailable", self.away) if self.away else _json(page)


def _view(name: str) -> ServiceView:
    roles = [RoleView(name="prefill", images=["engine:1"], wanted=2, ready=2, updated=2)]
    roles.append(RoleView(name="decode", images=["engine:1"], wanted=2, ready=1, updated=1))
    labelled = [{"name": role.name, "template": {"metadata": {"labels": {"model.aibrix.ai/name": "qwen3-8b"}}}} for role in roles]
    manifest = {"spec": {"template": {"spec": {"roles": labelled}}}}
    return ServiceView(namespace="default", name=name, mode="pooled", replicas=1, roles=roles, revision="qwen-abc", manifest=manifest)


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _error(status: int, kind: str, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": kind, "fix": "Do something about it."}}, status=status)
