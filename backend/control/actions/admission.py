"""Whether a plan may be applied and an operation may be told something: every refusal says what to do. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from backend.api.actions import ActionPlan, ApplyRequest, FieldChange, Operation, Verb
from backend.control.actions.model import OperationRecord
from backend.control.actions.progress import verbs
from backend.core.errors import InvalidRequest, StaleState, Unauthorized

BESIDE_OTHERS = ("pause", "resume", "delete")
"""Actions that may begin while another operation is under way on the same service."""
CHANGES_SHOWN = 5


def check_apply(plan: ActionPlan, request: ApplyRequest, now: float) -> None:
    """Raises StaleState for an expired plan, InvalidRequest for a wrong confirmation or a missing reason."""
    if now >= plan.expires_at:
        raise StaleState(
            f"Plan {plan.id} expired {now - plan.expires_at:.0f} s ago.", fix="Plan again: a plan may be applied for five minutes."
        )
    if plan.confirm and request.confirm.strip() != plan.confirm:
        given = f"{request.confirm!r} was given" if request.confirm else "nothing was given"
        raise InvalidRequest(
            f"This plan must be confirmed by its service's name, {plan.confirm!r}; {given}.",
            param="confirm",
            fix=f"Read the plan, then confirm with {plan.confirm}.",
        )
    if plan.reason_required and not (request.reason.strip() or plan.reason.strip()):
        raise InvalidRequest("A plan of high risk needs a reason.", param="reason", fix="Say in a few words why; the audit keeps it.")


def check_fresh(plan: ActionPlan, moved: Sequence[FieldChange], active: Sequence[Operation]) -> None:
    """Raises StaleState when the state has moved since the plan was made, or somebody else is at work on the service."""
    if moved:
        fields = "; ".join(f"{one.path}: {shown(one.before)} > {shown(one.after)}" for one in moved[:CHANGES_SHOWN])
        more = f" and {len(moved) - CHANGES_SHOWN} more" if len(moved) > CHANGES_SHOWN else ""
        raise StaleState(f"Plan {plan.id} is stale, the service has changed since: {fields}{more}.", fix="Plan again and look at it.")
    others = [one for one in active if (one.namespace, one.service) == (plan.namespace, plan.service)]
    if others and plan.action not in BESIDE_OTHERS:
        other = others[0]
        raise StaleState(
            f"{other.action} of {other.namespace}/{other.service} is {other.state} ({other.id}, by {other.by.user or 'unknown'}).",
            fix=f"Wait for it, or `workbench abort {other.id}`.",
        )


def check_repeat(record: OperationRecord, request: ApplyRequest) -> None:
    """Raises StaleState unless the repeated call carries the key of the first one."""
    if not request.key or request.key != record.key:
        raise StaleState(
            f"Plan {record.stored.plan.id} was applied already, as operation {record.operation.id}.",
            fix=f"Look at operation {record.operation.id}, or plan again.",
        )


def check_verb(record: OperationRecord, verb: Verb) -> None:
    """Raises StaleState where the operation cannot be told so in its state."""
    possible = verbs(record)
    if verb not in possible:
        operation = record.operation
        raise StaleState(
            f"Operation {operation.id} ({operation.action}) is {operation.state}: it cannot be told to {verb}.",
            fix=f"Possible now: {', '.join(possible) or 'nothing'}.",
        )


def check_abort(record: OperationRecord, confirm: str) -> None:
    """An abort takes pods away again, so it is confirmed by name. Raises InvalidRequest."""
    if confirm.strip() != record.operation.service:
        raise InvalidRequest(
            f"An abort must be confirmed by the service's name, {record.operation.service!r}.",
            param="confirm",
            fix="It stops the rollout and reverts the spec to what it was before: pods that were replaced are replaced back.",
        )


def check_writable(read_only: bool) -> None:
    """Raises Unauthorized in read-only mode."""
    if read_only:
        raise Unauthorized(
            "This control is read-only: it plans, but changes nothing.", fix="Ask a control that was started without read_only."
        )


def shown(value: object) -> str:
    """A value of a diff, short enough for a sentence."""
    text = "absent" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
