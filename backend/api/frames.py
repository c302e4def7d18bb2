"""Decisions as a table: the one place that knows its columns, used by the history's files and by notebooks alike.

Units are the last word of a column's name; times are UTC with microseconds. Pure functions; polars (45 MB) is imported at the
first call, so that a process which only passes records on never pays for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from backend.api.decisions import DecisionRecord, PrefillChoice

if TYPE_CHECKING:
    import polars as pl

CHUNK_ROWS = 5_000
"""Rows turned into columns at a time: bounds the Python lists that stand beside the finished table."""


NAN = float("nan")


class Column(NamedTuple):
    """`kind` is a key of `_types`; `meaning` is for people."""

    name: str
    kind: str
    meaning: str


DECISION_COLUMNS: tuple[Column, ...] = (
    Column("id", "text", "Request id; unique."),
    Column("at", "time", "Arrival at the gateway, UTC."),
    Column("model", "text", "Model asked for."),
    Column("path", "text", "Path of the request."),
    Column("stream", "flag", "Whether the client asked for a stream."),
    Column("user", "text", "The client's `user` header; empty without."),
    Column("worker", "count", "Gateway worker that served it."),
    Column("policy", "text", "Routing policy."),
    Column("reason", "text", "Why the policy chose so."),
    Column("candidates", "texts", "Pods that could be chosen."),
    Column("terms", "terms", "Score terms; values in the order of `candidates`."),
    Column("chosen", "text", "Pod chosen; empty when none was."),
    Column("pod_ip", "text", "Its address."),
    Column("attempts", "texts", "Pods that failed before `chosen`."),
    Column("prompt_tokens", "count", "Counted before routing; 0 when not tokenized."),
    Column("block_size", "count", "Tokens a KV block of the chosen pod; 0 when unknown."),
    Column("predicted_tokens", "maybe_count", "Prefix hit promised by the index; null when no index was asked."),
    Column("index_state", "text", "live, stale or absent."),
    Column("in_flight", "count", "Requests on the chosen pod when it was chosen."),
    Column("status", "count", "HTTP status that the client saw; 0 when it left before."),
    Column("outcome", "text", "ok, or what went wrong."),
    Column("error", "text", "The error's message."),
    Column("cached_tokens", "maybe_count", "Prefix hit that the engine reported."),
    Column("usage_prompt_tokens", "maybe_count", "Prompt tokens that the engine reported."),
    Column("completion_tokens", "maybe_count", "Tokens made."),
    Column("hit_class", "text", "How the promise compares with the engine's report."),
    Column("decide_ms", "number", "Request read to pod chosen."),
    Column("connect_ms", "number", "Time to connect."),
    Column("ttft_ms", "number", "Forwarding to first token; null without an answer."),
    Column("itl_ms", "number", "Mean gap between tokens of a stream."),
    Column("total_ms", "number", "Arrival to last byte."),
    Column("request_bytes", "count", "Size of the request."),
    Column("response_bytes", "count", "Size of the answer."),
    Column("prefill", "prefill", "Choice of the pod that computed the prompt; null when one pod did all."),
)


PREFILL_FIELDS: dict[str, type] = {
    "chosen": str,
    "pod_ip": str,
    "group": str,
    "candidates": list,
    "groups": list,
    "decode_groups": list,
    "terms": dict,
    "attempts": list,
    "in_flight": int,
    "wait_ms": float,
    "error": str,
}
"""Fields of the column `prefill`, with what they are in a PrefillChoice."""


def decisions_schema() -> pl.Schema:
    """Column names and polars types, in order."""
    import polars as pl

    types = _types()
    return pl.Schema({column.name: types[column.kind] for column in DECISION_COLUMNS})


def decisions_frame(records: Iterable[DecisionRecord]) -> pl.DataFrame:
    """One row a record, in the given order; no records give an empty table with all columns."""
    import polars as pl

    schema = decisions_schema()
    parts: list[pl.DataFrame] = []
    chunk: list[DecisionRecord] = []
    for record in records:
        chunk.append(record)
        if len(chunk) == CHUNK_ROWS:
            parts.append(_frame(chunk, schema))
            chunk = []
    if chunk or not parts:
        parts.append(_frame(chunk, schema))
    return parts[0] if len(parts) == 1 else pl.concat(parts)


def decision_records(frame: pl.DataFrame) -> list[DecisionRecord]:
    """The records that `decisions_frame` made `frame` from; columns that an older file lacks get the record's defaults."""
    names = [column for column in DECISION_COLUMNS if column.name in frame.columns]
    columns = [_values(frame, column) for column in names]
    fields = [column.name for column in names]
    return [DecisionRecord(**dict(zip(fields, row, strict=True))) for row in zip(*columns, strict=True)]


def microseconds(seconds: float) -> int:
    """`at` as the table keeps it; ordering and paging use this, so that a row sorts alike in memory and in a file."""
    return round(seconds * 1e6)


def _types() -> dict[str, pl.DataType]:
    import polars as pl

    terms = pl.List(pl.Struct({"term": pl.String(), "values": pl.List(pl.Float64())}))
    texts = pl.List(pl.String())
    kinds: dict[type, pl.DataType] = {str: pl.String(), int: pl.Int64(), float: pl.Float64(), list: texts, dict: terms}
    return {
        "text": pl.String(),
        "time": pl.Datetime("us", "UTC"),
        "flag": pl.Boolean(),
        "count": pl.Int64(),
        "maybe_count": pl.Int64(),
        "number": pl.Float64(),
        "texts": texts,
        "terms": terms,
        "prefill": pl.Struct({name: kinds[kind] for name, kind in PREFILL_FIELDS.items()}),
    }


def _frame(records: Sequence[DecisionRecord], schema: pl.Schema) -> pl.DataFrame:
    import polars as pl

    columns = []
    for column in DECISION_COLUMNS:
        values: list[Any] = [getattr(record, column.name) for record in records]
        kind = schema[column.name]
        if column.kind == "time":
            columns.append(pl.Series(column.name, map(microseconds, values), dtype=pl.Int64()).cast(kind))
        elif column.kind in _NESTED:
            # By way of JSON: polars builds nested values row by row in Python, 25 times slower.
            nested = [None if value is None else _encode(_NESTED[column.kind](value)) for value in values]
            columns.append(pl.Series(column.name, nested, dtype=pl.String()).str.json_decode(kind))
        else:
            columns.append(pl.Series(column.name, values, dtype=kind))
    return pl.DataFrame(columns)


def _listed(terms: dict[str, list[float]]) -> list[dict[str, object]]:
    return [{"term": name, "values": values} for name, values in terms.items()]


def _unlisted(terms: Sequence[dict[str, Any]] | None) -> dict[str, list[float]]:
    """A term that is no number (JSON has neither NaN nor infinity) is null in the table."""
    return {term["term"]: [NAN if value is None else value for value in term["values"]] for term in terms or ()}


def _prefill_row(prefill: PrefillChoice) -> dict[str, object]:
    return {**{name: getattr(prefill, name) for name in PREFILL_FIELDS}, "terms": _listed(prefill.terms)}


def _prefill_of(row: dict[str, Any] | None) -> PrefillChoice | None:
    if row is None:
        return None
    return PrefillChoice(**{**row, "terms": _unlisted(row["terms"])})


_NESTED: dict[str, Callable[[Any], object]] = {"texts": list, "terms": _listed, "prefill": _prefill_row}


def _encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _values(frame: pl.DataFrame, column: Column) -> list[Any]:
    import polars as pl

    series = frame[column.name]
    if column.kind == "time":
        return [value / 1e6 for value in series.cast(pl.Int64).to_list()]
    if column.kind == "terms":
        return [_unlisted(row) for row in series.to_list()]
    if column.kind == "prefill":
        return [_prefill_of(row) for row in series.to_list()]
    return series.to_list()
