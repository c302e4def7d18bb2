"""The workbench for notebooks and scripts: the asynchronous one on a loop thread of its own, one plain method a question."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from backend.api.endpoints import Endpoints
from workbench import _loop, _show, _target, results
from workbench.acting import OperationHandle, Plan, Service, Services
from workbench.client import LAST, AsyncCache, AsyncFleet, AsyncRouter, AsyncWorkbench, Prompt
from workbench.explanation import Explanation
from workbench.reports.sync import Reports

if TYPE_CHECKING:
    import polars

    from workbench.background import RunningReplay
    from workbench.traffic import Replay

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Fleet(_show.Shown):
    """Which pods exist and how they are. Shows the last snapshot; its methods ask anew."""

    def __init__(self, core: AsyncFleet, loop: _loop.LoopThread) -> None:
        self._core = core
        self._loop = loop

    def snapshot(self) -> results.FleetTable:
        """The whole fleet now."""
        return self._loop.run(self._core.snapshot())

    def df(self) -> polars.DataFrame:
        """One row a pod, as it is now; columns as in `workbench.columns.FLEET`.

        >>> stack.workbench.fleet.df()["pod"].to_list()
        ['vllm-0', 'vllm-1']
        """
        return self.snapshot().df()

    def pod(self, name: str) -> results.PodCard:
        """One pod. Raises NotFound."""
        return self._loop.run(self._core.pod(name))

    def __getitem__(self, name: str) -> results.PodCard:
        return self.pod(name)

    def _ipython_key_completions_(self) -> list[str]:
        return [] if self._core.last is None else self._core.last._ipython_key_completions_()

    def __repr__(self) -> str:
        return "Fleet (no snapshot yet)" if self._core.last is None else repr(self._core.last)

    def _facts(self) -> dict[str, Any]:
        return _none_yet("Fleet", ".df()") if self._core.last is None else self._core.last._facts()


class Cache(_show.Shown):
    """What every pod has cached."""

    def __init__(self, core: AsyncCache, loop: _loop.LoopThread) -> None:
        self._core = core
        self._loop = loop

    def map(self, bins: int = 128) -> results.CacheMapResult:
        """Blocks of every pod in `bins` buckets of the prefix space; `.plot()` draws it.

        >>> stack.workbench.cache.map(bins=8).df().shape
        (16, 3)
        """
        return self._loop.run(self._core.map(bins))

    def probe(self, prompt: Prompt, *, model: str = "") -> results.ProbeTable:
        """Which pod holds how much of `prompt`: text, token ids, or chat messages. `model` may be empty when there is one.

        >>> stack.workbench.cache.probe("You are a helpful assistant.").df().columns
        ['pod', 'matched_tokens', 'share']
        """
        return self._loop.run(self._core.probe(prompt, model=model))

    def sources(self) -> results.SourcesTable:
        """The event streams that the index follows, with lag, gaps and restarts."""
        return self._loop.run(self._core.sources())

    def __repr__(self) -> str:
        return "Cache (no map read yet)" if self._core.last is None else repr(self._core.last)

    def _facts(self) -> dict[str, Any]:
        return _none_yet("Cache", ".map()") if self._core.last is None else self._core.last._facts()


class Router(_show.Shown):
    """Where requests went, and why."""

    def __init__(self, core: AsyncRouter, loop: _loop.LoopThread) -> None:
        self._core = core
        self._loop = loop

    def decisions(
        self, limit: int = 100, *, model: str = "", pod: str = "", policy: str = "", outcome: str = "", before: str = ""
    ) -> results.DecisionsTable:
        """The newest `limit` decisions that fit the filters; `before` continues where `.next` of another answer ended.

        >>> stack.workbench.router.decisions(limit=2).df()["policy"].to_list()
        ['prefix-cache', 'prefix-cache']
        """
        return self._loop.run(self._core.decisions(limit, model=model, pod=pod, policy=policy, outcome=outcome, before=before))

    def explain(self, request_id: str = LAST) -> Explanation:
        """Candidates, score terms and outcome of one request, by its `request-id`; "last" is the newest. Raises NotFound.

        >>> stack.workbench.router.explain(stack.decision_id).record.chosen
        'vllm-1'
        """
        return self._loop.run(self._core.explain(request_id))

    def __repr__(self) -> str:
        return "Router (no decisions read yet)" if self._core.last is None else repr(self._core.last)

    def _facts(self) -> dict[str, Any]:
        return _none_yet("Router", ".decisions()") if self._core.last is None else self._core.last._facts()


class Workbench(_show.Shown):
    """A connection to one stack. Made by `workbench.connect()`; a context manager; `close()` ends only what it started."""

    template: ClassVar[str] = "workbench.html.j2"

    def __init__(self, core: AsyncWorkbench, loop: _loop.LoopThread) -> None:
        self._core = core
        self._loop = loop
        self.fleet = Fleet(core.fleet, loop)
        self.cache = Cache(core.cache, loop)
        self.router = Router(core.router, loop)
        self.reports = Reports(core.reports, loop)
        self.services = Services(core.services, loop)
        self._replays: list[RunningReplay] = []

    @classmethod
    def connect(cls, target: str | Path | Endpoints | None = None, token: str | None = None) -> Workbench:
        """As `workbench.connect`."""
        loop = _loop.shared()
        found = _target.find_or_start(target, token)

        async def make() -> AsyncWorkbench:
            core = AsyncWorkbench(found)
            try:
                await core.fleet.snapshot()
            except BaseException:
                await core.close()
                raise
            return core

        workbench = cls(loop.run(make()), loop)
        if found.started_here:
            atexit.register(workbench.close)
        return workbench

    @property
    def endpoints(self) -> Endpoints | None:
        """URLs of the stack's parts; None when connected by URL."""
        return self._core.endpoints

    def findings(self) -> results.FindingsTable:
        """What is wrong or degraded, why, and what to do."""
        return self._loop.run(self._core.findings())

    def service(self, name: str) -> Service:
        """One StormService, by `name` or `namespace/name`. Raises NotFound."""
        return Service(self._core.services, self._loop, name)

    def plan(self, plan_id: str) -> Plan:
        """A plan made earlier, here or elsewhere. Raises NotFound."""
        return Plan(self._loop.run(self._core.services.get_plan(plan_id)), self._loop)

    def operation(self, operation_id: str) -> OperationHandle:
        """An applied plan, applied here or elsewhere. Raises NotFound."""
        return OperationHandle(self._loop.run(self._core.services.operation(operation_id)), self._loop)

    def operations(self, limit: int = 100, *, service: str = "") -> results.OperationsTable:
        """Applied plans, newest first."""
        return self._loop.run(self._core.services.operations(limit, service=service))

    def audit(self, limit: int = 100, *, before: str = "") -> results.AuditTable:
        """Who did what, newest first; `before` continues where `.next` of another answer ended."""
        return self._loop.run(self._core.services.audit(limit, before=before))

    def replay(self, trace: str | Path, **options: Any) -> Replay:
        """Send a trace's requests through the gateway and measure; options as `workbench.traffic.replay`."""
        from workbench import traffic

        enabled = options.pop("progress", True)
        part = {name: options[name] for name in ("offset", "repeat") if name in options}
        progress = traffic.progress_of(trace, options.get("limit"), **part, enabled=enabled)
        return self._loop.run(self._core.replay(trace, progress=progress, **options))

    def start_replay(self, trace: str | Path, **options: Any) -> RunningReplay:
        """The same in the background, by default again and again until its `stop()`; options as `replay`.

        >>> traffic = stack.workbench.start_replay("conversation-sample", speed=100, rate=50, output_tokens=1)
        >>> traffic.stop().summary.errors
        {}
        """
        from workbench.background import RunningReplay

        started = RunningReplay(self._core, self._loop, trace, options)
        self._replays.append(started)
        return started

    def close(self) -> None:
        """Leave the stack; one that `connect` started is ended, and so are replays in the background. A second call does nothing."""
        atexit.unregister(self.close)
        while self._replays:
            self._replays.pop().cancel()
        self._loop.run(self._core.close())

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _where(self) -> str:
        endpoints = self.endpoints
        return self._core.target.control if endpoints is None else f"{endpoints.control}, state in {endpoints.state}"

    def _lines(self) -> Sequence[str]:
        last = self._core.fleet.last
        if last is None:
            return ["No snapshot yet."]
        snapshot = last.snapshot
        ready = sum(view.pod.ready for view in snapshot.pods)
        models = sorted({view.pod.model for view in snapshot.pods if view.pod.model})
        lines = [f"{ready} of {len(snapshot.pods)} pods ready, serving {', '.join(models) or 'no model'} ({_show.age(snapshot.at)})"]
        if snapshot.requests_per_s:
            lines.append(f"{snapshot.requests_per_s:.1f} requests/s, {snapshot.errors_per_s:.1f} errors/s")
        if snapshot.hit_rate is not None:
            lines.append(f"prefix hit rate {snapshot.hit_rate:.1%} over the last minute")
        return lines

    def __repr__(self) -> str:
        dashboard = self.endpoints.dashboard if self.endpoints else ""
        lines = [*self._lines(), *([f"dashboard: {dashboard}"] if dashboard else [])]
        return "\n".join([f"Workbench on {self._where()}", *(f"  {line}" for line in lines)])

    def _facts(self) -> dict[str, Any]:
        last = self._core.fleet.last
        table = last._facts() if last is not None else {"headers": (), "rows": [], "more": 0}
        return {
            "where": self._where(),
            "dashboard": self.endpoints.dashboard if self.endpoints else "",
            "lines": self._lines(),
            "headers": table["headers"],
            "rows": table["rows"],
            "more": table["more"],
        }


def _none_yet(title: str, method: str) -> dict[str, Any]:
    return {"title": title, "note": "", "headers": (), "rows": [], "more": 0, "empty": f"Nothing read yet: {method} asks."}
