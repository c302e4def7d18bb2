"""The reconcilers: list, call the planner, act, write the status. No decision is made here."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from backend.core.clock import Clock
from backend.core.errors import NotFound, WorkbenchError

from . import names
from .actions import Create, Delete, Object, Observed, Plan, RoleSetPlan
from .events import Recorder
from .execute import RESOURCES, Client, Executor, Outcome
from .groups import owned_groups
from .merge import merge_diff
from .ownwrites import View
from .planner import plan_service
from .pods import by_owner
from .rolesetplan import plan_role_set

log = logging.getLogger(__name__)

PASSES = 8
"""Plans made in a row before the status is written: what was just done is seen at once, so one write tells it all."""


class Done(msgspec.Struct, frozen=True):
    """What a reconciliation asks for: when to look again without an event, whether something failed, and RoleSets that need a look now.

    `changed`: something was written, so whoever counts this object should count again.
    """

    check_in_s: float | None = None
    failed: bool = False
    changed: bool = False
    role_sets: tuple[str, ...] = ()


class Reconciler:
    """One pass over a StormService or a RoleSet. Passes of one object never overlap (the work queue sees to it)."""

    def __init__(self, client: Client, view: View, clock: Clock) -> None:
        self.client, self.view, self.clock = client, view, clock
        self.executor = Executor(client, view)
        self.recorder = Recorder(client, clock)
        self._errors: dict[tuple[str, str, str], str] = {}
        self._unsure: set[tuple[str, str, str]] = set()

    async def reconcile_service(self, namespace: str, name: str) -> Done:
        """Bring one StormService on: its revisions, headless Service, RoleSets and status."""
        key = (names.STORM_SERVICES, namespace, name)
        await self._make_sure(key, names.ROLE_SETS, f"{names.SERVICE_LABEL}={name}")
        touched: set[str] = set()
        outcome = Outcome()
        for _ in range(PASSES):
            service = self.view.get(*key)
            if service is None:
                self._forget(key)
                return Done(role_sets=tuple(touched))
            result = self._plan_service(service)
            if not result.actions and self._errors.pop(key, ""):
                result = self._plan_service(service)
            if not result.actions or outcome.failed:
                break
            outcome = await self.executor.run(result.actions)
            touched |= {action.name for action in outcome.done if not isinstance(action, Create) and action.resource == names.ROLE_SETS}
            touched |= {item["metadata"]["name"] for item in outcome.created if item.get("kind") == names.ROLE_SET_KIND}
            self._note(key, outcome)
            await self._tell(service, outcome)
        for problem in result.problems:
            await self.recorder.tell(service, "Warning", "InvalidSpec", str(problem))
        for warning in result.warnings:
            await self.recorder.tell(service, "Warning", "FieldWithoutEffect", str(warning))
        written = await self._write_status(key, service, result.status)
        return Done(self._check_in(result.next_check), written is None or bool(outcome.failed), role_sets=tuple(touched))

    async def reconcile_role_set(self, namespace: str, name: str) -> Done:
        """Bring one RoleSet on: its pods and its status."""
        key = (names.ROLE_SETS, namespace, name)
        await self._make_sure(key, names.PODS, f"{names.ROLE_SET_LABEL}={name}")
        outcome, changed = Outcome(), False
        for _ in range(PASSES):
            role_set = self.view.get(*key)
            if role_set is None:
                self._forget(key)
                return Done(changed=changed)
            result = self._plan_role_set(role_set)
            if not result.actions and self._errors.pop(key, ""):
                result = self._plan_role_set(role_set)
            if not result.actions or outcome.failed:
                break
            outcome = await self.executor.run(result.actions)
            changed = True
            self._note(key, outcome)
            await self._tell(role_set, outcome)
        for problem in result.problems:
            await self.recorder.tell(role_set, "Warning", "InvalidSpec", str(problem))
        written = await self._write_status(key, role_set, result.status)
        return Done(self._check_in(result.next_check), written is None or bool(outcome.failed), changed or written is not False)

    def _plan_service(self, service: dict[str, Any]) -> Plan:
        meta = service["metadata"]
        namespace, name, uid = meta.get("namespace", ""), meta["name"], meta["uid"]
        role_sets = self.view.owned(names.ROLE_SETS, uid)
        pods = [pod for item in role_sets for pod in self.view.owned(names.PODS, item["metadata"]["uid"])]
        observed = Observed(
            headless=self.view.get(names.SERVICES, namespace, name),
            errors={key[2]: error for key, error in self._errors.items() if key[1] == namespace},
            taken=frozenset(self.executor.taken),
        )
        groups = owned_groups(service, role_sets, by_owner(pods, namespace))
        return plan_service(service, groups, self.view.owned(names.CONTROLLER_REVISIONS, uid), self.clock.now(), observed)

    def _plan_role_set(self, role_set: dict[str, Any]) -> RoleSetPlan:
        meta = role_set["metadata"]
        error = self._errors.get((names.ROLE_SETS, meta.get("namespace", ""), meta["name"]))
        observed = Observed(errors={meta["name"]: error} if error else {})
        pods = self.view.owned(names.PODS, meta["uid"])
        return plan_role_set(role_set, pods, self.clock.now(), paused=self._paused(role_set), observed=observed)

    def _paused(self, role_set: Object) -> bool:
        """Whether the StormService that controls this RoleSet is paused."""
        name = (role_set["metadata"].get("labels") or {}).get(names.SERVICE_LABEL, "")
        service = self.view.get(names.STORM_SERVICES, role_set["metadata"].get("namespace", ""), name) if name else None
        if service is None or names.controller_uid(role_set) != service["metadata"].get("uid"):
            return False
        return bool((service.get("spec") or {}).get("paused"))

    def _note(self, key: tuple[str, str, str], outcome: Outcome) -> None:
        if outcome.error:
            self._errors[key] = outcome.error
        else:
            self._errors.pop(key, None)
        if outcome.unsure:
            self._unsure.add(key)

    def _forget(self, key: tuple[str, str, str]) -> None:
        self._errors.pop(key, None)
        self._unsure.discard(key)

    async def _make_sure(self, key: tuple[str, str, str], children: str, labels: str) -> None:
        """After a create whose answer got lost, and for writes which the watch never told: look directly."""
        now = asyncio.get_running_loop().time()
        for overdue in self.view.writes.overdue(now):
            resource, namespace, name = overdue
            try:
                item: dict[str, Any] | None = await self.client.get(RESOURCES[resource], namespace, name)
            except NotFound:
                item = None
            self.view.writes.settle(overdue, item, self.view.caches[resource].get(namespace, name), now)
        if key in self._unsure:
            found = await self.client.list(RESOURCES[children], key[1], labels=labels)
            for item in found.items:
                meta = item["metadata"]
                if self.view.caches[children].get(meta.get("namespace", ""), meta["name"]) is None:
                    self.view.wrote(children, item, now)
            self._unsure.discard(key)

    async def _write_status(self, key: tuple[str, str, str], item: dict[str, Any], status: dict[str, Any]) -> bool | None:
        """Write what differs; the plan gives the old status back when only times would change. None when the write failed."""
        old = item.get("status") or {}
        if status == old:
            return False
        resource, namespace, name = key
        seen = self.view.seen_uid(*key)
        try:
            written = await self.client.patch(
                RESOURCES[resource], namespace, name, {"status": merge_diff(old, status)}, subresource="status"
            )
        except NotFound:
            return False
        except WorkbenchError as error:
            log.warning("status of %s %s/%s not written: %s", resource, namespace, name, error)
            return None
        self.view.wrote(resource, written, asyncio.get_running_loop().time(), seen_uid=seen)
        return True

    async def _tell(self, about: dict[str, Any], outcome: Outcome) -> None:
        """Events for what failed and for RoleSets that come and go; pods are seen by themselves."""
        for action, error in outcome.failed:
            await self.recorder.tell(
                about, "Warning", f"Failed{type(action).__name__}", f"{action.resource} {action.name}: {_first_line(error)}"
            )
        for action in outcome.done:
            if action.resource == names.ROLE_SETS and isinstance(action, Delete):
                await self.recorder.tell(about, "Normal", "RoleSetDeleted", f"{action.name}: {action.reason}")
        for item in outcome.created:
            if item.get("kind") == names.ROLE_SET_KIND:
                await self.recorder.tell(about, "Normal", "RoleSetCreated", item["metadata"]["name"])

    def _check_in(self, at: float | None) -> float | None:
        return None if at is None else max(0.0, at - self.clock.now())


def _first_line(error: WorkbenchError) -> str:
    return str(error).split("\n", 1)[0]
