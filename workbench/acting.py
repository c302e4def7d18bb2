"""StormServices, plans and operations for notebooks and scripts: `workbench.services` with one plain method a coroutine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.api.actions import ServiceView, Source
from workbench import _loop, _show, results
from workbench.planned import OperationShown, PlanShown
from workbench.progress import progress as make_progress
from workbench.services import AsyncOperation, AsyncPlan, AsyncServices, models_of

if TYPE_CHECKING:
    import polars


class Services(_show.Shown):
    """Every StormService. Shows the last table; its methods ask anew."""

    def __init__(self, core: AsyncServices, loop: _loop.LoopThread) -> None:
        self._core, self._loop = core, loop

    @property
    def source(self) -> Source:
        """Where acts come from, as the audit keeps it: a notebook, unless said otherwise."""
        return self._core.source

    @source.setter
    def source(self, source: Source) -> None:
        self._core.source = source

    def table(self) -> results.ServicesTable:
        """Every service now."""
        return self._loop.run(self._core.table())

    def df(self) -> polars.DataFrame:
        """One row a service, as it is now; columns as in `workbench.columns.SERVICES`.

        >>> stack.workbench.services.df()["service"].to_list()
        ['default/qwen']
        """
        return self.table().df()

    def plan_create(self, manifest: Mapping[str, Any] | str | Path, *, reason: str = "") -> Plan:
        """Plan a new service from its manifest, or from a YAML or JSON file with one."""
        return Plan(self._loop.run(self._core.plan_create(manifest, reason=reason)), self._loop)

    def __getitem__(self, name: str) -> Service:
        return Service(self._core, self._loop, name)

    def _ipython_key_completions_(self) -> list[str]:
        return [] if self._core.last is None else [f"{row.namespace}/{row.name}" for row in self._core.last]

    def __repr__(self) -> str:
        return "Services (not read yet)" if self._core.last is None else repr(self._core.last)

    def _facts(self) -> dict[str, Any]:
        if self._core.last is not None:
            return self._core.last._facts()
        return {"title": "Services", "note": "", "headers": (), "rows": [], "more": 0, "empty": "Nothing read yet: .df() asks."}


class Service(_show.Shown):
    """One StormService, by `name` or `namespace/name`. Raises NotFound when there is none.

    >>> plan = stack.workbench.service("qwen").plan_upgrade(image="engine:2")
    >>> plan.steps.columns
    ['step', 'at_s', 'role', 'pods_in', 'pods_out', 'ready', 'reason']
    """

    def __init__(self, core: AsyncServices, loop: _loop.LoopThread, name: str) -> None:
        self._core, self._loop = core, loop
        self.last: ServiceView = loop.run(core.view(name))
        self.name = f"{self.last.namespace}/{self.last.name}"

    @property
    def models(self) -> list[str]:
        """Models that its pods serve, by the labels of its roles.

        >>> stack.workbench.service("qwen").models
        ['qwen3-8b']
        """
        return models_of(self.last.manifest)

    def refresh(self) -> Service:
        self.last = self._loop.run(self._core.view(self.name))
        return self

    def df(self) -> polars.DataFrame:
        """One row, as it is now."""
        return results.ServicesTable([self.refresh().last]).df()

    def operations(self, limit: int = 100) -> results.OperationsTable:
        return self._loop.run(self._core.operations(limit, service=self.name))

    def plan_upgrade(self, image: str, *, role: str | None = None, container: str | None = None, reason: str = "") -> Plan:
        """Plan another image, of one role or of all."""
        return self._plan("set-image", reason, image=image, role=role or "", container=container or "")

    def plan_scale(self, replicas: int, *, role: str | None = None, reason: str = "") -> Plan:
        """Plan another size of a role, or without one another number of RoleSets."""
        return self._plan("scale", reason, replicas=replicas, role=role or "")

    def plan_delete(self, *, reason: str = "") -> Plan:
        """Plan the end of the service."""
        return self._plan("delete", reason)

    def plan_pause(self, *, reason: str = "") -> Plan:
        return self._plan("pause", reason)

    def plan_resume(self, *, reason: str = "") -> Plan:
        return self._plan("resume", reason)

    def pause(self, *, reason: str = "") -> OperationHandle:
        """Begin nothing new: plans and applies at once, since nothing is taken away."""
        return self.plan_pause(reason=reason).apply()

    def resume(self, confirm: str = "", *, reason: str = "") -> OperationHandle:
        """Go on with a rollout. Where that takes pods away, its plan must be confirmed: `confirm` is then the service's name."""
        return self.plan_resume(reason=reason).apply(confirm)

    def _plan(self, action: Any, reason: str, **parameters: Any) -> Plan:
        return Plan(self._loop.run(self._core.plan(action, self.name, reason=reason, **parameters)), self._loop)

    def __repr__(self) -> str:
        return repr(results.ServicesTable([self.last]))

    def _facts(self) -> dict[str, Any]:
        return {**results.ServicesTable([self.last])._facts(), "title": f"Service {self.name}", "note": ""}


class Plan(PlanShown):
    """What applying would change and cost. Looking at it asks nobody; `apply` acts."""

    def __init__(self, core: AsyncPlan, loop: _loop.LoopThread) -> None:
        super().__init__(core.plan)
        self._core, self._loop = core, loop

    def apply(self, confirm: str = "", *, reason: str = "") -> OperationHandle:
        """Apply it as it was shown; `confirm` is what the plan asks to be typed. Raises StaleState, InvalidRequest."""
        return OperationHandle(self._loop.run(self._core.apply(confirm, reason=reason)), self._loop)


class OperationHandle(OperationShown):
    """An applied plan, as it was last seen; its methods look again."""

    def __init__(self, core: AsyncOperation, loop: _loop.LoopThread) -> None:
        super().__init__(core.last)
        self._core, self._loop = core, loop

    def refresh(self) -> OperationHandle:
        return self._seen(self._core.refresh())

    def wait(self, progress: bool = True, timeout: float | None = None) -> OperationHandle:
        """Until it has ended. An interrupt ends the waiting, not the operation. Raises OperationFailed, TimeoutError."""
        try:
            self._loop.run(self._watch(progress), timeout)
        except KeyboardInterrupt:
            print(f"No longer waiting; the operation goes on. operation({self.id!r}).abort() stops it.", file=sys.stderr)
            raise
        finally:
            self.last = self._core.last
        self._core.check()
        return self

    def pause(self, *, reason: str = "") -> OperationHandle:
        return self._seen(self._core.pause(reason=reason))

    def resume(self, *, reason: str = "") -> OperationHandle:
        return self._seen(self._core.resume(reason=reason))

    def abort(self, confirm: str = "", *, reason: str = "") -> OperationHandle:
        """Stop and revert to the spec before: pods that were replaced are replaced back. `confirm` is the service's name."""
        return self._seen(self._core.abort(confirm, reason=reason))

    def undo(self, *, reason: str = "") -> Plan:
        """The plan of the way back; apply it as any other."""
        return Plan(self._loop.run(self._core.undo(reason=reason)), self._loop)

    async def _watch(self, shown: bool) -> None:
        with make_progress(f"{self.last.summary} of {self.last.service}", self.last.steps_total or None, enabled=shown) as bar:
            done = 0
            async for seen in self._core.changes():
                bar.advance(seen.steps_done - done, note=f"{seen.state}: {seen.message}" if seen.message else seen.state)
                done = seen.steps_done

    def _seen(self, call: Any) -> OperationHandle:
        self._loop.run(call)
        self.last = self._core.last
        return self
