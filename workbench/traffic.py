"""Replays of traces through a stack's gateway: what the load generator measured, and how true the router's predictions were."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from backend.api.decisions import client_id
from workbench import _show
from workbench.errors import NotFound, UsageError

if TYPE_CHECKING:
    import polars

    from backend.launch.replay import RequestResult, Summary
    from workbench.client import AsyncWorkbench
    from workbench.progress import Progress

PAGE = 1000
SETTLE_S = 10.0
"""How long records of answered requests may take from the gateway through the stream to the control API."""
CLASSES = ("exact", "within_block", "raced", "evicted", "unknown", "unpredicted")


class Prediction(msgspec.Struct, kw_only=True):
    """Promised against reported prefix hits of a replay's requests, by class. `missing`: requests whose record was not found."""

    checked: int = 0
    classes: dict[str, int] = {}
    missing: int = 0

    @property
    def true_share(self) -> float | None:
        """Share of the checked predictions that were exact or within one block."""
        good = self.classes.get("exact", 0) + self.classes.get("within_block", 0)
        return good / self.checked if self.checked else None

    def text(self) -> str:
        """One line."""
        if not self.checked:
            return "predicted hit: no decision record with a prediction found"
        parts = ", ".join(f"{name} {self.classes[name] / self.checked:.2%}" for name in CLASSES if self.classes.get(name))
        missing = f"; {self.missing:,} records missing" if self.missing else ""
        return f"predicted hit against the engine's: {self.true_share:.2%} within one block of {self.checked:,} ({parts}){missing}"


class Replay(_show.Shown):
    """A finished replay. `.summary` has the figures, `.prediction` how true the router's promises were, `.df()` each request."""

    template: ClassVar[str] = "replay.html.j2"

    def __init__(self, summary: Summary, prediction: Prediction | None, results: list[RequestResult]) -> None:
        self.summary = summary
        self.prediction = prediction
        self.results = results

    def df(self) -> polars.DataFrame:
        """One row a request, in the order of their answers; times in seconds from sending."""
        import polars as pl

        from backend.launch.replay import RequestResult

        kinds = {"index": pl.Int64, "status": pl.Int64, "prompt_tokens": pl.Int64, "cached_tokens": pl.Int64, "completion_tokens": pl.Int64}
        columns = {}
        for name in RequestResult.__struct_fields__:
            kind: Any = pl.Float64 if name.endswith("_s") else kinds.get(name, pl.String)
            columns[name] = pl.Series(name, [getattr(result, name) for result in self.results], dtype=kind)
        return pl.DataFrame(columns)

    def __repr__(self) -> str:
        return "\n".join([self.summary.text(), *([self.prediction.text()] if self.prediction else [])])

    def _facts(self) -> dict[str, Any]:
        summary = self.summary
        times = [
            [name, part.mean_ms, part.p50_ms, part.p90_ms, part.p95_ms, part.p99_ms]
            for name, part in (("TTFT", summary.ttft), ("ITL", summary.itl), ("E2E", summary.e2e), ("sent late", summary.late))
        ]
        total = sum(summary.pods.values())
        return {
            "lines": [*summary._counts(), *([self.prediction.text()] if self.prediction else [])],
            "times": times,
            "pods": [[pod, count, f"{count / total:.1%}"] for pod, count in sorted(summary.pods.items())],
        }


async def replay(
    client: AsyncWorkbench | None,
    trace: str | Path,
    *,
    limit: int | None = None,
    offset: int = 0,
    speed: float = 1.0,
    rate: float = 0.0,
    policy: str = "",
    model: str = "",
    url: str = "",
    token: str = "",
    max_in_flight: int = 1024,
    output_tokens: int = 0,
    prompt_tokens: int = 0,
    repeat: int = 1,
    progress: bool | Progress = True,
    check: bool = True,
    keep: bool = True,
    stop: asyncio.Event | None = None,
    drain: asyncio.Event | None = None,
) -> Replay:
    """Send `trace` (a path, or the name of a packaged one) through the gateway and measure.

    speed: 10 sends ten trace seconds in one. rate: requests a second at most, 0 as the trace says. output_tokens: cap on the tokens
    asked for, 0 for the trace's lengths. prompt_tokens: cap on the prompts' lengths, which keep their beginning; 0 likewise. repeat:
    rounds, 0 for ever. keep: remember each result for `.df()`. check: read the decision records afterwards and compare promised with
    reported prefix hits. stop: ends it early, with a summary of what was answered. drain: sends no more and waits for what is under way.

    >>> stack.workbench.replay("conversation-sample", limit=3, speed=100, progress=False).summary.ok
    3
    """
    from backend.launch import replay as door

    gateway = url or _gateway(client)
    if isinstance(progress, bool):
        progress = await asyncio.to_thread(progress_of, trace, limit, offset, repeat, enabled=progress)
    options = door.LoadOptions(
        url=gateway,
        model=model,
        speed=speed,
        rate=rate,
        policy=policy,
        token=token,
        max_in_flight=max_in_flight,
        output_tokens=output_tokens,
    )
    with progress as bar:
        received = _Received(bar, keep=keep, check=check)
        part: dict[str, Any] = {"limit": limit, "offset": offset, "repeat": repeat, "prompt_tokens": prompt_tokens}
        outcome = await door.replay(trace, options, **part, on_result=received, stop=stop, drain=drain)
    prediction = await predictions(client, received.ids, outcome.started_at) if client is not None and received.ids else None
    return Replay(outcome.summary, prediction, received.results)


class _Received:
    """Takes a replay's results as they come: kept for the table, their ids for the check, counted for the progress."""

    def __init__(self, bar: Progress, *, keep: bool, check: bool) -> None:
        self.results: list[RequestResult] = []
        self.ids: set[str] = set()
        self._bar, self._keep, self._check = bar, keep, check
        self._failed = 0

    def __call__(self, result: RequestResult) -> None:
        self._failed += bool(result.error)
        if self._keep:
            self.results.append(result)
        if self._check and result.id and not result.error:
            self.ids.add(result.id)
        self._bar.advance(note=f"{self._failed:,} errors" if self._failed else "no errors")


def progress_of(trace: str | Path, limit: int | None, offset: int = 0, repeat: int = 1, *, enabled: bool = True) -> Progress:
    """A replay's progress. Blocking: reads the part of the trace that will be sent, so that a broken line is told before the start.

    In a notebook it belongs to the cell of the thread that makes it.
    """
    from backend.launch import replay as door
    from workbench.progress import progress

    total = door.total_requests(trace, limit, offset)
    if not total:
        raise NotFound(f"{trace} has no request from number {offset} on.")
    return progress(f"replay {Path(trace).name}", total * repeat if repeat else None, enabled=enabled)


async def predictions(client: AsyncWorkbench, ids: set[str], since: float) -> Prediction:
    """Hit classes of the requests `ids`, from decision records not older than `since`; waits for records still on their way."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_S
    while True:
        found = await _classes(client, ids, since)
        if len(found) == len(ids) or loop.time() >= deadline:
            break
        await asyncio.sleep(0.5)
    counts: dict[str, int] = {}
    for name in found.values():
        counts[name] = counts.get(name, 0) + 1
    checked = len(found) - counts.get("unpredicted", 0)
    return Prediction(checked=checked, classes=counts, missing=len(ids) - len(found))


async def _classes(client: AsyncWorkbench, ids: set[str], since: float) -> dict[str, str]:
    found: dict[str, str] = {}
    before = ""
    while len(found) < len(ids):
        page = await client.router.decisions(PAGE, before=before)
        for record in page:
            if (name := client_id(record.id)) in ids:
                found.setdefault(name, record.hit_class)
        # A second of grace: the gateway's clock may differ from ours when it runs elsewhere.
        if page.next is None or not len(page) or page[-1].at < since - 1.0:
            break
        before = page.next
    return found


def _gateway(client: AsyncWorkbench | None) -> str:
    endpoints = None if client is None else client.endpoints
    if endpoints is None or not endpoints.gateway:
        raise UsageError("The gateway's address is not known.", fix="Pass url=..., such as http://127.0.0.1:18802.")
    return endpoints.gateway
