"""Everything that a report looks at, read through the workbench's client. A part that does not answer is noted, the others go on.

Of decisions only the columns that figures need are kept: neither users nor error texts, which may repeat a piece of a prompt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from workbench.errors import Unavailable, WorkbenchError
from workbench.reports.model import Window

if TYPE_CHECKING:
    import polars as pl

    from workbench import results
    from workbench.client import AsyncWorkbench

T = TypeVar("T")
PAGE = 1_000
MOST_REQUESTS = 500_000
"""Requests read at most, the newest ones: about a minute of reading and 350 MB. What was left out is said."""
KEPT = (
    "at", "model", "policy", "chosen", "prompt_tokens", "predicted_tokens", "in_flight", "status", "outcome", "cached_tokens",
    "usage_prompt_tokens", "completion_tokens", "hit_class", "ttft_ms", "itl_ms", "total_ms",
)  # fmt: skip


@dataclass
class Gathered:
    """`None` stands for a part that did not answer; `problems` says why, by the part's name."""

    window: Window
    read_at: float
    requests: pl.DataFrame | None = None
    seen: pl.DataFrame | None = None
    """`pod`, `first`, `last`: when a pod was among the candidates of a request."""
    cut_at: float | None = None
    """Requests before this moment of the window were not read, as there were too many."""
    fleet: results.FleetTable | None = None
    sources: results.SourcesTable | None = None
    cache: results.CacheMapResult | None = None
    findings: results.FindingsTable | None = None
    problems: dict[str, str] = field(default_factory=dict)


async def gather(workbench: AsyncWorkbench, window: Window, *, now: float, most: int = MOST_REQUESTS) -> Gathered:
    """Raises what the client raises when control itself does not answer or refuses us; an index that is away is only noted."""
    found = Gathered(window, now)
    found.fleet = await workbench.fleet.snapshot()
    found.findings = await workbench.findings()

    async def read(part: str, ask: Callable[[], Awaitable[T]]) -> T | None:
        try:
            return await ask()
        except Unavailable as error:
            found.problems[part] = " ".join(str(error).split())
            return None

    found.sources = await read("sources", workbench.cache.sources)
    found.cache = await read("cache", lambda: workbench.cache.map(bins=64))
    requests = await read("requests", lambda: _requests(workbench, window, most))
    if requests is not None:
        found.requests, found.seen, found.cut_at = requests
    return found


async def _requests(workbench: AsyncWorkbench, window: Window, most: int) -> tuple[pl.DataFrame, pl.DataFrame, float | None]:
    """The window's decisions, oldest first; when pods were candidates; and since when both are complete, unless that is the window's
    beginning."""
    import polars as pl

    inside = pl.col("at").dt.epoch("us") >= round(window.since * 1e6)  # the other end is where the first page begins
    seen = [pl.col("at").min().alias("first"), pl.col("at").max().alias("last")]
    parts: list[pl.DataFrame] = []
    pods: list[pl.DataFrame] = []
    rows, before = 0, f"{window.until:.6f}"
    cut_at = None
    while True:
        page = await workbench.router.decisions(PAGE, before=before)
        table = page.df().filter(inside)
        parts.append(table.select(KEPT))
        pods.append(table.select("at", pod="candidates").explode("pod").drop_nulls("pod").group_by("pod").agg(seen))
        rows += len(page)
        if page.next is None or not len(page) or page[-1].at < window.since:
            break
        if rows >= most:
            cut_at = float(page[-1].at)
            break
        if page.next == before:
            raise WorkbenchError("The list of decisions does not go on.", fix="Use the same version on both sides.")
        before = page.next
    when = pl.concat(pods).group_by("pod").agg(pl.col("first").min(), pl.col("last").max()).sort("pod")
    return pl.concat(parts).reverse(), when, cut_at
