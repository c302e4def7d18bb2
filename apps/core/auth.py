"""The login in front of every page: Panel's auth provider, the login form, one-time links, and a base class for our own handlers.

Handlers that are added to Bokeh's server are not behind its login by themselves: every one of ours derives from `Behind`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from bokeh.server.auth_provider import AuthProvider
from tornado.web import RequestHandler

from apps.core import shell
from apps.core.credentials import Credentials

COOKIE_DAYS = 1.0
"""A working day; the link or the token gives a new one."""


class Login:
    """The login of one server: its credentials and the name of its cookie (two stacks on one host must not share it)."""

    def __init__(self, credentials: Credentials | None, port: int) -> None:
        self.credentials = credentials
        self.cookie = f"workbench_{port}"

    def user(self, handler: RequestHandler) -> str | None:
        """Who sends this request, by the signed cookie; the local user when no login is asked for."""
        if self.credentials is None:
            return shell.local_user()
        value = handler.get_signed_cookie(self.cookie, max_age_days=COOKIE_DAYS)
        return value.decode() if value else None

    def let_in(self, handler: RequestHandler, user: str) -> None:
        secure = handler.request.protocol == "https"
        handler.set_signed_cookie(self.cookie, user, expires_days=COOKIE_DAYS, httponly=True, samesite="Lax", secure=secure)


class Provider(AuthProvider):
    """What Bokeh asks before it serves a page or accepts a websocket."""

    def __init__(self, login: Login) -> None:
        self._login = login
        super().__init__()

    @property
    def get_user(self) -> Any:
        return self._login.user

    @property
    def get_user_async(self) -> None:
        return None

    @property
    def login_url(self) -> str:
        return "/login"

    @property
    def get_login_url(self) -> None:
        return None

    @property
    def login_handler(self) -> None:
        return None

    @property
    def logout_url(self) -> None:
        return None

    @property
    def logout_handler(self) -> None:
        return None


class Base(RequestHandler):
    """Headers that every answer of ours carries."""

    def initialize(self, login: Login) -> None:
        self.login = login

    def set_default_headers(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("X-Frame-Options", "SAMEORIGIN")


class Behind(Base):
    """A handler that answers 401 to everybody without a valid cookie."""

    def get_current_user(self) -> str | None:
        return self.login.user(self)

    def prepare(self) -> None:
        if not self.current_user:
            self.set_status(401)
            self.finish({"error": {"message": "Log in first.", "type": "Unauthorized"}})


class LoginHandler(Base):
    """GET: the form, or the exchange of a one-time code. POST: token or name and password."""

    def get(self) -> None:
        credentials = self.login.credentials
        if credentials is None or self.login.user(self):
            self.redirect(self._next())
            return
        code = self.get_query_argument("code", "")
        if not code:
            self._form()
        elif not credentials.throttled() and credentials.redeem(code):
            self.login.let_in(self, "operator")
            self.write(shell.entry_page(self._next()))
        else:
            self._form("This link was used before or is too old. `workbench status` prints a new one; or paste the token.", status=401)

    def post(self) -> None:
        credentials = self.login.credentials
        if credentials is None:
            self.redirect(self._next())
            return
        if credentials.throttled():
            self.set_header("Retry-After", "60")
            self._form("Too many wrong tries. Wait a minute.", status=429)
            return
        user = credentials.check(self.get_body_argument("user", ""), self.get_body_argument("secret", ""))
        if user is None:
            self._form("That is not right.", status=401)
            return
        self.login.let_in(self, user)
        self.redirect(self._next())

    def _form(self, error: str = "", *, status: int = 200) -> None:
        credentials = self.login.credentials
        users = credentials is not None and credentials.users is not None
        self.set_status(status)
        self.write(shell.login_page(error=error, next_path=self._next(), xsrf=self.xsrf_form_html(), users=users))

    def _next(self) -> str:
        """Where to go afterwards: only a path of this server."""
        wanted = self.get_argument("next", "/fleet")
        parts = urlsplit(wanted)
        local = wanted.startswith("/") and not wanted.startswith("//") and "\\" not in wanted and not parts.netloc and not parts.scheme
        return wanted if local else "/fleet"


class CodeHandler(Base):
    """POST with the stack's token as bearer: a fresh one-time link. What `workbench up` and `status` print."""

    def check_xsrf_cookie(self) -> None:
        """No cookie counts here: the bearer token is the proof."""

    def post(self) -> None:
        credentials = self.login.credentials
        given = self.request.headers.get("Authorization", "").removeprefix("Bearer ")
        if credentials is None:
            self.write({"path": "/fleet"})
        elif credentials.throttled() or not credentials.is_token(given):
            self.set_status(401)
            self.write({"error": {"message": "Send the stack's token as a bearer token.", "type": "Unauthorized"}})
        else:
            self.write({"path": f"/login?code={credentials.new_code()}"})


class LogoutHandler(Base):
    def get(self) -> None:
        self.clear_cookie(self.login.cookie)
        self.redirect("/login")
