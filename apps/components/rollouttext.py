"""The rollouts page in words and small tables: a plan, an operation and its steps, empty and error states. Pure."""

from __future__ import annotations

import msgspec

from apps.components import kpi
from apps.components.text import NONE, clock, count, escape, html_table, plural, state_box
from backend.api.actions import ActionPlan, Operation, PlanStep, RoleCapacity, ServiceView
from workbench.planned import PlanShown, duration

STEPS_SHOWN = 100
_RISK_TONES = {"low": "", "medium": "warn", "high": "bad"}
_STATE_TONES = {"failed": "bad", "aborting": "warn", "aborted": "warn", "paused": "warn"}

NOTHING_PLANNED = state_box(
    "No plan yet",
    "<span class='muted'>Choose a service and a change, then ask for the plan. Nothing happens before you apply it.</span>",
)
NO_OPERATION = state_box("No operation yet", "<span class='muted'>An applied plan is followed here, step by step.</span>")
NO_OPERATIONS = state_box("Nothing was applied yet", "<span class='muted'>Every applied plan is listed here, whoever applied it.</span>")
NO_SERVICES = state_box(
    "No StormServices",
    "<span class='muted'>The cluster holds none. <code>workbench up --fleet FILE.yaml</code> with a StormService, or "
    "<code>wb.services.plan_create(FILE)</code>, makes one.</span>",
)
NO_AUDIT = state_box("Nothing was done yet", "<span class='muted'>Every plan that is applied, and every verb, leaves a record here.</span>")


def waiting() -> str:
    return state_box("Waiting for the services", "<span class='muted'>Control has not answered yet.</span>", sign="…")


def trouble(title: str, reason: str, fix: str = "") -> str:
    """What went wrong, in control's words, and what to do about it."""
    advice = f"<p><b>Fix</b> {escape(fix)}</p>" if fix else ""
    return state_box(title, f"<span class='muted'>{escape(reason)}</span>{advice}", kind="error", sign="✕")


def service_state(service: ServiceView) -> str:
    """One word; also the class that colours it in a table."""
    if service.operation or any(role.updated < role.wanted for role in service.roles):
        return "paused" if service.paused else "updating"
    if service.paused:
        return "paused"
    return "ready" if service.ready else "unready"


def plan(shown: ActionPlan) -> str:
    """All that applying would change and cost."""
    parts = [kpi.render(_figures(shown)), f'<p class="sentence">{escape(" ".join(PlanShown(shown).story()))}</p>']
    if shown.diff:
        changes = [[f"<code>{escape(one.path)}</code>", _value(one.before), _value(one.after)] for one in shown.diff]
        parts.append(_titled("Change", html_table([("Field", ""), ("Before", "mono"), ("After", "mono")], changes)))
    if shown.capacity:
        parts.append(_titled("Ready pods", _capacity(shown.capacity)))
    if shown.steps:
        parts.append(_titled("Steps", steps(shown.steps)))
    return "".join(parts)


def steps(of_plan: list[PlanStep], done: int | None = None, *, active: bool = False) -> str:
    """Steps one below the other; with `done` also how far they are."""
    rows, classes = [], []
    for number, step in enumerate(of_plan[:STEPS_SHOWN], 1):
        cells = [str(number), f"{step.at_s:.1f} s", _moves(step), _counts(step.ready), escape(step.reason)]
        rows.append(cells if done is None else [_mark(number, done, active), *cells])
        classes.append("chosen" if active and done is not None and number == done + 1 else "")
    headers = [("Step", "r"), ("After", "r"), ("Pods", "mono"), ("Ready then", "mono"), ("Why", "")]
    more = f"<p class='muted'>and {plural(len(of_plan) - STEPS_SHOWN, 'more step')}</p>" if len(of_plan) > STEPS_SHOWN else ""
    table = html_table(headers if done is None else [("", ""), *headers], rows, row_classes=classes)
    return f'<div class="scroll">{table}</div>{more}'


def operation(shown: Operation, planned: ActionPlan | None) -> str:
    """How far it is; its steps where its plan is still kept."""
    # An age would stand still between two changes: what runs shows its begin.
    length = kpi.Kpi("Begun", clock(shown.started_at)[:-4], "UTC")
    if not shown.active:
        length = kpi.Kpi("Took", duration(max(0.0, (shown.ended_at or shown.updated_at) - shown.started_at)))
    figures = [
        kpi.Kpi("State", shown.state, sub=shown.message, tone=_STATE_TONES.get(shown.state, "")),
        kpi.Kpi("Steps", f"{shown.steps_done}/{shown.steps_total}", sub="of the plan"),
        length,
        kpi.Kpi("Risk", shown.risk, tone=_RISK_TONES[shown.risk]),
    ]
    who = f" by {shown.by.user} ({shown.by.source})" if shown.by.user else ""
    why = f", because: {shown.reason}" if shown.reason else ""
    sentence = f"{shown.summary or shown.action} of {shown.namespace}/{shown.service}{who}{why}."
    message = f'<p class="sentence">{escape(sentence)} <b>{escape(shown.message)}</b></p>'
    below = _titled("Steps", steps(planned.steps, shown.steps_done, active=shown.active)) if planned and planned.steps else ""
    return kpi.render(figures) + message + below


def _figures(shown: ActionPlan) -> list[kpi.Kpi]:
    started = sum(sum(step.pods_in.values()) for step in shown.steps)
    worst = min(shown.capacity, key=lambda one: one.worst - one.before, default=None)
    confirm = f"confirm with {shown.confirm}" if shown.confirm else "a button is enough"
    tokens = "the index does not say" if shown.warm_tokens_lost is None else "in pods that leave"
    length = kpi.Kpi("Duration", NONE, sub="it does not end", tone="bad")
    if shown.seconds is not None:
        length = kpi.Kpi("Duration", duration(shown.seconds), sub="estimated")
    figures = [
        kpi.Kpi("Risk", shown.risk, sub=confirm, tone=_RISK_TONES[shown.risk]),
        length,
        kpi.Kpi("Steps", str(len(shown.steps)), sub=f"{plural(started, 'pod')} started"),
        kpi.Kpi("Warm tokens lost", count(shown.warm_tokens_lost), sub=tokens),
    ]
    if worst is not None:
        figures.append(kpi.Kpi("Worst capacity", f"{worst.worst}/{worst.before}", "ready", worst.role, tone=_capacity_tone(worst)))
    return figures


def _capacity(roles: list[RoleCapacity]) -> str:
    signs = {"": "✓ never fewer", "warn": "▼ fewer than now", "bad": "✕ none ready"}
    css = {"": "good", "warn": "warning", "bad": "bad"}
    rows = [
        [
            escape(one.role),
            str(one.before),
            f'<span class="badge {css[_capacity_tone(one)]}">{one.worst}</span>',
            str(one.after),
            f'<span class="badge {css[_capacity_tone(one)]}">{signs[_capacity_tone(one)]}</span>',
        ]
        for one in roles
    ]
    fewest = min(one.worst - one.before for one in roles)
    classes = ["chosen" if fewest < 0 and one.worst - one.before == fewest else "" for one in roles]
    return html_table([("Role", "mono"), ("Now", "r"), ("Worst", "r"), ("After", "r"), ("On the way", "")], rows, row_classes=classes)


def _capacity_tone(one: RoleCapacity) -> str:
    if one.worst >= one.before:
        return ""
    return "warn" if one.worst else "bad"


def _moves(step: PlanStep) -> str:
    roles = dict.fromkeys([*step.pods_out, *step.pods_in])
    return ", ".join(" ".join([escape(role), *_signed(step, role)]) for role in roles) or NONE


def _signed(step: PlanStep, role: str) -> list[str]:
    created, deleted = step.pods_in.get(role, 0), step.pods_out.get(role, 0)
    return [f"+{created}"] * bool(created) + [f"-{deleted}"] * bool(deleted)


def _counts(ready: dict[str, int]) -> str:
    return escape(", ".join(f"{role} {number}" for role, number in ready.items())) or NONE


def _mark(number: int, done: int, active: bool) -> str:
    if number <= done:
        return '<span class="good" title="done">✓</span>'
    return '<span title="under way">◐</span>' if active and number == done + 1 else '<span class="muted" title="not yet">○</span>'


def _value(value: object) -> str:
    if value is None:
        return f'<span class="muted">{NONE}</span>'
    return escape(value if isinstance(value, str) else msgspec.json.encode(value).decode())


def _titled(title: str, table: str) -> str:
    return f'<p class="sub-title">{escape(title)}</p>{table}'
