"""The pipeline's front: plan, apply, tell operations what to do, list. Reads the state, lets the pure parts decide, keeps and hands on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

import msgspec

from backend.api.actions import (
    ActionPlan,
    Actor,
    ApplyRequest,
    AuditPage,
    AuditRecord,
    Manifest,
    Operation,
    OperationPage,
    OperationState,
    Parameters,
    PlanRequest,
    ServicePage,
    ServiceView,
    Verb,
    VerbRequest,
)
from backend.control.actions import admission, changes, diff, objects, planning, progress, views
from backend.control.actions.carry import RETRY_S, Carrier
from backend.control.actions.model import Change, Cluster, ClusterState, Facts, OperationRecord, Preview, Store, StoredPlan
from backend.core.clock import Clock
from backend.core.errors import InvalidRequest, NotFound, StaleState, TransientError, WorkbenchError
from backend.core.ids import new_id
from backend.core.supervise import Supervisor

log = logging.getLogger(__name__)

_TOLD: Mapping[Verb, OperationState] = {"abort": "aborting", "pause": "paused", "resume": "running"}
"""The state in which a verb has been heard already: telling it again does nothing."""

Cached = Callable[[], Mapping[str, int] | None]
"""Tokens that each pod has cached now; None while unknown."""


class Actions:
    """`start` picks up operations that an earlier process had under way. `publish` gets every change of an operation."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        preview: Preview,
        tasks: Supervisor,
        *,
        clock: Clock,
        publish: Callable[[Operation], None] = lambda _: None,
        cached: Cached = lambda: None,
        limits: progress.Limits | None = None,
        read_only: bool = False,
    ) -> None:
        self._cluster, self._store, self._preview, self._tasks = cluster, store, preview, tasks
        self._clock, self._cached, self._read_only = clock, cached, read_only
        self._carrier = Carrier(cluster, store, tasks, clock=clock, limits=limits or progress.Limits(), publish=publish)

    def start(self) -> None:
        self._tasks.start("operations", self._pick_up)

    async def plan(self, request: PlanRequest) -> ActionPlan:
        """What `request` would change and cost; nothing happens. Raises InvalidRequest with the field's path, NotFound, StaleState."""
        if request.action == "undo":
            return await self.undo(request.parameters.operation, VerbRequest(reason=request.reason, by=request.by))
        state = await self._cluster.observe(request.namespace, _service_name(request))
        return (await self._make(request, state, changes.change(request, state))).plan

    async def get_plan(self, plan_id: str) -> ActionPlan:
        return (await self._stored(plan_id)).plan

    async def apply(self, plan_id: str, request: ApplyRequest) -> Operation:
        """Apply a plan as it was shown. Raises StaleState (expired, stale, applied already), InvalidRequest (confirmation, reason)."""
        admission.check_writable(self._read_only)
        stored = await self._stored(plan_id)
        earlier = await self._store.applied(plan_id)
        if earlier is not None:
            admission.check_repeat(earlier, request)
            return earlier.operation
        try:
            admission.check_apply(stored.plan, request, self._clock.now())
            state = await self._cluster.observe(stored.plan.namespace, stored.plan.service)
            moved = planning.moved(stored.fingerprint, planning.fingerprint(stored.plan.action, state))
            active = [record.operation for record in await self._store.active()]
            admission.check_fresh(stored.plan, moved, active)
        except (StaleState, InvalidRequest) as error:
            await self._refused(stored.plan, request, error)
            raise
        record = self._record(stored, request)
        async with self._carrier.lock(record.operation.id):
            begun = await self._store.begin(record)
            if begun.operation.id != record.operation.id:
                admission.check_repeat(begun, request)
                return begun.operation
            try:
                await self._carrier.send(record, state)
            except TransientError as error:
                # Nobody knows whether it arrived: the carrier looks, and sends it if not.
                record.operation.message = error.message
            except WorkbenchError as error:
                await self._carrier.fail(record, error)
                raise
            await self._carrier.take_up(record)
        return record.operation

    async def tell(self, operation_id: str, verb: Verb, request: VerbRequest) -> Operation:
        """Pause, resume or abort an operation. Raises NotFound, StaleState where it cannot be told so, InvalidRequest."""
        admission.check_writable(self._read_only)
        await self._record_of(operation_id)
        async with self._carrier.lock(operation_id):
            record = await self._record_of(operation_id)
            if record.operation.state == _TOLD.get(verb):
                return record.operation
            admission.check_verb(record, verb)
            if verb == "abort":
                admission.check_abort(record, request.confirm)
            entry = self._audit(verb, record.stored.plan, request.by, request.reason, record.operation.id)
            await self._store.audit(entry)
            if verb == "abort":
                await self._begin_abort(record, entry)
            else:
                await self._pause(record, entry, verb == "pause")
        return record.operation

    async def undo(self, operation_id: str, request: VerbRequest) -> ActionPlan:
        """The plan of the way back; it is confirmed and applied as any other. Raises StaleState when the revision is gone."""
        record = await self._record_of(operation_id)
        admission.check_verb(record, "undo")
        operation, stored = record.operation, record.stored
        state = await self._cluster.observe(operation.namespace, operation.service)
        before, after = objects.spec(stored.before or {}), objects.spec(stored.after or {})
        revision = stored.plan.revision if before.get("template") != after.get("template") else ""
        replicas = objects.replicas(stored.before or {}) if before.get("replicas") != after.get("replicas") else None
        asked = PlanRequest(
            action="undo",
            namespace=operation.namespace,
            service=operation.service,
            parameters=Parameters(operation=operation_id),
            reason=request.reason,
            by=request.by,
        )
        return (await self._make(asked, state, changes.go_back(state, revision, replicas), undoes=operation_id)).plan

    async def operation(self, operation_id: str) -> Operation:
        return (await self._record_of(operation_id)).operation

    async def operations(self, *, limit: int, service: str = "") -> OperationPage:
        return await self._store.operations(limit=limit, service=service)

    async def audit(self, *, limit: int, before: str = "") -> AuditPage:
        return await self._store.audit_page(limit=limit, before=before)

    async def services(self) -> ServicePage:
        return ServicePage(items=[self._view(state) for state in await self._cluster.overview() if state.service is not None])

    async def service(self, namespace: str, name: str) -> ServiceView:
        state = await self._cluster.observe(namespace, name)
        if state.service is None:
            raise NotFound(f"No StormService {namespace}/{name}.", fix="GET /api/v1/services lists them.")
        return msgspec.structs.replace(self._view(state), manifest=state.service)

    def _view(self, state: ClusterState) -> ServiceView:
        at_work = [one.operation for one in self._carrier.records.values()]
        mine = [one.id for one in at_work if (one.namespace, one.service) == (state.namespace, state.name)]
        return views.service_view(state, operation=mine[0] if mine else "")

    async def _make(self, request: PlanRequest, state: ClusterState, change: Change, *, undoes: str = "") -> StoredPlan:
        change = await self._tried(state, change)
        facts = Facts(self._cached(), objects.start_seconds(state.pods))
        now = self._clock.now()
        forecast = await asyncio.to_thread(self._preview, state, change.after, facts.starts, now)
        stored = planning.make(request, state, change, forecast, facts, now=now, plan_id=new_id("plan-"), undoes=undoes)
        await self._store.put_plan(stored)
        return stored

    async def _tried(self, state: ClusterState, change: Change) -> Change:
        """The change as the API server would take it: its defaults filled in, its refusal now and not at apply."""
        if change.after is None:
            return change
        if change.patch is None:
            answer = await self._cluster.create(change.after, dry_run=True)
        else:
            answer = await self._cluster.patch(state.namespace, state.name, change.patch, dry_run=True)
        _check_kept(change.after, answer)
        after = {**change.after, "spec": objects.spec(answer)}
        return Change(change.before, after, change.patch, change.notes)

    async def _begin_abort(self, record: OperationRecord, entry: AuditRecord) -> None:
        record.operation.state, record.operation.message = "aborting", "Stopping the rollout, then reverting the spec."
        record.operation.ended_at = 0.0
        record.reverted, record.abort_audit = False, entry
        await self._carrier.keep(record)
        await self._carrier.take_up(record)

    async def _pause(self, record: OperationRecord, entry: AuditRecord, wanted: bool) -> None:
        operation = record.operation
        try:
            await self._cluster.patch(operation.namespace, operation.service, {"spec": {"paused": wanted}})
        except WorkbenchError as error:
            await self._store.audit(_ended(entry, "failed", str(error), self._clock.now()))
            raise
        operation.state, operation.message = ("paused", "Paused.") if wanted else ("running", "Goes on.")
        record.progress_at = self._clock.now()
        await self._carrier.keep(record)
        await self._store.audit(_ended(entry, "done", operation.message, self._clock.now()))

    async def _pick_up(self) -> None:
        """Go on with what an earlier process had under way."""
        while True:
            try:
                for record in await self._store.active():
                    if record.operation.id not in self._carrier.records:
                        log.info("operation %s goes on (%s)", record.operation.id, record.operation.state)
                        await self._carrier.take_up(record)
                return
            except TransientError as error:
                log.warning("operations are not picked up yet: %s", error.message)
            await asyncio.sleep(RETRY_S)

    async def _stored(self, plan_id: str) -> StoredPlan:
        stored = await self._store.plan(plan_id)
        if stored is None:
            raise NotFound(f"No plan {plan_id}.", fix="Plans are kept for an hour; plan again.")
        return stored

    async def _record_of(self, operation_id: str) -> OperationRecord:
        record = self._carrier.records.get(operation_id) or await self._store.operation(operation_id)
        if record is None:
            raise NotFound(f"No operation {operation_id}.", fix="GET /api/v1/operations lists the newest ones.")
        return record

    def _record(self, stored: StoredPlan, request: ApplyRequest) -> OperationRecord:
        plan, now = stored.plan, self._clock.now()
        reason = request.reason.strip() or plan.reason.strip()
        operation = Operation(
            id=new_id("op-"),
            plan_id=plan.id,
            action=plan.action,
            namespace=plan.namespace,
            service=plan.service,
            steps_total=len(plan.steps),
            summary=views.summary(plan),
            revision=plan.revision,
            started_at=now,
            updated_at=now,
            risk=plan.risk,
            reason=reason,
            by=request.by,
            undoes=stored.undoes,
        )
        audit = self._audit(plan.action, plan, request.by, reason, operation.id)
        paused = bool(objects.spec(stored.before or {}).get("paused"))
        return OperationRecord(operation=operation, stored=stored, audit=audit, key=request.key, was_paused=paused, progress_at=now)

    def _audit(self, action: str, plan: ActionPlan, by: Actor, reason: str, operation_id: str = "") -> AuditRecord:
        return AuditRecord(
            id=new_id("audit-"),
            at=self._clock.now(),
            user=by.user,
            source=by.source,
            action=action,
            target=f"{plan.namespace}/{plan.service}",
            plan_id=plan.id,
            plan_hash=plan.hash,
            operation_id=operation_id,
            reason=reason,
        )

    async def _refused(self, plan: ActionPlan, request: ApplyRequest, error: WorkbenchError) -> None:
        entry = self._audit(plan.action, plan, request.by, request.reason)
        await self._store.audit(entry)
        await self._store.audit(_ended(entry, "refused", error.message, self._clock.now()))


def _ended(entry: AuditRecord, outcome: str, message: str, now: float) -> AuditRecord:
    return msgspec.structs.replace(entry, outcome=outcome, message=message, ended_at=now)


def _service_name(request: PlanRequest) -> str:
    """The service asked about; a manifest names its own. Raises InvalidRequest."""
    manifest = request.parameters.manifest
    if request.action == "create" and manifest is not None:
        changes.check(manifest)
        about = objects.metadata(manifest)
        if request.service and request.service != about["name"]:
            raise InvalidRequest(f"metadata.name is {about['name']!r}, the request says {request.service!r}.", param="metadata.name")
        return str(about["name"])
    if not request.service:
        raise InvalidRequest("`service` is empty.", param="service", fix="Name the StormService.")
    return request.service


def _check_kept(asked: Manifest, answer: Manifest) -> None:
    """Raises InvalidRequest for fields that the server would drop: a misspelt field must not vanish in silence."""
    dropped = [one.path for one in diff.changes(objects.spec(asked), objects.spec(answer), "spec") if one.after is None and one.before]
    if dropped:
        raise InvalidRequest(
            f"{dropped[0]} is no field that the cluster's definition of StormService knows.",
            param=dropped[0],
            fix="Look for a spelling mistake, or update the CRDs.",
        )
