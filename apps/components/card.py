"""The card that everything on a page stands in: title, one line of explanation, "Copy as Python", content."""

from __future__ import annotations

from typing import Any

import panel as pn

from apps.components import snippets
from apps.components.text import escape
from apps.core.theme import asset

BOX = {
    "background": "var(--wb-surface)",
    "border": "1px solid var(--wb-border)",
    "border-radius": "10px",
    "padding": "12px 16px 14px",
}


def block(content: str = "", **params: Any) -> Any:
    """HTML of ours in a shadow root that knows the cards' styles."""
    params.setdefault("sizing_mode", "stretch_width")
    params.setdefault("margin", 0)
    return pn.pane.HTML(content, stylesheets=[asset("part.css")], **params)


class Card:
    """`layout` goes on the page. `note` is the line beside the title and may change at any time."""

    def __init__(self, title: str, snippet: str, *body: Any, note: str = "", margin: Any = (0, 0, 14, 0)) -> None:
        self.title = title
        self.snippet = snippet
        self._head = block(self._render(snippets.code(snippet)))
        self._note = block(_note(note), margin=(0, 0, 8, 0))
        self.layout = pn.Column(self._head, self._note, *body, styles=BOX, sizing_mode="stretch_width", margin=margin)

    @property
    def note(self) -> str:
        return str(self._note.object)

    @note.setter
    def note(self, text: str) -> None:
        new = _note(text)
        if self._note.object != new:
            self._note.object = new

    def fill_snippet(self, **values: str | int | None) -> None:
        """Show the snippet for what the user has chosen."""
        self._head.object = self._render(snippets.code(self.snippet, **values))

    def show_snippet(self, snippet: str, **values: str | int | None) -> None:
        """Show another snippet: the card stands for something else now."""
        self.snippet = snippet
        self.fill_snippet(**values)

    def _render(self, code: str) -> str:
        return (
            f'<div class="head"><h2>{escape(self.title)}</h2><span class="space"></span>'
            f'<button class="copy" type="button" data-copy="{escape(code)}" data-show aria-expanded="false" '
            f'aria-label="Copy as Python: {escape(self.title)}"><span>Copy as Python</span></button></div>'
            f"<pre data-snippet hidden>{escape(code)}</pre>"
        )


def _note(text: str) -> str:
    return f'<div class="note muted">{text}</div>' if text else ""


def set_html(pane: Any, content: str) -> None:
    """Change a block only when it differs: an equal assignment would still cost a message."""
    if pane.object != content:
        pane.object = content
