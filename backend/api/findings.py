"""What is wrong or degraded, why, and what to do: never a silent fall-back."""

from __future__ import annotations

from typing import Literal

import msgspec

Severity = Literal["info", "warning", "error"]


class Finding(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`id` is stable while the cause lasts, so that a page can update a row instead of adding one."""

    id: str
    severity: Severity
    title: str
    target: str = ""
    """The object concerned: a pod, a process, a file."""
    cause: str = ""
    fix: str = ""
    since: float = 0.0


class FindingPage(msgspec.Struct, kw_only=True):
    """All findings, worst first; they fit one page."""

    items: list[Finding]
    next: str | None = None
