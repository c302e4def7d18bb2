"""The server side of our own HTTP interfaces (aiohttp): bearer token, errors as JSON, /metrics, /healthz.

Never on the request path of the gateway, never in an engine.
"""

from __future__ import annotations

import hmac
import logging
from pathlib import Path

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from backend.core import errors, ids
from backend.core.metrics import CONTENT_TYPE, Registry
from backend.core.sockets import port_is_free as port_is_free

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/metrics", "/openapi.json"})

_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (errors.Unauthorized, 401),
    (errors.NotFound, 404),
    (errors.StaleState, 409),
    (errors.InvalidRequest, 400),
    (errors.UsageError, 400),
    (errors.TransientError, 503),
    (errors.DiskFull, 507),
)


def read_token(file: Path | None) -> str:
    """The bearer token in `file`, or "" when none is asked for."""
    if file is None:
        return ""
    try:
        return file.read_text().strip()
    except FileNotFoundError as error:
        raise errors.ConfigError("the token file does not exist", file=str(file)) from error


def json_response(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def application(registry: Registry, *, token: str = "") -> web.Application:
    """An application with /healthz, /metrics and both middlewares; callers add their routes."""
    app = web.Application(middlewares=[_errors_as_json, _bearer(token)], client_max_size=64 * 2**20)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=registry.render(), headers={"Content-Type": CONTENT_TYPE})

    async def healthz(_: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", healthz)
    return app


async def serve(app: web.Application, *, host: str, port: int, what: str) -> web.AppRunner:
    """Start listening; returns the runner, whose `cleanup()` stops it. Raises PortInUse."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, reuse_address=True).start()
    except OSError as error:
        await runner.cleanup()
        raise errors.PortInUse(host, port, what=what) from error
    return runner


def bound_port(runner: web.AppRunner) -> int:
    """The port that the system chose for port 0."""
    for address in runner.addresses:
        return int(address[1])
    raise RuntimeError("the server does not listen")


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return json_response({"error": {"message": error.reason, "type": type(error).__name__}}, status=error.status)
    except msgspec.ValidationError as error:
        return json_response({"error": {"message": str(error), "type": "InvalidRequest"}}, status=400)
    except msgspec.DecodeError as error:
        return json_response({"error": {"message": f"The body is not JSON: {error}", "type": "InvalidRequest"}}, status=400)
    except errors.WorkbenchError as error:
        status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
        body = {"message": error.message, "type": type(error).__name__, "fix": error.fix}
        return json_response({"error": body}, status=status)
    except (ConnectionResetError, ConnectionAbortedError):
        raise
    except Exception:
        log_id = ids.new_id("e")
        log.exception("%s %s failed (%s)", request.method, request.path, log_id)
        return json_response({"error": {"message": f"internal error, see the log line {log_id}", "type": "InternalError"}}, status=500)


def _bearer(token: str) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token and request.path not in OPEN_PATHS:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode()):
                raise errors.Unauthorized(
                    "A valid bearer token is needed.", fix="Send the token of STATE/token as `Authorization: Bearer ...`."
                )
        return await handler(request)

    return check
