"""What is wrong or degraded, from a view of one moment: each finding with its cause and what to do. Pure.

Adding one is a function that yields Findings from a View, named in `_RULES`. An id names kind and target, so that it stays the
same while the cause lasts; `since` is filled in by `Remembered`, unless the rule knows better.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import msgspec

from backend.api.cache import SourceState
from backend.api.findings import Finding, Severity
from backend.api.fleet import Pod
from backend.control.model import PeerView, View

LAG_MS = 2_000.0
"""Events older than this when they are indexed make predictions wrong often enough to be worth a line."""
STARTING_S = 120.0
"""A pod that starts for longer is worth a line; loading a large model takes a minute or two."""
_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2}


def findings(view: View) -> list[Finding]:
    """All findings, worst first, then by id."""
    found = {finding.id: finding for rule in _RULES for finding in rule(view)}
    return sorted(found.values(), key=lambda finding: (_ORDER[finding.severity], finding.id))


class Remembered:
    """Gives findings the moment when they were first seen; forgets those that are gone."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def update(self, found: list[Finding], now: float) -> list[Finding]:
        self._since = {finding.id: self._since.get(finding.id, finding.since or now) for finding in found}
        return [msgspec.structs.replace(finding, since=self._since[finding.id]) for finding in found]


def _fleet(view: View) -> Iterator[Finding]:
    if view.fleet_problem:
        yield _finding(
            "fleet-file",
            "error",
            "The list of pods cannot be read",
            cause=view.fleet_problem,
            fix="The last good list stays in use. Repair the file or restart the pod runtime, which rewrites it.",
        )
    elif not view.pods:
        yield _finding(
            "fleet-empty", "warning", "There are no pods", cause="The fleet's list is empty.", fix="Check the fleet file of `workbench up`."
        )


def _cluster(view: View) -> Iterator[Finding]:
    for resource, why in view.not_reconciled.items():
        yield _finding(
            f"not-reconciled:{resource}",
            "error",
            f"Changes of {resource} are not seen",
            resource,
            cause=f"The cluster's API cannot be followed: {why}",
            fix="Rollouts stand still until it can; pods go on serving. Check the API server, the CRDs and control's rights.",
        )


def _pods(view: View) -> Iterator[Finding]:
    for seen in view.pods:
        pod = seen.pod
        if pod.state in ("backoff", "failed"):
            again = "It waits for its next start." if pod.state == "backoff" else "It will not be started again."
            yield _finding(
                f"pod-{pod.state}:{pod.name}",
                "error",
                f"{pod.name} does not run",
                pod.name,
                cause=f"{pod.reason or 'It ended.'} {again} Restarts so far: {pod.restarts}.",
                fix=f"Read its log (pods/{pod.name}.log in the state folder).",
            )
        elif not pod.ready and (pod.state != "starting" or view.now - pod.started_at > STARTING_S):
            yield _finding(
                f"pod-not-ready:{pod.name}",
                "warning",
                f"{pod.name} is not ready",
                pod.name,
                cause=pod.reason or f"Its state is {pod.state}.",
                fix="It gets no new requests until its readiness probe succeeds. Its log says what it waits for.",
            )


def _loads(view: View) -> Iterator[Finding]:
    for seen in view.pods:
        pod, load = seen.pod, seen.load
        if pod.ready and (load.state == "stale" or (load.state == "never" and load.error)):
            yield _finding(
                f"scrape:{pod.name}",
                "warning",
                f"Load of {pod.name} is unknown",
                pod.name,
                cause=f"Its /metrics could not be read: {load.error or 'no answer'}. Figures shown are the last ones.",
                fix=f"Try http://{pod.address}/metrics by hand; an overloaded engine answers late.",
                since=load.scraped_at,
            )
        if load.missing:
            yield _finding(
                f"metrics-missing:{pod.name}",
                "warning",
                f"{pod.name} does not report {', '.join(load.missing)}",
                pod.name,
                cause=f"{pod.engine} {pod.version} has no such figures on its /metrics, or names them in a way we don't know.",
                fix="Pages show these figures as unknown. Check the engine's version and its --disable-log-stats flag.",
            )


def _sources(view: View) -> Iterator[Finding]:
    if view.sources is None:
        return
    by_pod: dict[str, list[SourceState]] = defaultdict(list)
    for source in view.sources:
        by_pod[source.pod].append(source)
    for seen in view.pods:
        if seen.pod.ready and not view.kvindex.error:
            yield from _coverage(seen.pod, by_pod.get(seen.pod.name, []), view.prefix_cache_used)
    for source in view.sources:
        yield from _source_health(source, view)


def _coverage(pod: Pod, sources: list[SourceState], used: bool) -> Iterator[Finding]:
    """Whether routing by cache can know anything of this pod."""
    if sources and not all(source.status == "unsupported" for source in sources):
        return
    why = next((source.reason for source in sources if source.reason), "The engine publishes no KV events.")
    yield _finding(
        f"no-events:{pod.name}",
        "warning" if used else "info",
        f"Nobody knows what {pod.name} has cached",
        pod.name,
        cause=f"{why} {'prefix-cache routing counts its cache as empty.' if used else ''}".strip(),
        fix='Start the engine with --kv-events-config \'{"enable_kv_cache_events": true, "publisher": "zmq"}\' (vLLM).',
    )


def _source_health(source: SourceState, view: View) -> Iterator[Finding]:
    name = f"{source.pod}/{source.rank}"
    if source.status in ("lost", "error"):
        yield _finding(
            f"source-lost:{name}",
            "warning",
            f"KV events of {source.pod} are lost",
            source.pod,
            cause=f"{source.reason or 'The connection ended.'} What the index holds for it may be outdated.",
            fix=f"It reconnects by itself. Check that {source.endpoint or 'its event endpoint'} can be reached.",
            since=source.last_event_at,
        )
    if missed := view.grown.get(f"missed:{name}", 0):
        yield _finding(
            f"source-missed:{name}",
            "warning",
            f"KV events of {source.pod} are missing",
            source.pod,
            cause=f"{missed:g} batches of the last 10 minutes could not be replayed: the engine's replay buffer is too short.",
            fix="Raise buffer_steps in the engine's --kv-events-config; the index forgets what it cannot be sure of.",
        )
    elif gaps := view.grown.get(f"gaps:{name}", 0):
        yield _finding(
            f"source-gaps:{name}",
            "info",
            f"KV events of {source.pod} had holes",
            source.pod,
            cause=f"{gaps:g} holes in the sequence over the last 10 minutes, all filled by replay.",
            fix="Nothing to do; many of them point to a send queue (hwm) that is too short for the event rate.",
        )
    if skipped := view.grown.get(f"skipped:{name}", 0):
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(source.skipped.items()))
        yield _finding(
            f"source-unreadable:{name}",
            "warning",
            f"Some KV events of {source.pod} are left out",
            source.pod,
            cause=f"{skipped:g} events of the last 10 minutes were skipped (since the start: {reasons}).",
            fix="kvindex's /metrics counts them by reason (kvindex_source_skipped_total). Check that the engine's version is supported; "
            "unknown_parent stands for blocks whose beginning was stored before anybody listened, and ends with the engine's restart.",
        )
    if source.lag_ms is not None and source.lag_ms > LAG_MS and view.now - source.last_event_at < 60:
        yield _finding(
            f"source-lag:{name}",
            "warning",
            f"KV events of {source.pod} are late",
            source.pod,
            cause=f"The newest batch was {source.lag_ms / 1000:.1f} s old when it was indexed.",
            fix="Compare the clocks of both machines; then look at the CPU of kvindex.",
        )


def _block_sizes(view: View) -> Iterator[Finding]:
    sizes: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    models = {seen.pod.name: seen.pod.model for seen in view.pods}
    for source in view.sources or ():
        if source.block_size and source.pod in models:
            sizes[models[source.pod]][source.block_size].append(source.pod)
    for model, by_size in sizes.items():
        if len(by_size) > 1:
            parts = "; ".join(f"{size} tokens: {', '.join(sorted(set(pods)))}" for size, pods in sorted(by_size.items()))
            yield _finding(
                f"block-size:{model}",
                "warning",
                f"Pods of {model} have different KV block sizes",
                model,
                cause=f"{parts}.",
                fix="Matches are right for each pod, but comparable only to a block. Give all pods the same --block-size.",
            )


def _peers(view: View) -> Iterator[Finding]:
    if view.kvindex.error:
        yield _away(
            "kvindex-away",
            "error" if view.prefix_cache_used else "warning",
            "The KV index does not answer",
            view.kvindex,
            "Cache pages show nothing new, and routing uses the index as it was, then none.",
        )
    elif view.index_problem:
        yield _finding(
            "index-no-room",
            "warning",
            "Routing uses an older KV index",
            view.kvindex.url,
            cause=f"{view.index_problem} The index grew beyond it; predictions leave out what engines stored since.",
            fix="Make room in shared memory (df /dev/shm; in a container: --shm-size). kvindex tries again every few seconds.",
        )
    if view.gateway.error:
        yield _away("gateway-away", "error", "The gateway does not answer", view.gateway, "Clients get no answers.")


def _away(name: str, severity: Severity, title: str, peer: PeerView, effect: str) -> Finding:
    return _finding(
        name,
        severity,
        title,
        peer.url,
        cause=f"{peer.error} {effect}",
        fix="`workbench up` starts it again by itself; its log is in the state folder's logs/.",
        since=peer.since,
    )


def _history(view: View) -> Iterator[Finding]:
    trouble = view.history
    if not view.redis_configured:
        yield _finding(
            "redis-off",
            "info",
            "Decisions are not kept",
            cause="No stream server is configured (records.redis_url).",
            fix="Set records.redis_url for control and gateway alike.",
        )
    if trouble.redis:
        yield _finding(
            "redis-away",
            "error",
            "The stream server does not answer",
            cause=trouble.redis,
            fix="Gateway workers keep their newest records and send them when it is back; older ones are dropped and counted.",
        )
    if trouble.disk:
        yield _finding(
            "disk-full" if trouble.disk_full else "history-not-written",
            "error",
            "The disk is full" if trouble.disk_full else "The history cannot be written",
            cause=trouble.disk.splitlines()[0],
            fix="Nothing is lost while records wait in the stream. Free some space; writing goes on by itself.",
        )
    for name, why in sorted(trouble.corrupt.items()):
        yield _finding(
            f"history-corrupt:{name}",
            "warning",
            "A history file is damaged",
            name,
            cause=why,
            fix="It is left out. Move it away, or restore it from a backup.",
        )


def _records(view: View) -> Iterator[Finding]:
    lost = {
        "records-dropped": ("gateway workers had no room for them while the stream server was away", "kept_records"),
        "records-trimmed": ("the stream's cap removed them before they were written", "stream_batches"),
        "records-unreadable": ("they could not be read, or hold figures that fit into no table", ""),
    }
    for name, (why, setting) in lost.items():
        if count := view.grown.get(name, 0):
            yield _finding(
                name,
                "warning",
                "Decision records were lost",
                cause=f"{count:g} in the last 10 minutes: {why}.",
                fix=f"Raise records.{setting}, or find out why the stream server was away." if setting else "See control's log.",
            )


def _reports(view: View) -> Iterator[Finding]:
    for run in view.reports.failed:
        again = "tries again when it is next due" if run.schedule else "does not try again by itself"
        yield _finding(
            f"report-failed:{run.schedule or 'asked'}",
            "warning",
            f"The report {run.report} could not be written",
            run.schedule or run.id,
            cause=run.error,
            fix=f"Control {again}. Once the cause is gone: "
            + (f'`wb.reports.schedules.run("{run.schedule}")`.' if run.schedule else f'`wb.reports.run("{run.report}")`.'),
            since=run.ended_at,
        )
    if view.reports.problem and not view.history.redis:
        yield _finding(
            "schedules-away",
            "warning",
            "Schedules cannot be read",
            cause=view.reports.problem,
            fix="No report is written by schedule meanwhile; missed ones are caught up when the server is back.",
        )
    for name, why in sorted(view.reports.broken.items()):
        yield _finding(
            f"schedule-broken:{name}",
            "warning",
            f"The schedule {name} cannot be read",
            name,
            cause=why,
            fix=f'Its reports are not written. Delete it with `wb.reports.schedules.delete("{name}")` and make it anew.',
        )


_RULES: tuple[Callable[[View], Iterator[Finding]], ...] = (
    _fleet,
    _cluster,
    _pods,
    _loads,
    _sources,
    _block_sizes,
    _peers,
    _history,
    _records,
    _reports,
)


def _finding(name: str, severity: Severity, title: str, target: str = "", *, cause: str, fix: str, since: float = 0.0) -> Finding:
    return Finding(id=name, severity=severity, title=f"{title}.", target=target, cause=cause, fix=fix, since=since)
