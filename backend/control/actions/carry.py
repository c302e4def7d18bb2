"""Carrying an applied plan through: send the change, follow the cluster, revert on abort. I/O only; `progress` judges.

What it knows stands in the record, which is kept after every change: a control that starts again goes on from there. Whoever changes a
record holds its lock.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable

import msgspec

from backend.api.actions import Manifest, Operation
from backend.control.actions import diff, objects, planning, progress
from backend.control.actions.admission import shown
from backend.control.actions.model import Cluster, ClusterState, OperationRecord, Store
from backend.core.clock import Clock
from backend.core.errors import StaleState, TransientError, WorkbenchError
from backend.core.supervise import Supervisor

log = logging.getLogger(__name__)

RETRY_S = 1.0
LONGEST_RETRY_S = 10.0
REVERT_TRIES = 5
"""The controller writes the same object; each try reads it again."""


class Carrier:
    """One supervised task an operation. `publish` tells whoever watches."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        tasks: Supervisor,
        *,
        clock: Clock,
        limits: progress.Limits,
        publish: Callable[[Operation], None],
    ) -> None:
        self._cluster, self._store, self._tasks = cluster, store, tasks
        self._clock, self._limits, self._publish = clock, limits, publish
        self.records: dict[str, OperationRecord] = {}
        """Operations under way."""
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def lock(self, operation_id: str) -> asyncio.Lock:
        return self._locks[operation_id]

    async def take_up(self, record: OperationRecord) -> None:
        """Begin, or begin again, to carry `record`. Only without a step of it under way: hold its lock, or be the first."""
        name = _task(record)
        await self._tasks.cancel(name)
        self.records[record.operation.id] = record
        self._tasks.start(name, lambda: self._carry(record))

    async def send(self, record: OperationRecord, state: ClusterState) -> None:
        """Make the change, on the very state that was checked. Raises what the cluster answers."""
        stored, operation = record.stored, record.operation
        if stored.after is None:
            await self._cluster.delete(operation.namespace, operation.service)
        elif stored.patch is None:
            _answered(record, await self._cluster.create(stored.after))
        else:
            version = objects.metadata(state.service or {}).get("resourceVersion", "")
            patch = {**stored.patch, "metadata": {"resourceVersion": version}}
            _answered(record, await self._cluster.patch(operation.namespace, operation.service, patch))
        await self.sent(record)

    async def sent(self, record: OperationRecord) -> None:
        record.sent, record.progress_at = True, self._clock.now()
        record.operation.state, record.operation.message = "running", "The change was sent."
        await self.keep(record)

    async def keep(self, record: OperationRecord) -> None:
        """Keep the record, tell the watchers; an ended operation also ends its audit."""
        operation = record.operation
        operation.updated_at = self._clock.now()
        operation.verbs = progress.verbs(record)
        if not operation.active and not operation.ended_at:
            operation.ended_at = operation.updated_at
        await self._store.put(record)
        self._publish(operation)
        if not operation.active:
            await self._end_audit(record)
            self.records.pop(operation.id, None)

    async def fail(self, record: OperationRecord, error: WorkbenchError) -> None:
        record.operation.state, record.operation.message = "failed", str(error)
        await self.keep(record)

    async def _carry(self, record: OperationRecord) -> None:
        wait = RETRY_S
        while record.operation.active:
            # Neither a control that was away nor a cluster that was says anything about the rollout.
            record.progress_at = self._clock.now()
            try:
                async with self.lock(record.operation.id):
                    await self._prepare(record)
                async for state in self._cluster.follow(record.operation.namespace, record.operation.service):
                    wait = RETRY_S
                    async with self.lock(record.operation.id):
                        if await self._step(record, state):
                            return
            except TransientError as error:
                log.warning("operation %s waits: %s", record.operation.id, error.message)
                record.operation.message = error.message
                self._publish(record.operation)
            await asyncio.sleep(wait)
            wait = min(wait * 2, LONGEST_RETRY_S)

    async def _prepare(self, record: OperationRecord) -> None:
        """What must have happened before there is anything to watch."""
        try:
            if record.operation.active and not record.sent:
                await self._send_again(record)
            if record.operation.state == "aborting" and not record.reverted:
                await self._revert(record)
        except TransientError:
            raise
        except WorkbenchError as error:
            await self.fail(record, error)

    async def _send_again(self, record: OperationRecord) -> None:
        """We ended, or lost the cluster, around the moment of sending: look whether it happened, else do it as long as nothing moved."""
        stored = record.stored
        state = await self._cluster.observe(record.operation.namespace, record.operation.service)
        if _is_there(record, state):
            if state.service is not None:
                _answered(record, state.service)
            await self.sent(record)
            return
        moved = planning.moved(stored.fingerprint, planning.fingerprint(record.operation.action, state))
        if moved:
            what = "; ".join(f"{one.path}: {shown(one.before)} > {shown(one.after)}" for one in moved[:3])
            raise StaleState(f"The change was never sent, and the service has changed meanwhile: {what}.", fix="Plan again.")
        await self.send(record, state)

    async def _revert(self, record: OperationRecord) -> None:
        """Stop first, then take our change back; a pause that stood before us stands again."""
        operation, stored = record.operation, record.stored
        before, after = objects.spec(stored.before or {}), objects.spec(stored.after or {})
        await self._cluster.patch(operation.namespace, operation.service, {"spec": {"paused": True}})
        for last_try in (*[False] * (REVERT_TRIES - 1), True):
            state = await self._cluster.observe(operation.namespace, operation.service)
            if state.service is None:
                raise StaleState(f"{operation.namespace}/{operation.service} was deleted meanwhile.", fix="There is nothing to revert.")
            version = objects.metadata(state.service).get("resourceVersion", "")
            back = {**diff.merge_patch(after, before), "paused": record.was_paused}
            try:
                answer = await self._cluster.patch(
                    operation.namespace, operation.service, {"metadata": {"resourceVersion": version}, "spec": back}
                )
                break
            except StaleState:
                if last_try:
                    raise
        _answered(record, answer)
        record.reverted = True
        record.best, record.progress_at = 0, self._clock.now()
        operation.message = "The spec is as it was before; pods that were replaced are replaced back."
        await self.keep(record)

    async def _step(self, record: OperationRecord, state: ClusterState) -> bool:
        """Take one look; True when the operation has ended."""
        operation = record.operation
        if not operation.active:
            return True
        if state.service is None and operation.action != "delete":
            # A copy of the cluster may lag behind our own creation.
            state = await self._cluster.observe(operation.namespace, operation.service)
        if state.service is not None and objects.generation(state.service) < record.generation:
            return False
        now = self._clock.now()
        judged = progress.judge(record, state, now, self._limits)
        moves = judged.progress > record.best
        seen = (operation.state, operation.steps_done, operation.message)
        if moves or judged.state == "paused":
            record.best, record.progress_at = max(record.best, judged.progress), now
        record.gone = judged.gone
        operation.state, operation.message = judged.state, judged.message
        operation.steps_done = max(operation.steps_done, judged.steps_done)
        if moves or (operation.state, operation.steps_done, operation.message) != seen:
            if operation.state == "done" and record.stored.undoes:
                await self._mark_undone(record.stored.undoes)
            await self.keep(record)
        return not operation.active

    async def _mark_undone(self, operation_id: str) -> None:
        earlier = await self._store.operation(operation_id)
        if earlier is not None:
            earlier.operation.state = "undone"
            await self.keep(earlier)

    async def _end_audit(self, record: OperationRecord) -> None:
        operation = record.operation
        outcome = "failed" if operation.state == "failed" else "done"
        for entry in (record.audit, record.abort_audit):
            if entry is not None and not entry.ended_at:
                result = operation.message if operation.state != "aborted" or entry is record.abort_audit else "Aborted."
                ended = msgspec.structs.replace(entry, outcome=outcome, message=result, ended_at=operation.ended_at)
                await self._store.audit(ended)
                entry.ended_at = operation.ended_at
        await self._store.put(record)


def _answered(record: OperationRecord, service: Manifest) -> None:
    record.spec, record.generation = objects.spec(service), objects.generation(service)


def _is_there(record: OperationRecord, state: ClusterState) -> bool:
    """Whether the change is in the cluster already."""
    after = record.stored.after
    if after is None:
        return state.service is None or objects.deleting(state.service)
    if state.service is None:
        return False
    found = objects.spec(state.service)
    return bool(diff.merged(found, objects.spec(record.stored.patch or after)) == found)


def _task(record: OperationRecord) -> str:
    return f"operation:{record.operation.id}"
