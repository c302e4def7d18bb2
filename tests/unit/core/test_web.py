"""Our HTTP servers: token, errors as JSON, metrics. Real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from aiohttp import web

from backend.core import errors
from backend.core.metrics import Registry
from backend.core.sockets import port_is_free
from backend.core.web import application, bound_port, serve


async def _raise(error: Exception) -> web.Response:
    raise error


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    registry = Registry()
    registry.counter("control_things_total", "Things.").inc(3)
    app = application(registry, token="secret")
    app.router.add_get("/missing", lambda _: _raise(errors.NotFound("No such pod.", fix="List the pods.")))
    app.router.add_get("/away", lambda _: _raise(errors.Unavailable("The index does not answer.")))
    app.router.add_get("/bug", lambda _: _raise(ZeroDivisionError("a detail that stays in the log")))
    runner = await serve(app, host="127.0.0.1", port=0, what="the test")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{bound_port(runner)}") as http:
        yield http
    await runner.cleanup()


async def test_only_health_metrics_and_the_document_are_open(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).status_code == 200
    assert "control_things_total 3.0" in (await client.get("/metrics")).text
    assert (await client.get("/missing")).status_code == 401
    assert (await client.get("/missing", headers={"Authorization": "Bearer wrong"})).status_code == 401


@pytest.mark.parametrize("given", [b"Bearer \xff\xfe", b"Bearer \xc3\xbc", b"\xff"], ids=["no_utf8", "not_ascii", "no_scheme"])
async def test_a_token_of_strange_bytes_is_a_wrong_token(client: httpx.AsyncClient, given: bytes, caplog: pytest.LogCaptureFixture) -> None:
    answer = await client.get("/missing", headers=[(b"Authorization", given)])
    assert answer.status_code == 401
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("path", "status", "kind"), [("/missing", 404, "NotFound"), ("/away", 503, "Unavailable"), ("/nowhere", 404, "HTTPNotFound")]
)
async def test_an_error_is_json_with_its_kind(client: httpx.AsyncClient, path: str, status: int, kind: str) -> None:
    answer = await client.get(path, headers={"Authorization": "Bearer secret"})
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == kind


async def test_a_bug_answers_with_the_id_of_its_log_line_and_no_detail(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    answer = await client.get("/bug", headers={"Authorization": "Bearer secret"})
    message = answer.json()["error"]["message"]
    assert answer.status_code == 500
    assert "detail" not in message
    assert message.split()[-1] in caplog.text


async def test_a_taken_port_is_named() -> None:
    runner = await serve(application(Registry()), host="127.0.0.1", port=0, what="the test")
    port = bound_port(runner)
    with pytest.raises(errors.PortInUse, match=str(port)):
        await serve(application(Registry()), host="127.0.0.1", port=port, what="another")
    assert not port_is_free("127.0.0.1", port)
    await runner.cleanup()
    assert port_is_free("127.0.0.1", port)
