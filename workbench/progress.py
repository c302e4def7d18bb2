"""Progress of something long: a tqdm bar on a terminal, one line that changes in a notebook, plain lines now and then elsewhere.

No ipywidget: those vanish from exported notebooks.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol, TextIO

PLAIN_EVERY_S = 5.0
NOTEBOOK_EVERY_S = 0.25


class Progress(Protocol):
    """`advance` counts finished units; `note` is shown beside them."""

    def __enter__(self) -> Progress: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...
    def advance(self, count: int = 1, note: str = "") -> None: ...


def progress(title: str, total: int | None, *, enabled: bool = True, stream: TextIO | None = None) -> Progress:
    """What fits the place: `total` None when the end is not known."""
    out = sys.stderr if stream is None else stream
    if not enabled:
        return _Silent()
    if stream is None and (display := _notebook_display()) is not None:
        return _Notebook(title, total, display)
    return _Bar(title, total, out) if out.isatty() else _Lines(title, total, out)


def _notebook_display() -> Any:
    """IPython's `display` when a kernel runs us, else None. IPython is not loaded just to ask."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    return display


class _Silent:
    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def advance(self, count: int = 1, note: str = "") -> None:
        return None


class _Bar(_Silent):
    def __init__(self, title: str, total: int | None, out: TextIO) -> None:
        from tqdm import tqdm

        self._bar = tqdm(desc=title, total=total, file=out, dynamic_ncols=True, mininterval=0.1)

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, count: int = 1, note: str = "") -> None:
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)


class _Lines(_Silent):
    """A line every few seconds: logs stay readable."""

    every_s = PLAIN_EVERY_S

    def __init__(self, title: str, total: int | None, out: TextIO) -> None:
        self._title, self._total, self._out = title, total, out
        self._done = 0
        self._note = ""
        self._next = time.monotonic() + self.every_s

    def __exit__(self, *_: object) -> None:
        if self._done:
            self._show()

    def advance(self, count: int = 1, note: str = "") -> None:
        self._done += count
        self._note = note
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self.every_s
            self._show()

    def _line(self) -> str:
        of = f" of {self._total:,}" if self._total is not None else ""
        return f"{self._title}: {self._done:,}{of}{f', {self._note}' if self._note else ''}"

    def _show(self) -> None:
        print(self._line(), file=self._out, flush=True)


class _Notebook(_Lines):
    """One output that is updated in place; an executed notebook keeps its last state."""

    every_s = NOTEBOOK_EVERY_S

    def __init__(self, title: str, total: int | None, display: Any) -> None:
        super().__init__(title, total, sys.stderr)
        self._handle = display(self._bundle(), raw=True, display_id=True)

    def _bundle(self) -> dict[str, str]:
        from workbench import _show

        share = None if not self._total else min(1.0, self._done / self._total)
        return {"text/plain": self._line(), "text/html": _show.render("progress.html.j2", line=self._line(), share=share)}

    def _show(self) -> None:
        self._handle.update(self._bundle(), raw=True)
