"""The frame around a page, and the life of a session: built once per visitor and page, emptied when the session ends.

A plain template of our own: `panel_material_ui.Page` keeps every closed page with all its views (see docs/dashboard.md), and its
bundle alone is twice as large as everything else that a page loads.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

import panel as pn
from jinja2 import Environment

from apps.core import theme
from apps.core.hub import Hub
from apps.core.view import Ticker, View

PageView = Callable[[Hub, theme.Theme], View]

LINKS = (("fleet", "Fleet"), ("cache", "Cache map"), ("router", "Router"), ("rollouts", "Rollouts"))


def extension() -> None:
    """Load what pages need; once a process, before the first session."""
    import holoviews as hv

    pn.extension("tabulator", notifications=False, defer_load=False, sizing_mode="stretch_width")
    hv.extension("bokeh")


def page(make_view: PageView, hub: Hub, *, user: str, logout: bool) -> pn.Template:
    """One visitor's page: the view in its frame, kept current until the session ends."""
    cookies = pn.state.cookies
    chosen = theme.theme_of(cookies)
    view = make_view(hub, chosen)
    view.user = user
    ticker = Ticker(view)
    template = pn.Template(theme.asset("shell.html.j2"), design=pn.theme.Native, location=True)
    variables = {
        "page_title": view.title,
        "page_name": view.path,
        "page_links": LINKS,
        "page_theme": chosen,
        "theme_chosen": theme.COOKIE in cookies,
        "page_user": user,
        "page_logout": logout,
        "page_css": theme.asset("page.css"),
        "page_js": theme.asset("page.js"),
    }
    for name, value in variables.items():
        template.add_variable(name, value)
    template.add_panel("status", ticker.status)
    template.add_panel("main", view.layout)
    ticker.start()
    _end_with_session(template, ticker)
    return template


def local_user() -> str:
    """Who is named where no login asks: never nobody, since audits show this name."""
    return f"local:{os.environ.get('USER') or os.environ.get('LOGNAME') or os.getuid()}"


def _end_with_session(template: Any, ticker: Ticker) -> None:
    """Empty the page when its session ends. Weak, so that this callback itself keeps nothing."""
    held_template, held_ticker = weakref.ref(template), weakref.ref(ticker)

    def ended(_: object) -> None:
        if (gone := held_ticker()) is not None:
            gone.stop()
            gone.view.close()
            if hasattr(gone.view.layout, "clear"):
                gone.view.layout.clear()
        if (old := held_template()) is not None:
            old._render_variables.clear()

    pn.state.on_session_destroyed(ended)


def login_page(*, error: str, next_path: str, xsrf: str, users: bool) -> str:
    """The login form; the only page without a session."""
    environment = Environment(autoescape=True)
    css = theme.asset("page.css") + theme.asset("login.css")
    return environment.from_string(theme.asset("login.html.j2")).render(css=css, error=error, next=next_path, xsrf=xsrf, users=users)


def entry_page(next_path: str) -> str:
    """What a one-time link shows for a moment: it notes the browser's theme, so that the first page is drawn only once."""
    return Environment(autoescape=True).from_string(theme.asset("enter.html.j2")).render(next=next_path)
