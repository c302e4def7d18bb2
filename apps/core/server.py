"""One Bokeh server with the pages, the login and a few handlers of ours, in a running event loop."""

from __future__ import annotations

import gc
from typing import Any
from urllib.parse import urlencode

import panel as pn
from tornado.web import RequestHandler

from apps import pages
from apps.core import shell
from apps.core.auth import Behind, CodeHandler, Login, LoginHandler, LogoutHandler, Provider
from apps.core.credentials import Credentials, read_users
from apps.core.feed import read_token
from apps.core.hub import FeedLost, Hub
from apps.core.options import Options
from workbench.errors import ConfigError, PortInUse

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def credentials_of(options: Options) -> Credentials | None:
    """Credentials for the chosen way of logging in; None where none is asked for. Raises ConfigError."""
    if options.auth == "none":
        if options.host not in LOOPBACK:
            raise ConfigError(f"`none` is for loopback only, not for {options.host}", field="auth", fix='Choose auth = "token" or "basic".')
        return None
    if options.auth == "basic":
        if options.users_file is None:
            raise ConfigError("`basic` needs a users file", field="users_file", fix="Name a JSON file of names and password hashes.")
        return Credentials(users=read_users(options.users_file))
    if options.token_file is None:
        raise ConfigError("`token` needs a token file", field="token_file", fix="Name the stack's token file, or choose another `auth`.")
    try:
        token = read_token(options.token_file)
    except FeedLost as error:
        raise ConfigError(str(error), file=str(options.token_file), field="token_file", fix="`workbench up` makes it.") from error
    if not token:
        raise ConfigError("is empty", file=str(options.token_file), field="token_file")
    return Credentials(token=token)


def make_server(options: Options, hub: Hub) -> Any:
    """A started server in the current event loop. Raises PortInUse and ConfigError."""
    credentials = credentials_of(options)
    login = Login(credentials, options.port)
    shell.extension()
    settings: dict[str, Any] = {
        "port": options.port,
        "address": options.host,
        "websocket_origin": sorted({f"{host}:{options.port}" for host in ("127.0.0.1", "localhost", options.host)} | set(options.origins)),
        "title": "Workbench",
        "admin": False,
        "use_index": False,
        "extra_patterns": _handlers(login, hub),
        "unused_session_lifetime_milliseconds": options.unused_session_ms,
        "check_unused_sessions_milliseconds": min(5000, options.unused_session_ms),
        "keep_alive_milliseconds": 10_000,
    }
    if credentials is not None:
        settings |= {"auth_provider": Provider(login), "xsrf_cookies": True, "cookie_secret": credentials.cookie_secret()}
    try:
        server = pn.io.server.get_server({f"/{name}": _builder(name, hub, login) for name in pages.VIEWS}, **settings)
    except OSError as error:
        raise PortInUse(options.host, options.port, what="the dashboard") from error
    _load_less(server._tornado)
    server.start()
    return server


def _load_less(application: Any) -> None:
    """Pages ask for the parts of BokehJS that they use: two thirds of the bytes would be formulas (MathJax) and WebGL."""
    make = application.resources

    def resources(absolute_url: str | bool | None = None) -> Any:
        return make(absolute_url).clone(components=["bokeh", "bokeh-widgets", "bokeh-tables"])

    application.resources = resources


def _builder(name: str, hub: Hub, login: Login) -> Any:
    def build() -> Any:
        request = pn.state.curdoc.session_context.request
        user = _user_of(request, login)
        return shell.page(pages.VIEWS[name], hub, user=user, logout=login.credentials is not None)

    return build


def _user_of(request: Any, login: Login) -> str:
    """The name in the signed cookie; Bokeh has already checked that there is one."""
    if login.credentials is None:
        return shell.local_user()
    from tornado.web import decode_signed_value

    value = decode_signed_value(login.credentials.cookie_secret(), login.cookie, request.cookies.get(login.cookie, ""))
    return value.decode() if value else "unknown"


def _handlers(login: Login, hub: Hub) -> list[tuple[str, type[RequestHandler], dict[str, object]]]:
    known: dict[str, object] = {"login": login}
    return [
        (r"/", Home, known),
        (r"/login", LoginHandler, known),
        (r"/login/code", CodeHandler, known),
        (r"/logout", LogoutHandler, known),
        (r"/healthz", Health, {}),
        (r"/debug/views", Debug, {**known, "hub": hub}),
    ]


class Home(Behind):
    """`/`: to the first page, by way of the login."""

    def prepare(self) -> None:
        self.redirect("/fleet" if self.current_user else "/login?" + urlencode({"next": "/fleet"}))


class Health(RequestHandler):
    """Liveness: this process serves. Says nothing of the fleet, so it needs no login."""

    def get(self) -> None:
        self.write({"status": "ok"})


class Debug(Behind):
    """Live views and sessions of this process, after a full collection: what a soak test compares."""

    def initialize(self, login: Login, hub: Hub | None = None) -> None:
        super().initialize(login)
        self.hub = hub

    def get(self) -> None:
        gc.collect()
        gc.collect()
        names: dict[str, int] = {}
        for view in self.hub.views if self.hub else ():
            names[type(view).__name__] = names.get(type(view).__name__, 0) + 1
        templates = sum(isinstance(thing, pn.template.base.BaseTemplate) for thing in gc.get_objects())
        self.write({"views": names, "templates": templates, "sessions": len(pn.state.session_info["sessions"])})
