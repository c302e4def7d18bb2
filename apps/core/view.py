"""The base of every page's view, and the one timer of a session that keeps it current.

A view never subscribes to anything long-lived: its session's timer looks at the hub's version and calls `refresh`. When the
session ends, Panel drops the timer and the shell empties the page, so nothing holds the view.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import panel as pn
from panel.io import PeriodicCallback

from apps.components import status
from apps.core.hub import Hub
from apps.core.snapshot import Snapshot
from apps.core.theme import Theme

log = logging.getLogger(__name__)

PERIOD_MS = 500
BEAT_TICKS = 4
"""A sign of life to the browser every two seconds, so that a page whose server died says so by itself."""

LONGEST_BUILD_TICKS = 30
"""A browser that has not said after so many ticks that it is done is taken to be."""


class View:
    """What stands on a page. Subclasses build `self.layout` once and change it in `refresh`."""

    title = ""
    path = ""

    def __init__(self, hub: Hub, theme: Theme) -> None:
        self.hub = hub
        self.theme: Theme = theme
        self.layout: Any = None
        self.user = ""
        """Who looks, as audits name them; the shell says it."""
        hub.views.add(self)

    def refresh(self, snapshot: Snapshot) -> None:
        """Bring the page to `snapshot`; called only when something changed."""
        raise NotImplementedError

    def close(self) -> None:
        """The session has ended."""


class Ticker:
    """A session's timer: status line, then the view when there is something new."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.status = pn.pane.HTML(status.render(view.hub.snapshot().connection, view.hub.clock(), 0), css_classes=["wb-status"], margin=0)
        self._seen = -1
        self._ticks = 0
        self._shown: tuple[str, str] = ("", "")
        self._failure = ""
        self._context: Any = None
        self._building = 0
        # In the background: counting a tick as "busy" and "idle again" takes Panel longer than most ticks.
        self._timer = PeriodicCallback(callback=self.tick, period=PERIOD_MS, background=True)

    def start(self) -> None:
        self._context = pn.state.curdoc.session_context if pn.state.curdoc else None
        self.tick()
        self._timer.start()

    def stop(self) -> None:
        self._timer.stop()

    def tick(self) -> None:
        if self._nobody_looks():
            return
        hub = self.view.hub
        with pn.io.hold():
            snapshot = hub.snapshot()
            if snapshot.version != self._seen:
                self._seen = snapshot.version
                self._refresh(snapshot)
            self._beat(hub)

    def _nobody_looks(self) -> bool:
        """Whether there is nobody to draw for.

        A page that was closed or reloaded keeps its session for a minute, lest a bad network loses it. And a browser that is still
        building the page passes over some of what changes meanwhile (a figure that comes then stays invisible).
        """
        session = getattr(self._context, "session", None)
        if session is None or self._ticks == 0:
            return False
        if session.connection_count == 0:
            return True
        self._building += 0 if pn.state.loaded else 1
        return not pn.state.loaded and self._building < LONGEST_BUILD_TICKS

    def _refresh(self, snapshot: Snapshot) -> None:
        try:
            self.view.refresh(snapshot)
            self._failure = ""
        except Exception:  # the user-interface edge: the page says it, the rest of it stays alive
            self._failure = f"e{os.urandom(4).hex()}"
            log.exception("page %s could not be brought up to date (%s)", self.view.path, self._failure)

    def _beat(self, hub: Hub) -> None:
        self._ticks += 1
        now = hub.clock()
        shown = (hub.connection.shown(now), self._failure)
        if shown != self._shown or self._ticks % BEAT_TICKS == 0:
            self._shown = shown
            self.status.object = status.render(hub.connection, now, self._ticks, failure=self._failure)
