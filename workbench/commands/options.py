"""Options of the commands that act. Kept apart from what they do, so that `--help` imports nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

Add = Callable[[str, str], argparse.ArgumentParser]
"""Name and one-line text in, a command with the options of every command out."""


def add_acting(add: Add, whole: Callable[[str], int]) -> None:
    """`plan apply scale pause resume abort undo`. `whole` reads a number that is not negative."""
    _plan(add, whole)
    apply = add("apply", "Apply a plan as it was shown, and wait for its end.")
    apply.add_argument("plan", metavar="PLAN_ID")
    _acts(apply)
    scale = add("scale", "Plan another size of a service or role, apply it, and wait for its end.")
    _scale(scale, whole)
    _acts(scale)
    for name, text in (
        ("pause", "Begin nothing new: of an operation, or of a service."),
        ("resume", "Go on: of an operation, or of a service."),
    ):
        command = add(name, text)
        command.add_argument("target", metavar="OPERATION_ID|SERVICE")
        _acts(command)
    for name, text in (
        ("abort", "Stop an operation and revert the spec to what it was before."),
        ("undo", "Plan the way back of an operation, apply it, and wait for its end."),
    ):
        command = add(name, text)
        command.add_argument("operation", metavar="OPERATION_ID")
        _acts(command)


def _plan(add: Add, whole: Callable[[str], int]) -> None:
    plan = add("plan", "Show what a change would do and cost. Nothing happens before it is applied.")
    kinds = plan.add_subparsers(title="changes", required=True, metavar="CHANGE", dest="action")
    create = kinds.add_parser("create", help="a new service")
    create.add_argument("-f", "--file", type=Path, required=True, metavar="FILE", help="YAML or JSON file with one StormService")
    set_image = kinds.add_parser("set-image", help="another image, of one role or of all")
    set_image.add_argument("service", metavar="SERVICE", help="name or namespace/name")
    set_image.add_argument("--image", required=True)
    set_image.add_argument("--role", default="", help="only this role")
    set_image.add_argument("--container", default="", help="container, where a role has several")
    _scale(kinds.add_parser("scale", help="another number of a role's instances, or of RoleSets"), whole)
    for name, text in (("delete", "the end of a service"), ("pause", "nothing new begins"), ("resume", "a paused rollout goes on")):
        kinds.add_parser(name, help=text).add_argument("service", metavar="SERVICE", help="name or namespace/name")
    kinds.add_parser("show", help="a plan made earlier").add_argument("plan", metavar="PLAN_ID")
    for kind in kinds.choices.values():
        _common(kind)


def _scale(command: argparse.ArgumentParser, whole: Callable[[str], int]) -> None:
    command.add_argument("service", metavar="SERVICE", help="name or namespace/name")
    command.add_argument("--replicas", type=whole, required=True, metavar="N")
    command.add_argument("--role", default="", help="the role to size (default: the number of RoleSets)")


def _acts(command: argparse.ArgumentParser) -> None:
    command.add_argument("--confirm", default="", metavar="NAME", help="what the plan asks to be typed; asked for on a terminal")
    command.add_argument("--no-wait", action="store_true", help="do not wait for the end")
    _common(command)


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--reason", default="", help="why; kept by the audit, needed at high risk")
    command.add_argument("--url", default="", help="control API's address (default: the running stack's)")
    command.add_argument("--token", help="its bearer token (default: the state folder's, or $WORKBENCH_TOKEN)")
    command.add_argument("--json", action="store_true", help="print JSON")
