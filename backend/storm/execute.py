"""Carrying out a plan's actions, in order, against a Kubernetes API server.

Actions of one role (or of the RoleSets) that stand side by side run together, in batches of 1, 2, 4 ... so that a refusal costs one request
and not a hundred. A failure ends its own run of actions and leaves the others alone: one role's error never starves another.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec

from backend.core.errors import NotFound, TransientError, WorkbenchError
from backend.kube.errors import ApiError, ClusterUnreachable
from backend.kube.resources import CONTROLLER_REVISIONS, PODS, ROLE_SETS, SERVICES, STORM_SERVICES, Resource

from . import names
from .actions import Action, Create, Delete, Patch
from .ownwrites import View

log = logging.getLogger(__name__)

RESOURCES: Mapping[str, Resource] = {
    names.STORM_SERVICES: STORM_SERVICES,
    names.ROLE_SETS: ROLE_SETS,
    names.PODS: PODS,
    names.SERVICES: SERVICES,
    names.CONTROLLER_REVISIONS: CONTROLLER_REVISIONS,
}
PREREQUISITES = (names.STORM_SERVICES, names.CONTROLLER_REVISIONS)
"""What follows an action on these relies on it: without finalizer or revision nothing is created."""
LARGEST_BATCH = 16


class Client(Protocol):
    """The calls of an API server's client that are used."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any]: ...

    async def list(self, resource: Resource, namespace: str | None = None, *, labels: str = "") -> Any: ...

    async def create(self, resource: Resource, namespace: str | None, body: Mapping[str, Any]) -> dict[str, Any]: ...

    async def patch(
        self, resource: Resource, namespace: str | None, name: str, patch: Mapping[str, Any], *, subresource: str = ""
    ) -> dict[str, Any]: ...

    async def delete(
        self, resource: Resource, namespace: str | None, name: str, *, grace_s: int | None = None, uid: str | None = None
    ) -> dict[str, Any]: ...


class Outcome(msgspec.Struct):
    """What became of a plan's actions."""

    done: list[Action] = msgspec.field(default_factory=list)
    created: list[dict[str, Any]] = msgspec.field(default_factory=list)
    failed: list[tuple[Action, WorkbenchError]] = msgspec.field(default_factory=list)
    unsure: bool = False
    """A create may have happened although its answer never came: look directly before the next plan."""

    @property
    def error(self) -> str:
        """The first failure that is worth telling; a conflict only means that the next pass sees something newer."""
        return next((_told(error) for _, error in self.failed if not (isinstance(error, ApiError) and error.conflict)), "")


def _told(error: WorkbenchError) -> str:
    return str(error).split("\n", 1)[0]


class Executor:
    """Carries actions out and lays their results over the view."""

    def __init__(self, client: Client, view: View) -> None:
        self.client, self.view = client, view
        self.taken: set[str] = set()
        """Revision names which belong to something else."""

    async def run(self, actions: Iterable[Action]) -> Outcome:
        """All actions whose prerequisites hold. Never raises for a refusal; the outcome has it."""
        outcome = Outcome()
        for (_, resource, _, _), run in itertools.groupby(actions, key=_run_of):
            if await self._run_together(list(run), outcome) or resource not in PREREQUISITES:
                continue
            break
        return outcome

    async def _run_together(self, actions: list[Action], outcome: Outcome) -> bool:
        size = 1
        while actions:
            batch, actions = actions[:size], actions[size:]
            errors = await asyncio.gather(*(self._try(action, outcome) for action in batch))
            if not all(errors):
                return False
            size = min(size * 2, LARGEST_BATCH)
        return True

    async def _try(self, action: Action, outcome: Outcome) -> bool:
        try:
            await self._perform(action, outcome)
        except NotFound as error:
            if isinstance(action, Create):
                return self._failed(action, error, outcome)
            self._gone(action)
        except WorkbenchError as error:
            if isinstance(action, Create) and isinstance(error, ApiError) and error.already_exists:
                return await self._exists(action, error, outcome)
            return self._failed(action, error, outcome)
        outcome.done.append(action)
        return True

    def _failed(self, action: Action, error: WorkbenchError, outcome: Outcome) -> bool:
        if (
            isinstance(action, Create)
            and isinstance(error, TransientError)
            and not (isinstance(error, ClusterUnreachable) and error.unsent)
        ):
            outcome.unsure = True
        outcome.failed.append((action, error))
        log.warning("%s %s %s/%s failed: %s", type(action).__name__, action.resource, action.namespace, action.name, _told(error))
        return False

    async def _perform(self, action: Action, outcome: Outcome) -> None:
        resource = RESOURCES[action.resource]
        seen = self.view.seen_uid(action.resource, action.namespace, action.name)
        if isinstance(action, Create):
            item = await self.client.create(resource, action.namespace, action.object)
            outcome.created.append(item)
        elif isinstance(action, Patch):
            item = await self.client.patch(resource, action.namespace, action.name, action.patch, subresource=action.subresource)
        else:
            item = await self.client.delete(resource, action.namespace, action.name, grace_s=action.grace_s, uid=action.uid or None)
            if not (item.get("metadata") or {}).get("deletionTimestamp"):
                return self._gone(action)
        return self.view.wrote(action.resource, item, asyncio.get_running_loop().time(), seen_uid=seen)

    def _gone(self, action: Action) -> None:
        known = self.view.get(action.resource, action.namespace, action.name)
        uid = action.uid if isinstance(action, Delete) else ((known or {}).get("metadata") or {}).get("uid", "")
        self.view.gone(action.resource, action.namespace, action.name, uid, asyncio.get_running_loop().time())

    async def _exists(self, action: Create, error: WorkbenchError, outcome: Outcome) -> bool:
        """An object of this name is there: ours, from a request whose answer got lost, or somebody else's."""
        try:
            item = await self.client.get(RESOURCES[action.resource], action.namespace, action.name)
        except WorkbenchError as lost:
            return self._failed(action, lost, outcome)
        if names.controller_uid(item) and names.controller_uid(item) == names.controller_uid(action.object):
            self.view.wrote(action.resource, item, asyncio.get_running_loop().time())
            return True
        if action.resource == names.CONTROLLER_REVISIONS:
            self.taken.add(action.name)
        return self._failed(action, error, outcome)


def _run_of(action: Action) -> tuple[str, str, str, str]:
    """Actions with the same value run together."""
    if isinstance(action, Create):
        labels = action.object["metadata"].get("labels") or {}
        return "create", action.resource, labels.get(names.ROLE_SET_LABEL, ""), labels.get(names.ROLE_LABEL, "")
    return type(action).__name__, action.resource, "", ""
