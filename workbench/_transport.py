"""HTTP to the control API: typed answers in, errors of our tree out. The only module of the workbench that speaks HTTP."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TypeVar

import httpx
import msgspec

from backend.api import errors as api_errors
from workbench.errors import NotConnected, Unavailable, UnreadableAnswer

if "sniffio" not in sys.modules and find_spec("sniffio") is None:
    # httpcore asks for it at every call. Each such failing import takes the module's lock, and two threads that do so at once can
    # block each other for ever (seen on CPython 3.11.7). A None here makes the import fail at once, without the lock.
    sys.modules["sniffio"] = None  # type: ignore[assignment]

T = TypeVar("T")
Params = Mapping[str, str | int | float | None]

TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0


class Transport:
    """A connection pool to one control API."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=False,
        )

    async def get(self, kind: type[T], path: str, params: Params | None = None) -> T:
        return await self._call(kind, "GET", path, params=_present(params))

    async def post(self, kind: type[T], path: str, body: msgspec.Struct | None, *, again: bool = True) -> T:
        """`again=False` for what must not happen twice: it is then not sent anew when the connection breaks."""
        return await self._call(kind, "POST", path, content=msgspec.json.encode(body) if body is not None else None, again=again)

    async def delete(self, kind: type[T], path: str) -> T:
        return await self._call(kind, "DELETE", path, again=False)

    async def download(self, path: str) -> bytes:
        """The body as it is."""
        return (await self._send("GET", path)).content

    async def _call(
        self,
        kind: type[T],
        method: str,
        path: str,
        *,
        params: dict[str, str] | None = None,
        content: bytes | None = None,
        again: bool = True,
    ) -> T:
        response = await self._send(method, path, params=params, content=content, again=again)
        try:
            return msgspec.json.decode(response.content, type=kind)
        except msgspec.MsgspecError as error:
            raise UnreadableAnswer(
                f"{self.url}{path} answered what this version cannot read: {error}", fix="Use the same version on both sides."
            ) from error

    async def _send(
        self, method: str, path: str, *, params: dict[str, str] | None = None, content: bytes | None = None, again: bool = True
    ) -> httpx.Response:
        for last_try in (not again, True):
            try:
                response = await self._http.request(
                    method, path, params=params, content=content, headers={"Content-Type": "application/json"} if content else None
                )
                break
            except (httpx.RemoteProtocolError, httpx.ReadError) as error:
                # A kept connection that a restarted server had closed looks like this. Once more is safe for what reads, carries
                # a key by which the server knows a repetition, or sets a state that may be set twice.
                if last_try:
                    raise self._unreachable(error) from error
            except httpx.TimeoutException as error:
                raise Unavailable(
                    f"{self.url} did not answer {path} in time.", fix="Is it overloaded? See STATE/logs/control.log."
                ) from error
            except (httpx.TransportError, RuntimeError) as error:
                raise self._unreachable(error) from error
        if response.status_code >= 400:
            raise api_errors.from_response(response.status_code, response.content, what=self.url)
        return response

    @asynccontextmanager
    async def lines(self, path: str, params: Params | None = None, *, silence_s: float = 60.0) -> AsyncIterator[AsyncIterator[str]]:
        """The lines of an endless answer; a server silent for `silence_s` counts as gone."""
        timeout = httpx.Timeout(silence_s, connect=CONNECT_TIMEOUT_S)
        try:
            async with self._http.stream(
                "GET", path, params=_present(params), timeout=timeout, headers={"Accept": "text/event-stream"}
            ) as response:
                if response.status_code >= 400:
                    raise api_errors.from_response(response.status_code, await response.aread(), what=self.url)
                yield response.aiter_lines()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    async def close(self) -> None:
        await self._http.aclose()

    def _unreachable(self, error: Exception) -> NotConnected:
        if isinstance(error, RuntimeError) and not self._http.is_closed:
            raise error
        reason = "this workbench was closed" if self._http.is_closed else str(error) or type(error).__name__
        return NotConnected(
            f"Nobody answers at {self.url}: {reason}.", fix="`workbench status` tells what runs, `workbench up` starts a stack."
        )


def _present(params: Params | None) -> dict[str, str]:
    return {name: str(value) for name, value in (params or {}).items() if value is not None and value != ""}
