"""Plans and operations as objects to look at: text and HTML from what was answered, without asking anybody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from backend.api.actions import ActionPlan, Operation, OperationState
from workbench import _show, columns

if TYPE_CHECKING:
    import polars


class PlanShown(_show.Shown):
    """What applying would change and cost. `.plan` is the message; `.steps` and `.diff` are tables."""

    template: ClassVar[str] = "plan.html.j2"

    def __init__(self, plan: ActionPlan) -> None:
        self.plan = plan

    @property
    def id(self) -> str:
        return self.plan.id

    @property
    def steps(self) -> polars.DataFrame:
        """One row a step and role; columns as in `workbench.columns.STEPS`."""
        return columns.frame(columns.STEPS, self._step_rows())

    @property
    def diff(self) -> polars.DataFrame:
        """One row a field that changes."""
        return columns.frame(columns.CHANGES, self.plan.diff)

    def df(self) -> polars.DataFrame:
        """As `steps`."""
        return self.steps

    def story(self) -> list[str]:
        """Cost and risk, one sentence each."""
        plan = self.plan
        lines = [f"Risk {plan.risk}: {'confirm with ' + repr(plan.confirm) if plan.confirm else 'no confirmation needed'}."]
        if plan.seconds is not None:
            pods = sum(sum(step.pods_in.values()) for step in plan.steps)
            lines.append(f"About {duration(plan.seconds)} in {len(plan.steps)} steps, {pods} pods are started.")
        if plan.warm_tokens_lost:
            lines.append(f"{plan.warm_tokens_lost:,} cached tokens go with the pods that leave.")
        ratio = plan.pair_ratio
        if ratio is not None and ratio.lowest is not None and ratio.highest is not None:
            lines.append(f"Prefill to decode: {_show.value(ratio.before)} now, {ratio.lowest:.3g} to {ratio.highest:.3g} on the way.")
        return [*lines, *plan.notes]

    def _step_rows(self) -> list[columns.StepRow]:
        return [
            columns.StepRow(number, role, step)
            for number, step in enumerate(self.plan.steps, 1)
            for role in dict.fromkeys([*step.pods_in, *step.pods_out])
        ]

    def _title(self) -> str:
        return f"Plan {self.plan.id}: {self.plan.action} {self.plan.namespace}/{self.plan.service}"

    def _tables(self) -> list[dict[str, Any]]:
        capacity = [[one.role, one.before, one.worst, one.after] for one in self.plan.capacity]
        changes = [[column.read(row) for column in columns.CHANGES] for row in self.plan.diff]
        rows = [[column.read(row) for column in columns.STEPS] for row in self._step_rows()]
        tables = [
            {"title": "Change", "headers": [one.name for one in columns.CHANGES], "rows": changes},
            {"title": "Ready pods", "headers": ["role", "before", "worst", "after"], "rows": capacity},
            {"title": "Steps", "headers": [one.name for one in columns.STEPS], "rows": rows},
        ]
        return [table for table in tables if table["rows"]]

    def __repr__(self) -> str:
        parts = [self._title(), *(f"  {line}" for line in self.story())]
        for table in self._tables():
            parts += ["", _show.text_table(table["headers"], table["rows"])]
        return "\n".join(parts)

    def _facts(self) -> dict[str, Any]:
        tables = [
            {**table, "rows": table["rows"][: _show.ROWS_SHOWN], "more": len(table["rows"]) - _show.ROWS_SHOWN} for table in self._tables()
        ]
        return {"title": self._title(), "note": f"made {_show.age(self.plan.made_at)}", "story": self.story(), "tables": tables}


class OperationShown(_show.Shown):
    """How far an applied plan is, as it was last seen. `.last` is the message."""

    def __init__(self, last: Operation) -> None:
        self.last = last

    @property
    def id(self) -> str:
        return self.last.id

    @property
    def state(self) -> OperationState:
        """As last seen."""
        return self.last.state

    def df(self) -> polars.DataFrame:
        """One row, as last seen; columns as in `workbench.columns.OPERATIONS`."""
        return columns.frame(columns.OPERATIONS, [self.last])

    def _lines(self) -> list[list[object]]:
        last = self.last
        return [
            ["service", f"{last.namespace}/{last.service}"],
            ["change", last.summary or last.action],
            ["state", last.state],
            ["steps", f"{last.steps_done} of {last.steps_total}"],
            ["message", last.message],
            ["possible now", ", ".join(last.verbs) or "nothing"],
        ]

    def __repr__(self) -> str:
        return _show.text_table([f"Operation {self.id}", _show.age(self.last.updated_at)], self._lines())

    def _facts(self) -> dict[str, Any]:
        return {
            "title": f"Operation {self.id}",
            "note": _show.age(self.last.updated_at),
            "headers": ("", ""),
            "rows": self._lines(),
            "more": 0,
            "empty": "",
        }


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(42.4), duration(90), duration(5400)
    ('42 s', '1 min 30 s', '1 h 30 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
