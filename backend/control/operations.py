"""The control API as a table: every path with its parameters and messages. Routes and the OpenAPI document both come from here,
so that neither can have what the other lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from backend.api import actions, cache, decisions, findings, fleet, routes
from backend.control.events import TOPICS

Place = Literal["query", "path"]


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: type
    meaning: str
    place: Place = "query"
    schema: tuple[tuple[str, Any], ...] = ()
    """Bounds and default, in JSON Schema's words."""


@dataclass(frozen=True)
class Operation:
    """`name` is the method that serves it."""

    name: str
    path: str
    summary: str
    response: type | None
    """None: no JSON, but `content`."""
    method: Literal["GET", "POST", "DELETE"] = "GET"
    parameters: tuple[Parameter, ...] = ()
    request: type | None = None
    errors: tuple[int, ...] = (401,)
    content: str = "text/event-stream"
    """Media type of an answer that is no JSON."""


LARGEST_PAGE = 1_000
LARGEST_BINS = 512

_STREAM_NOTE = f"Topics: {', '.join(TOPICS)}. A `{routes.EVENT_RESET}` event means: fetch the snapshots again."

OPERATIONS: tuple[Operation, ...] = (
    Operation("fleet", routes.FLEET, "Every pod, its load, and the traffic of the last minute.", fleet.FleetSnapshot),
    Operation(
        "pod",
        routes.POD,
        "One pod, its load and its newest decisions.",
        decisions.PodDetail,
        parameters=(Parameter("name", str, "The pod's name.", "path"),),
        errors=(401, 404),
    ),
    Operation(
        "cache_map",
        routes.CACHE_MAP,
        "What every pod has cached: pods x buckets of the prefix space.",
        cache.CacheMap,
        parameters=(Parameter("bins", int, "Buckets.", schema=(("minimum", 1), ("maximum", LARGEST_BINS), ("default", 128))),),
        errors=(400, 401, 503),
    ),
    Operation(
        "cache_probe",
        routes.CACHE_PROBE,
        "Which pod holds how much of a prompt.",
        cache.ProbeResult,
        method="POST",
        request=cache.ProbeRequest,
        errors=(400, 401, 503),
    ),
    Operation("cache_sources", routes.CACHE_SOURCES, "The KV event streams that the index follows.", cache.SourcePage, errors=(401, 503)),
    Operation(
        "decisions",
        routes.DECISIONS,
        "Requests and why they went where they went, newest first.",
        decisions.DecisionPage,
        parameters=(
            Parameter("limit", int, "Rows.", schema=(("minimum", 1), ("maximum", LARGEST_PAGE), ("default", 100))),
            Parameter("before", str, "`next` of the page before, or a time in seconds since 1970."),
            Parameter("model", str, "Only this model."),
            Parameter("pod", str, "Only requests that this pod was chosen for."),
            Parameter("policy", str, "Only this routing policy."),
            Parameter("outcome", str, "Only this outcome."),
        ),
        errors=(400, 401, 503),
    ),
    Operation(
        "decision",
        routes.DECISION,
        "One request, by its `request-id`.",
        decisions.DecisionRecord,
        parameters=(Parameter("id", str, "The request's id.", "path"),),
        errors=(401, 404),
    ),
    Operation("findings", routes.FINDINGS, "What is wrong or degraded, why, and what to do.", findings.FindingPage),
    Operation(
        "services",
        routes.SERVICES,
        "Every StormService with its roles.",
        actions.ServicePage,
        errors=(401, 503),
    ),
    Operation(
        "service",
        routes.SERVICE,
        "One StormService, with the object itself.",
        actions.ServiceView,
        parameters=(
            Parameter("namespace", str, "Its namespace.", "path"),
            Parameter("name", str, "Its name.", "path"),
        ),
        errors=(401, 404, 503),
    ),
    Operation(
        "make_plan",
        routes.PLANS,
        "What a change would do and cost. Nothing happens before its plan is applied.",
        actions.ActionPlan,
        method="POST",
        request=actions.PlanRequest,
        errors=(400, 401, 404, 409, 503),
    ),
    Operation(
        "plan",
        routes.PLAN,
        "A plan made earlier.",
        actions.ActionPlan,
        parameters=(Parameter("id", str, "The plan's id.", "path"),),
        errors=(401, 404, 503),
    ),
    Operation(
        "apply",
        routes.APPLY,
        "Apply a plan as it was shown. 409: it expired, or what it rests on has changed, which is named.",
        actions.Operation,
        method="POST",
        parameters=(Parameter("id", str, "The plan's id.", "path"),),
        request=actions.ApplyRequest,
        errors=(400, 401, 404, 409, 503),
    ),
    Operation(
        "operations",
        routes.OPERATIONS,
        "Applied plans, newest first.",
        actions.OperationPage,
        parameters=(
            Parameter("limit", int, "Rows.", schema=(("minimum", 1), ("maximum", LARGEST_PAGE), ("default", 100))),
            Parameter("service", str, "Only of this service, as `namespace/name`."),
        ),
        errors=(400, 401, 503),
    ),
    Operation(
        "operation",
        routes.OPERATION,
        "How far an operation is.",
        actions.Operation,
        parameters=(Parameter("id", str, "The operation's id.", "path"),),
        errors=(401, 404, 503),
    ),
    *(
        Operation(
            name,
            path,
            summary,
            answer,
            method="POST",
            parameters=(Parameter("id", str, "The operation's id.", "path"),),
            request=actions.VerbRequest,
            errors=(400, 401, 404, 409, 503),
        )
        for name, path, summary, answer in (
            ("abort", routes.OPERATION_ABORT, "Stop the rollout and revert the spec to what it was before.", actions.Operation),
            ("pause", routes.OPERATION_PAUSE, "Begin nothing new until resumed.", actions.Operation),
            ("resume", routes.OPERATION_RESUME, "Go on.", actions.Operation),
            ("undo", routes.OPERATION_UNDO, "The plan of the way back, to be applied as any other.", actions.ActionPlan),
        )
    ),
    Operation(
        "audit",
        routes.AUDIT,
        "Who did what, and what became of it; newest first.",
        actions.AuditPage,
        parameters=(
            Parameter("limit", int, "Rows.", schema=(("minimum", 1), ("maximum", LARGEST_PAGE), ("default", 100))),
            Parameter("before", str, "`next` of the page before."),
        ),
        errors=(400, 401, 503),
    ),
    Operation(
        "stream",
        routes.STREAM,
        f"Changes as server-sent events. {_STREAM_NOTE}",
        None,
        parameters=(
            Parameter("since", int, "Version of the last event seen (or the header Last-Event-ID)."),
            Parameter("topics", str, "Comma-separated; all when empty."),
        ),
        errors=(400, 401),
    ),
)

_REASONS = {
    400: "The request is wrong.",
    401: "The token is missing or wrong.",
    404: "No such object.",
    409: "There is one already, or what was decided on has changed since.",
    503: "A part does not answer.",
}


class ErrorBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What went wrong, on what, and what to do."""

    message: str
    type: str
    fix: str = ""


class ErrorAnswer(msgspec.Struct, kw_only=True):
    error: ErrorBody


def openapi(version: str, operations: Sequence[Operation] = OPERATIONS) -> dict[str, Any]:
    """The document of `/openapi.json`."""
    named = [one for operation in operations for one in (operation.response, operation.request) if one is not None] + [ErrorAnswer]
    _, components = msgspec.json.schema_components(
        list(dict.fromkeys(named)), schema_hook=_anything, ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Workbench control API", "version": version},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
    }


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [_parameter(parameter) for parameter in operation.parameters],
        "responses": {
            "200": {
                "description": "The answer.",
                "content": {operation.content: {"schema": {"type": "string"}}}
                if operation.response is None
                else {"application/json": {"schema": _reference(operation.response)}},
            },
            **{
                str(status): {"description": _REASONS[status], "content": {"application/json": {"schema": _reference(ErrorAnswer)}}}
                for status in operation.errors
            },
        },
    }
    if operation.request is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": _reference(operation.request)}}}
    return described


def _parameter(parameter: Parameter) -> dict[str, Any]:
    kind = {int: "integer", str: "string"}[parameter.kind]
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.meaning,
        "schema": {"type": kind, **dict(parameter.schema)},
    }


def _reference(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _anything(_: type) -> dict[str, Any]:
    """Schema of `object`: chat messages are the engine's business, they are passed on as they come."""
    return {"description": "Any JSON value."}
