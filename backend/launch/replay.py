"""The door from operators' code to the load generator: a trace by name, sent to a gateway, summed up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from backend.core.errors import Unavailable, UsageError
from backend.simulate import loadgen, traces
from backend.simulate.httpclient import HttpClient, HttpFailure
from backend.simulate.loadgen import LoadOptions, RequestResult
from backend.simulate.summary import Collector, Summary

__all__ = ["LoadOptions", "Outcome", "RequestResult", "Summary", "packaged_traces", "replay", "served_models", "total_requests"]

OnResult = Callable[[RequestResult], None]


@dataclass(frozen=True)
class Outcome:
    """`started_at` and `ended_at` are seconds since 1970: between them lie the decision records of this replay."""

    summary: Summary
    started_at: float
    ended_at: float


async def replay(
    trace: str | Path,
    options: LoadOptions,
    *,
    limit: int | None = None,
    offset: int = 0,
    repeat: int = 1,
    prompt_tokens: int = 0,
    on_result: OnResult = lambda result: None,
    stop: asyncio.Event | None = None,
    drain: asyncio.Event | None = None,
) -> Outcome:
    """Send `trace` (a path or a packaged name) `repeat` times over, 0 meaning without end, and add up what became of it.
    When `stop` is set, requests under way are given up and the summary tells of those that were answered. When `drain` is set, the
    request that is due next is the last one, and all are waited for.

    `prompt_tokens` caps each prompt to its beginning, 0 for the trace's lengths. An empty model means the only one that the gateway
    serves. Raises ConfigError for a broken trace, NotFound for an unknown one, UsageError when the model has to be named, Unavailable
    when nobody answers.
    """
    if prompt_tokens < 0:
        raise UsageError(f"prompt_tokens is {prompt_tokens}, it must not be negative.")
    path = traces.find(trace)
    if not options.model:
        options = replace(options, model=await _only_model(options))
    collector = Collector()

    def counted() -> Iterator[traces.TraceRequest]:
        for request in _requests(path, limit, offset, repeat):
            if drain is not None and drain.is_set():
                return
            if prompt_tokens:
                request = traces.shortened(request, prompt_tokens)
            collector.sent(request)
            yield request

    def received(result: RequestResult) -> None:
        collector.add(result)
        on_result(result)

    started_at, started = time.time(), time.monotonic()
    await _until(loadgen.run(counted(), options, received), stop)
    summary = collector.summary(time.monotonic() - started, trace=Path(trace).name, policy=options.policy)
    return Outcome(summary, started_at, time.time())


async def _until(work: Coroutine[None, None, object], stop: asyncio.Event | None) -> None:
    """Run `work` to its end, or cancel it when `stop` is set first."""
    task = asyncio.create_task(work)
    waits = [task, *([asyncio.create_task(stop.wait())] if stop is not None else [])]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


def packaged_traces() -> list[str]:
    """Names that `replay` takes besides paths."""
    return traces.packaged_names()


def total_requests(trace: str | Path, limit: int | None, offset: int = 0) -> int:
    """How many requests a replay of `trace` would send: reads and checks the whole part, so a broken line is found before the start."""
    return sum(1 for _ in traces.read_mooncake(traces.find(trace), limit, offset=offset))


def _requests(path: Path, limit: int | None, offset: int, repeat: int) -> Iterator[traces.TraceRequest]:
    """Rounds follow each other a second apart in trace time."""
    shift = last = 0.0
    done = 0
    while repeat == 0 or done < repeat:
        empty = True
        for request in traces.read_mooncake(path, limit, offset=offset):
            empty = False
            last = request.timestamp + shift
            yield msgspec.structs.replace(request, timestamp=last) if shift else request
        if empty:
            return
        shift = last + 1000.0
        done += 1


async def served_models(url: str, *, token: str = "") -> list[str]:
    """Names of the models behind `url`. Raises Unavailable."""
    client = HttpClient(url, token=token)
    pieces: list[bytes] = []
    try:
        exchange = await client.request("GET", "/v1/models", b"", pieces.append, timeout_s=10.0)
    except HttpFailure as failure:
        raise Unavailable(f"Nobody answers at {url}: {failure}.", fix="`workbench status` tells what runs.") from failure
    finally:
        client.close()
    try:
        return [str(item["id"]) for item in msgspec.json.decode(b"".join(pieces))["data"]]
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise Unavailable(f"{url}/v1/models answered {exchange.status} without a list of models.") from error


async def _only_model(options: LoadOptions) -> str:
    models = await served_models(options.url, token=options.token)
    if len(models) == 1:
        return models[0]
    fix = f"Choose one with --model: {', '.join(models)}." if models else "Are pods ready? `workbench status` tells."
    raise UsageError(f"{options.url} serves {len(models)} models.", fix=fix)
