"""The server's doors: every route asks for the login, whatever is added; wrong tries are counted; who may not listen where."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from apps.core import credentials, server
from apps.core.feed import ControlFeed
from apps.core.hub import Hub
from apps.core.options import Options
from workbench.errors import ConfigError, PortInUse

TOKEN = "the-token"
OPEN = {"/healthz", "/login"}
LIBRARY_FILES = ("/static/", "/favicon.ico", "/components/", "/fleet/static/", "/cache/static/", "/router/static/", "/rollouts/static/")
"""Scripts and styles of Bokeh and Panel as they stand in their wheels; nothing of the fleet."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[tuple[Any, httpx.AsyncClient, Options]]:
    (tmp_path / "token").write_text(TOKEN)
    options = Options(port=free_port(), token_file=tmp_path / "token", control_url="http://127.0.0.1:9")
    made = server.make_server(options, Hub(ControlFeed(options.control_url, options.token_file)))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{options.port}", trust_env=False) as client:
        yield made, client, options
    made.stop(wait=False)
    made._http.stop()


def paths(made: Any) -> list[str]:
    """A path for every route of the server, filled in where its pattern asks for something."""
    patterns = [rule.matcher.regex.pattern for rule in made._tornado.wildcard_router.rules]
    return sorted({re.sub(r"\(\.\*\)", "anything", pattern).rstrip("$").replace("/?", "") or "/" for pattern in patterns})


async def test_every_route_asks_for_the_login(running: Any) -> None:
    made, client, _ = running
    asked = [path for path in paths(made) if path not in OPEN and not path.startswith(LIBRARY_FILES)]
    assert {"/", "/fleet", "/cache", "/router", "/rollouts", "/debug/views", "/fleet/ws", "/fleet/autoload.js", "/login/code"} <= set(asked)
    for path in asked:
        for method in ("GET", "POST"):
            status = (await client.request(method, path, params={"bokeh-autoload-element": "x"})).status_code
            assert status in (302, 401, 403, 404, 405), f"{method} {path} answered {status} without a login"
            if method == "GET" and not path.endswith(("/ws", "/code")):
                assert status in (302, 401), f"GET {path} answered {status} without a login"


@pytest.mark.parametrize("path", ["/admin", "/admin/ws", "/rest/session_info", "/../../etc/passwd", "/static/../../secret"])
async def test_what_we_do_not_offer_is_not_there(running: Any, path: str) -> None:
    _, client, _ = running
    assert (await client.get(path)).status_code in (403, 404)


async def test_liveness_is_open_and_says_nothing(running: Any) -> None:
    _, client, _ = running
    assert (await client.get("/healthz")).json() == {"status": "ok"}


async def enter(client: httpx.AsyncClient) -> None:
    link = (await client.post("/login/code", headers={"Authorization": f"Bearer {TOKEN}"})).json()["path"]
    assert (await client.get(link)).status_code == 200


async def test_a_link_lets_in_once_and_its_cookie_is_locked_down(running: Any) -> None:
    _, client, options = running
    link = (await client.post("/login/code", headers={"Authorization": f"Bearer {TOKEN}"})).json()["path"]
    entered = await client.get(link)
    cookie = entered.headers["set-cookie"]
    assert f"workbench_{options.port}=" in cookie
    assert {"HttpOnly", "SameSite=Lax"} <= {part.strip() for part in cookie.split(";")}
    assert TOKEN not in entered.text
    assert (await client.get("/debug/views")).status_code == 200
    client.cookies.clear()
    assert (await client.get(link)).status_code == 401


async def test_a_forged_cookie_is_worth_nothing(running: Any) -> None:
    _, client, options = running
    client.cookies.set(f"workbench_{options.port}", "2|1:0|10:1700000000|15:workbench|8:b3BlcmF0b3I=|deadbeef")
    assert (await client.get("/debug/views")).status_code == 401


@pytest.mark.parametrize("bearer", ["", "Bearer", "Bearer wrong", "the-token-"])
async def test_links_are_made_for_the_token_only(running: Any, bearer: str) -> None:
    _, client, _ = running
    assert (await client.post("/login/code", headers={"Authorization": bearer})).status_code == 401


async def test_a_login_without_its_form_is_refused(running: Any) -> None:
    _, client, _ = running
    assert (await client.post("/login", data={"secret": TOKEN})).status_code == 403, "no XSRF field: another site sent this"


async def login(client: httpx.AsyncClient, secret: str, next_path: str = "/fleet") -> httpx.Response:
    form = await client.get("/login")
    field = re.search(r'name="_xsrf" value="([^"]+)"', form.text)
    assert field is not None
    return await client.post("/login", data={"_xsrf": field[1], "secret": secret, "next": next_path})


@pytest.mark.parametrize(
    ("wanted", "goes_to"),
    [
        ("/router?pod=a", "/router?pod=a"),
        ("//evil.example/x", "/fleet"),
        ("https://evil.example/", "/fleet"),
        ("/\\evil.example", "/fleet"),
        ("javascript:alert(1)", "/fleet"),
    ],
)
async def test_after_the_login_only_our_own_pages_are_next(running: Any, wanted: str, goes_to: str) -> None:
    _, client, _ = running
    answer = await login(client, TOKEN, wanted)
    assert (answer.status_code, answer.headers["location"]) == (302, goes_to)


async def test_after_ten_wrong_tries_even_the_right_token_waits(running: Any) -> None:
    _, client, _ = running
    for _ in range(credentials.TRIES):
        assert (await login(client, "wrong")).status_code == 401
    assert (await login(client, TOKEN)).status_code == 429


async def connect(url: str, origin: str, cookie: str) -> int:
    try:
        socket_ = await websocket_connect(HTTPRequest(url, headers={"Origin": origin, "Cookie": cookie}), subprotocols=["bokeh", "x"])
    except HTTPClientError as error:
        return int(error.code)
    socket_.close()
    return 101


async def test_a_websocket_needs_the_cookie_and_our_own_origin(running: Any) -> None:
    _, client, options = running
    await enter(client)
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    url, ours = f"ws://127.0.0.1:{options.port}/fleet/ws", f"http://127.0.0.1:{options.port}"
    assert await connect(url, "http://evil.example", cookie) == 403
    assert await connect(url, ours, "") in (302, 403)
    assert await connect(url, ours, cookie) == 101


def test_no_login_is_for_loopback_only() -> None:
    with pytest.raises(ConfigError, match="loopback only"):
        server.credentials_of(Options(host="0.0.0.0", auth="none"))
    assert server.credentials_of(Options(host="127.0.0.1", auth="none")) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(auth="token"), "token_file"),
        (Options(auth="token", token_file=Path("nowhere")), "cannot be read"),
        (Options(auth="basic"), "users_file"),
        (Options(auth="basic", users_file=Path("nowhere")), "cannot be read"),
    ],
    ids=["no_token_file", "missing_token_file", "no_users_file", "missing_users_file"],
)
def test_a_login_that_cannot_work_is_refused_at_start(options: Options, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        server.credentials_of(options)


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        options = Options(port=other.getsockname()[1], auth="none")
        with pytest.raises(PortInUse, match=str(options.port)):
            server.make_server(options, Hub(ControlFeed(options.control_url, None)))
