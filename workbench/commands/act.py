"""`workbench plan apply pause resume abort undo scale`: the Action pipeline from a terminal. Nothing is changed without a plan."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from workbench.commands import _output
from workbench.commands.look import connect
from workbench.errors import OperationFailed, UsageError

if TYPE_CHECKING:
    from workbench.acting import OperationHandle, Plan
    from workbench.sync import Workbench

OPERATION = "op-"
"""What ids of operations begin with; anything else names a service."""


def run(arguments: argparse.Namespace) -> int:
    with connect(arguments) as workbench:
        workbench.services.source = "cli"
        return int(_COMMANDS[arguments.command](workbench, arguments))


def plan(workbench: Workbench, arguments: argparse.Namespace) -> int:
    made = _made(workbench, arguments)
    _output.show(arguments, made.plan, f"{made!r}\n\n{_how_to_apply(made)}")
    return 0


def apply(workbench: Workbench, arguments: argparse.Namespace) -> int:
    return _apply(workbench.plan(arguments.plan), arguments)


def scale(workbench: Workbench, arguments: argparse.Namespace) -> int:
    return _apply(_scale(workbench, arguments), arguments)


def pause(workbench: Workbench, arguments: argparse.Namespace) -> int:
    """Of an operation, or of a service."""
    if arguments.target.startswith(OPERATION):
        told = workbench.operation(arguments.target)
        return _show(told.pause(reason=arguments.reason), arguments)
    return _apply(workbench.service(arguments.target).plan_pause(reason=arguments.reason), arguments)


def resume(workbench: Workbench, arguments: argparse.Namespace) -> int:
    """Of an operation, or of a service."""
    if arguments.target.startswith(OPERATION):
        return _follow(workbench.operation(arguments.target).resume(reason=arguments.reason), arguments)
    return _apply(workbench.service(arguments.target).plan_resume(reason=arguments.reason), arguments)


def abort(workbench: Workbench, arguments: argparse.Namespace) -> int:
    told = workbench.operation(arguments.operation)
    says = "This stops the rollout and reverts the spec: pods that were replaced are replaced back."
    confirm = arguments.confirm or _typed(told.last.service, f"{told!r}\n{says}")
    return _follow(told.abort(confirm, reason=arguments.reason), arguments)


def undo(workbench: Workbench, arguments: argparse.Namespace) -> int:
    return _apply(workbench.operation(arguments.operation).undo(reason=arguments.reason), arguments)


def _made(workbench: Workbench, arguments: argparse.Namespace) -> Plan:
    if arguments.action == "show":
        return workbench.plan(arguments.plan)
    if arguments.action == "create":
        return workbench.services.plan_create(arguments.file, reason=arguments.reason)
    if arguments.action == "scale":
        return _scale(workbench, arguments)
    service = workbench.service(arguments.service)
    if arguments.action == "set-image":
        return service.plan_upgrade(arguments.image, role=arguments.role, container=arguments.container, reason=arguments.reason)
    plans = {"delete": service.plan_delete, "pause": service.plan_pause, "resume": service.plan_resume}
    return plans[arguments.action](reason=arguments.reason)


def _scale(workbench: Workbench, arguments: argparse.Namespace) -> Plan:
    return workbench.service(arguments.service).plan_scale(arguments.replicas, role=arguments.role, reason=arguments.reason)


def _apply(made: Plan, arguments: argparse.Namespace) -> int:
    confirm = arguments.confirm
    if made.plan.confirm and not confirm:
        confirm = _typed(made.plan.confirm, f"{made!r}", otherwise=_how_to_apply(made))
    return _follow(made.apply(confirm, reason=arguments.reason), arguments)


def _follow(operation: OperationHandle, arguments: argparse.Namespace) -> int:
    """Wait for the end unless told otherwise; 1 when it did not come to a good one."""
    if arguments.no_wait:
        return _show(operation, arguments)
    try:
        operation.wait(progress=not arguments.json)
    except OperationFailed as error:
        _show(operation, arguments)
        print(f"workbench: {error}", file=sys.stderr)
        return 1
    return _show(operation, arguments)


def _show(operation: OperationHandle, arguments: argparse.Namespace) -> int:
    _output.show(arguments, operation.last, repr(operation))
    return 0


def _typed(wanted: str, shown: str, *, otherwise: str = "") -> str:
    """What the operator types on a terminal after seeing what it is about. Raises UsageError where nobody can."""
    if not sys.stdin.isatty():
        raise UsageError(f"This must be confirmed with {wanted!r}.", fix=otherwise or f"Pass --confirm {wanted}.")
    print(shown, file=sys.stderr)
    print(f"Type {wanted} to go on: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


def _how_to_apply(made: Plan) -> str:
    confirm = f" --confirm {made.plan.confirm}" if made.plan.confirm else ""
    reason = " --reason WHY" if made.plan.reason_required and not made.plan.reason else ""
    return f"Apply it within five minutes: workbench apply {made.id}{confirm}{reason}"


_COMMANDS: dict[str, Any] = {
    "plan": plan,
    "apply": apply,
    "scale": scale,
    "pause": pause,
    "resume": resume,
    "abort": abort,
    "undo": undo,
}
