"""Filters and buttons in the dashboard's look; filters keep their value in the page's address."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import panel as pn

from apps.core.theme import asset

ALL = ""


def one_of(label: str, prompt: str, *, width: int = 220) -> Any:
    """A choice of a form, under its label; its first choice is none, worded by `prompt`."""
    return pn.widgets.Select(label=label, options={prompt: ALL}, value=ALL, width=width, **_look(label))


def field(label: str, placeholder: str = "", *, width: int = 240) -> Any:
    """A line of text of a form, under its label."""
    return pn.widgets.TextInput(label=label, placeholder=placeholder, width=width, **_look(label))


def whole(label: str, value: int, *, width: int = 110) -> Any:
    """A whole number from 0, under its label."""
    return pn.widgets.IntInput(label=label, value=value, start=0, width=width, **_look(label))


def select(label: str, *, width: int = 170) -> Any:
    """A filter whose first choice is "everything"."""
    return pn.widgets.Select(options={f"All {label}": ALL}, value=ALL, width=width, **_look(f"Filter by {label}"))


def search(placeholder: str, *, width: int = 240) -> Any:
    return pn.widgets.TextInput(placeholder=placeholder, width=width, **_look(placeholder))


def button(label: str, on_click: Callable[..., Any], *, primary: bool = False, width: int = 110) -> Any:
    made = pn.widgets.Button(label=label, color="primary" if primary else "default", width=width, **_look())
    made.on_click(on_click)
    return made


def area(placeholder: str, *, rows: int = 5) -> Any:
    """Free text of up to a million characters: long prompts are what one wants to probe."""
    return pn.widgets.TextAreaInput(placeholder=placeholder, rows=rows, max_length=1_000_000, sizing_mode="stretch_width", **_look())


def choose(options: Sequence[str], *, each: int = 60) -> Any:
    """One of a few, as buttons side by side."""
    return pn.widgets.RadioButtonGroup(options=list(options), value=options[0], width=each * len(options) + 20, **_look())


def offer(widget: Any, label: str, values: Sequence[str]) -> None:
    """Bring a select's choices up to date; a value from the address stays, even if nothing has it now."""
    _offer(widget, f"All {label}", values)


def offer_one_of(widget: Any, values: Sequence[str]) -> None:
    """The same for a choice of a form."""
    _offer(widget, next(iter(widget.options)), values)


def _offer(widget: Any, first: str, values: Sequence[str]) -> None:
    wanted = sorted({value for value in (*values, widget.value) if value})
    options = {first: ALL, **{value: value for value in wanted}}
    if list(options) != list(widget.options):
        widget.options = options


def keep_in_address(widgets: dict[str, Any]) -> None:
    """Filters from the address, and back into it when they change: a copied link shows the same rows."""
    location = pn.state.location
    if location is None:
        return
    for name, widget in widgets.items():
        wanted = location.query_params.get(name)
        if wanted is not None and hasattr(widget, "options") and str(wanted) not in widget.options.values():
            widget.options = {**widget.options, str(wanted): str(wanted)}
        if wanted is not None:
            widget.value = str(wanted)
        location.sync(widget, {"value": name})


def _look(aria: str = "") -> dict[str, Any]:
    return {"stylesheets": [asset("input.css")], "margin": (0, 8, 8, 0)} | ({"description": None} if aria else {})
