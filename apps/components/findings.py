"""The list of findings: what is wrong, why, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from apps.components.text import escape, plural, state_box
from backend.api.findings import Finding

_SIGNS = {"error": ("✕", "bad", "Error"), "warning": ("▲", "warning", "Warning"), "info": ("ℹ", "muted", "Info")}
SHOWN = 30


def render(findings: Sequence[Finding] | None) -> str:
    if findings is None:
        return state_box(
            "Waiting for the first answer of control", "<span class='muted'>Findings appear as soon as it answers.</span>", sign="…"
        )
    if not findings:
        return state_box(
            "Nothing to report", "<span class='muted'>No pod, event source or process gives reason for concern.</span>", sign="✓"
        )
    ordered = sorted(findings, key=lambda finding: (list(_SIGNS).index(finding.severity), -finding.since, finding.id))
    rest = len(ordered) - SHOWN
    more = f'<p class="muted">and {plural(rest, "more finding")}; the snippet above lists all.</p>' if rest > 0 else ""
    return f'<ul class="findings">{"".join(_one(finding) for finding in ordered[:SHOWN])}</ul>{more}'


def summary(findings: Sequence[Finding] | None) -> str:
    if not findings:
        return ""
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = sum(finding.severity == "warning" for finding in findings)
    return " · ".join([plural(errors, "error")] * bool(errors) + [plural(warnings, "warning")] * bool(warnings)) or "for information only"


def _one(finding: Finding) -> str:
    sign, cls, word = _SIGNS[finding.severity]
    target = f' <span class="muted">· {escape(finding.target)}</span>' if finding.target else ""
    cause = f"<p><b>Cause</b> {escape(finding.cause)}</p>" if finding.cause else ""
    fix = f"<p><b>Fix</b> {escape(finding.fix)}</p>" if finding.fix else ""
    return (
        f'<li><span class="badge {cls}"><span aria-hidden="true">{sign}</span>{word}</span>'
        f"<div><b>{escape(finding.title)}</b>{target}{cause}{fix}</div></li>"
    )
