"""The tables that leave the workbench: one row a column, with name, type, meaning and where the value comes from.

Names carry their unit; times are UTC `Datetime('us')`. polars is loaded by the first `.df()`. The table of decisions is
`backend.api.frames`, as the history's files share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import msgspec

from backend.api.actions import AuditRecord, FieldChange, Operation, PlanStep, ServiceView
from backend.api.cache import ProbeMatch, SharedPrefix, SourceState
from backend.api.findings import Finding
from backend.api.fleet import PodView

if TYPE_CHECKING:
    import polars

R = TypeVar("R")
Kind = Literal["text", "flag", "whole", "number", "time", "texts"]


@dataclass(frozen=True)
class Column(Generic[R]):
    """`time` columns are read as seconds since 1970, 0 meaning never."""

    name: str
    kind: Kind
    meaning: str
    read: Callable[[R], Any]


def frame(columns: Sequence[Column[R]], rows: Sequence[R]) -> polars.DataFrame:
    """`rows` as a polars table with exactly `columns`, also when there are no rows."""
    import polars as pl

    kinds: dict[Kind, Any] = {
        "text": pl.String,
        "flag": pl.Boolean,
        "whole": pl.Int64,
        "number": pl.Float64,
        "time": pl.Datetime("us", "UTC"),
        "texts": pl.List(pl.String),
    }
    series = []
    for column in columns:
        values = [column.read(row) for row in rows]
        if column.kind == "time":
            microseconds = [round(seconds * 1e6) if seconds else None for seconds in values]
            series.append(pl.Series(column.name, microseconds, dtype=pl.Int64).cast(kinds["time"]))
        else:
            series.append(pl.Series(column.name, values, dtype=kinds[column.kind]))
    return pl.DataFrame(series)


FLEET: tuple[Column[PodView], ...] = (
    Column("pod", "text", "name", lambda row: row.pod.name),
    Column("state", "text", "starting, ready, unready, stopping, backoff or failed", lambda row: row.pod.state),
    Column("model", "text", "model served", lambda row: row.pod.model),
    Column("engine", "text", "engine family", lambda row: row.pod.engine),
    Column("version", "text", "engine version", lambda row: row.pod.version),
    Column("role", "text", "prefill, decode, or empty for both", lambda row: row.pod.role),
    Column("ready", "flag", "gets new requests", lambda row: row.pod.ready),
    Column("running", "number", "requests in the batch", lambda row: row.load.running),
    Column("waiting", "number", "requests in the queue", lambda row: row.load.waiting),
    Column("kv_usage", "number", "share of KV blocks in use by running requests, 0..1", lambda row: row.load.kv_usage),
    Column("hit_rate", "number", "prefix tokens found per token looked up, last minute", lambda row: row.load.hit_rate),
    Column("prompt_tokens_per_s", "number", "prompt tokens a second", lambda row: row.load.prompt_tokens_per_s),
    Column("generation_tokens_per_s", "number", "generated tokens a second", lambda row: row.load.generation_tokens_per_s),
    Column(
        "ttft_ms",
        "number",
        "mean time to first token since the scrape before",
        lambda row: None if row.load.ttft_mean_s is None else row.load.ttft_mean_s * 1e3,
    ),
    Column("restarts", "whole", "times that it was started again", lambda row: row.pod.restarts),
    Column("started_at", "time", "start of its process", lambda row: row.pod.started_at),
    Column("scraped_at", "time", "last reading of its metrics", lambda row: row.load.scraped_at),
    Column("load_state", "text", "fresh, stale or never", lambda row: row.load.state),
    Column("address", "text", "host:port", lambda row: row.pod.address),
    Column("reason", "text", "why it is not ready", lambda row: row.pod.reason),
)

SOURCES: tuple[Column[SourceState], ...] = (
    Column("pod", "text", "name", lambda row: row.pod),
    Column("rank", "whole", "data-parallel rank", lambda row: row.rank),
    Column("status", "text", "connecting, replaying, live, lost, unsupported or error", lambda row: row.status),
    Column("lag_ms", "number", "engine's time stamp to indexed, newest batch", lambda row: row.lag_ms),
    Column("blocks", "whole", "blocks that the index holds for it", lambda row: row.blocks),
    Column("block_size", "whole", "tokens a block", lambda row: row.block_size),
    Column("batches", "whole", "batches read", lambda row: row.batches),
    Column("gaps", "whole", "holes in the sequence seen", lambda row: row.gaps),
    Column("missed", "whole", "batches that replay could not bring back", lambda row: row.missed),
    Column("restarts", "whole", "new boots of the engine seen", lambda row: row.restarts),
    Column("reconnects", "whole", "times that the connection was made again", lambda row: row.reconnects),
    Column("stored", "whole", "blocks stored since start", lambda row: row.stored),
    Column("removed", "whole", "blocks removed since start", lambda row: row.removed),
    Column("cleared", "whole", "times that everything was cleared", lambda row: row.cleared),
    Column("skipped", "whole", "unreadable events, all reasons", lambda row: sum(row.skipped.values())),
    Column("last_sequence", "whole", "sequence number of the newest batch", lambda row: row.last_sequence),
    Column("last_event_at", "time", "when the engine made the newest batch", lambda row: row.last_event_at),
    Column("endpoint", "text", "where events are published", lambda row: row.endpoint),
    Column("reason", "text", "why it is not live", lambda row: row.reason),
)

PROBE: tuple[Column[ProbeMatch], ...] = (
    Column("pod", "text", "name", lambda row: row.pod),
    Column("matched_tokens", "whole", "tokens of the prompt's beginning that it holds", lambda row: row.matched_tokens),
    Column("share", "number", "of the prompt, 0..1", lambda row: row.share),
)

SHARED: tuple[Column[SharedPrefix], ...] = (
    Column("key", "text", "hash of the block and all before it", lambda row: row.key),
    Column("tokens", "whole", "tokens up to and including the block", lambda row: row.tokens),
    Column("depth", "whole", "blocks from the prompt's beginning", lambda row: row.depth),
    Column("pods", "texts", "pods that hold it", lambda row: row.pods),
    Column("children", "whole", "blocks that continue it", lambda row: row.children),
)

FINDINGS: tuple[Column[Finding], ...] = (
    Column("severity", "text", "info, warning or error", lambda row: row.severity),
    Column("title", "text", "what is wrong", lambda row: row.title),
    Column("target", "text", "the object concerned", lambda row: row.target),
    Column("cause", "text", "why", lambda row: row.cause),
    Column("fix", "text", "what to do", lambda row: row.fix),
    Column("since", "time", "first seen", lambda row: row.since),
    Column("id", "text", "stays the same while the cause lasts", lambda row: row.id),
)

SERVICES: tuple[Column[ServiceView], ...] = (
    Column("service", "text", "namespace/name", lambda row: f"{row.namespace}/{row.name}"),
    Column("mode", "text", "replica: groups are replaced as a whole; pooled: roles are changed in place", lambda row: row.mode),
    Column("ready", "flag", "every wanted pod is ready and of the newest revision", lambda row: row.ready),
    Column("paused", "flag", "no rollout begins", lambda row: row.paused),
    Column("replicas", "whole", "RoleSets wanted", lambda row: row.replicas),
    Column("pods_wanted", "whole", "pods wanted, all roles", lambda row: sum(role.wanted for role in row.roles)),
    Column("pods_ready", "whole", "pods ready, all roles", lambda row: sum(role.ready for role in row.roles)),
    Column("pods_updated", "whole", "pods that run the newest images", lambda row: sum(role.updated for role in row.roles)),
    Column("roles", "texts", "ready/wanted of each role", lambda row: [f"{role.name} {role.ready}/{role.wanted}" for role in row.roles]),
    Column("images", "texts", "images asked for", lambda row: list(dict.fromkeys(one for role in row.roles for one in role.images))),
    Column("revision", "text", "ControllerRevision that was ready last", lambda row: row.revision),
    Column("update_revision", "text", "newest ControllerRevision", lambda row: row.update_revision),
    Column("operation", "text", "operation under way", lambda row: row.operation),
    Column("message", "text", "the first pod in trouble", lambda row: row.message),
)

OPERATIONS: tuple[Column[Operation], ...] = (
    Column("operation", "text", "id", lambda row: row.id),
    Column("service", "text", "namespace/name", lambda row: f"{row.namespace}/{row.service}"),
    Column("summary", "text", "the change", lambda row: row.summary or row.action),
    Column("state", "text", "planned, running, paused, aborting, aborted, done, failed or undone", lambda row: row.state),
    Column("steps_done", "whole", "steps of the plan that have happened", lambda row: row.steps_done),
    Column("steps_total", "whole", "steps of the plan", lambda row: row.steps_total),
    Column("message", "text", "what it waits for, or why it failed", lambda row: row.message),
    Column("risk", "text", "low, medium or high", lambda row: row.risk),
    Column("user", "text", "who applied it, as the client said", lambda row: row.by.user),
    Column("source", "text", "ui, notebook, report, api or cli", lambda row: row.by.source),
    Column("reason", "text", "why, in the operator's words", lambda row: row.reason),
    Column("started_at", "time", "applied", lambda row: row.started_at),
    Column("ended_at", "time", "ended", lambda row: row.ended_at),
    Column("plan", "text", "id of its plan", lambda row: row.plan_id),
)

AUDIT: tuple[Column[AuditRecord], ...] = (
    Column("at", "time", "begun", lambda row: row.at),
    Column("user", "text", "who, as the client said", lambda row: row.user),
    Column("source", "text", "ui, notebook, report, api or cli", lambda row: row.source),
    Column("action", "text", "action, or verb on an operation", lambda row: row.action),
    Column("target", "text", "namespace/service", lambda row: row.target),
    Column("outcome", "text", "started, done, failed or refused", lambda row: row.outcome),
    Column("message", "text", "how it ended", lambda row: row.message),
    Column("reason", "text", "why, in the operator's words", lambda row: row.reason),
    Column("operation", "text", "id of the operation", lambda row: row.operation_id),
    Column("plan", "text", "id of the plan", lambda row: row.plan_id),
    Column("plan_hash", "text", "hash of the plan's state and change", lambda row: row.plan_hash),
    Column("ended_at", "time", "ended", lambda row: row.ended_at),
)


@dataclass(frozen=True)
class StepRow:
    """What one step of a plan does to one role."""

    step: int
    role: str
    of: PlanStep


STEPS: tuple[Column[StepRow], ...] = (
    Column("step", "whole", "number, from 1", lambda row: row.step),
    Column("at_s", "number", "seconds after apply", lambda row: row.of.at_s),
    Column("role", "text", "role", lambda row: row.role),
    Column("pods_in", "whole", "pods created", lambda row: row.of.pods_in.get(row.role, 0)),
    Column("pods_out", "whole", "pods deleted", lambda row: row.of.pods_out.get(row.role, 0)),
    Column("ready", "whole", "ready pods after the step", lambda row: row.of.ready.get(row.role, 0)),
    Column("reason", "text", "why", lambda row: row.of.reason),
)

CHANGES: tuple[Column[FieldChange], ...] = (
    Column("field", "text", "path of the field", lambda row: row.path),
    Column("before", "text", "value now, as JSON", lambda row: _json(row.before)),
    Column("after", "text", "value after apply, as JSON", lambda row: _json(row.after)),
)


def _json(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()
