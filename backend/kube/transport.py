"""HTTP to one API server: a bounded pool, time-outs, fresh credentials, and retries of what is safe to repeat.

Repeated are: any request that cannot have reached the server, any that the server put off (429, or 5xx with Retry-After), and
reads whose connection broke. A write whose answer got lost is not: only its caller can look whether it happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import httpx
import msgspec

from backend.core.errors import WireError
from backend.kube.access import Access, Credentials
from backend.kube.backoff import Backoff
from backend.kube.errors import ApiError, api_error
from backend.kube.figures import KubeFigures
from backend.kube.pools import Pools, failure

Query = Mapping[str, str]

CALL_S = 30.0
"""The whole of one attempt: from waiting for a connection to the last byte of the answer."""
CONNECT_S = 5.0
"""For a connection, TLS included: an address where nobody is, is told soon."""
CONNECTIONS = 32
"""Calls at a time; more wait. Watches are not counted, each has a connection of its own."""
ATTEMPTS = 4
LONGEST_WAIT_S = 30.0
"""A Retry-After beyond this is not waited for; the caller gets the error with its `retry_after`."""
_BACKOFF = Backoff(first_s=0.1, longest_s=2.0)
_READS = ("GET", "HEAD")
_SHOWN_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer with a status below 400."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Raises WireError."""
        try:
            return msgspec.json.decode(self.body)
        except msgspec.DecodeError as error:
            raise WireError("not_json", f"The API server's answer is not JSON: {error}") from error


class Transport:
    """Shared by everything of a process that speaks to one cluster. Close it at the end."""

    def __init__(
        self, credentials: Credentials, *, figures: KubeFigures, agent: str = "fleet-workbench", connections: int = CONNECTIONS
    ) -> None:
        self._credentials, self._figures, self._agent = credentials, figures, agent
        self._room = asyncio.Semaphore(connections)
        self._pools = Pools(connections)

    @property
    def access(self) -> Access:
        return self._credentials.latest

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout_s: float = CALL_S,
    ) -> Answer:
        """Ask and wait for the whole answer. Raises ApiError, ClusterUnreachable, ConfigError (credentials)."""
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = content_type
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with self._room:
                    return await self._once(method, path, query, body, headers, timeout_s)
            except (httpx.RequestError, TimeoutError) as error:
                problem = failure(self.access, error, timeout_s)
                waited = isinstance(error, TimeoutError | httpx.TimeoutException)  # long enough; who asked decides about another time
                if waited or attempt == ATTEMPTS or not (problem.unsent or method in _READS):
                    raise problem from error
                self._figures.retries.labels("unsent" if problem.unsent else "broken").inc()
                wait = _BACKOFF.jittered(attempt)
            except ApiError as error:
                asked = _asked_to_wait(method, error)
                if attempt == ATTEMPTS or asked is None or asked > LONGEST_WAIT_S:
                    raise
                self._figures.retries.labels(str(error.status)).inc()
                wait = max(asked, _BACKOFF.jittered(attempt))
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    @contextlib.asynccontextmanager
    async def stream(self, path: str, query: Query, *, idle_s: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """Chunks of an answer without end; broken off when nothing comes for `idle_s`. Never compressed, never repeated.

        Compressed watches arrive as several gzip members, of which httpx would decode the first and lose all later events.
        """
        access = await self._credentials.current()
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        for last in (False, True):
            try:
                async with self._opened(access, path, query, headers, idle_s) as response:
                    if response.status_code == 401 and not last:
                        renewed = await self._credentials.after_refusal(access)
                        if renewed is not access:
                            access = renewed
                            continue
                    await _check_stream(response, path)
                    async with contextlib.aclosing(cast(AsyncGenerator[bytes, None], response.aiter_raw())) as chunks:
                        yield chunks
                    return
            except httpx.RequestError as error:
                raise failure(access, error, idle_s) from error

    async def close(self) -> None:
        await self._pools.close()

    @contextlib.asynccontextmanager
    async def _opened(
        self, access: Access, path: str, query: Query, headers: dict[str, str], idle_s: float
    ) -> AsyncIterator[httpx.Response]:
        client = await self._pools.streams(access)
        timeout = httpx.Timeout(CALL_S, read=idle_s, connect=CONNECT_S)
        request = self._request(client, access, "GET", path, query, None, headers, timeout)
        response = await client.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    async def _once(
        self, method: str, path: str, query: Query | None, body: bytes | None, headers: dict[str, str], timeout_s: float
    ) -> Answer:
        access = await self._credentials.current()
        answer = await self._ask(access, method, path, query, body, headers, timeout_s)
        if answer.status == 401:
            renewed = await self._credentials.after_refusal(access)
            if renewed is not access:
                answer = await self._ask(renewed, method, path, query, body, headers, timeout_s)
        if answer.status >= 400:
            wait = _seconds(answer.headers.get("retry-after"))
            raise api_error(answer.status, answer.body, what=f"{method} {path}", retry_after=wait)
        return answer

    async def _ask(
        self, access: Access, method: str, path: str, query: Query | None, body: bytes | None, headers: dict[str, str], timeout_s: float
    ) -> Answer:
        client = await self._pools.calls(access)
        if access.loopback:
            headers = {**headers, "Accept-Encoding": "identity"}
        request = self._request(client, access, method, path, query, body, headers, httpx.Timeout(timeout_s, connect=CONNECT_S))
        started = time.perf_counter()
        code = "none"
        try:
            async with asyncio.timeout(timeout_s):
                response = await client.send(request)
            code = str(response.status_code)
        finally:
            self._figures.calls.labels(method, code).observe(time.perf_counter() - started)
        return Answer(response.status_code, response.headers, response.content)

    def _request(
        self,
        client: httpx.AsyncClient,
        access: Access,
        method: str,
        path: str,
        query: Query | None,
        body: bytes | None,
        headers: dict[str, str],
        timeout: httpx.Timeout,
    ) -> httpx.Request:
        named = [*headers.items(), ("User-Agent", self._agent), *access.headers]
        if access.authorization:
            named.append(("Authorization", access.authorization))
        extensions: dict[str, Any] = {"timeout": timeout.as_dict()}
        if access.server_name:
            extensions["sni_hostname"] = access.server_name
        url = access.server + path
        return client.build_request(method, url, params=query or None, content=body, headers=named, extensions=extensions)


def _asked_to_wait(method: str, error: ApiError) -> float | None:
    """Seconds after which the refused request may be repeated; None when it may not."""
    if error.status == 429 or (error.status >= 500 and error.retry_told):
        return error.retry_after
    if method in _READS and error.status in (502, 503, 504):
        return 0.0
    return None


async def _check_stream(response: httpx.Response, path: str) -> None:
    if response.status_code >= 400:
        body = b""
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > _SHOWN_BYTES:
                break
        wait = _seconds(response.headers.get("retry-after"))
        raise api_error(response.status_code, body, what=f"WATCH {path}", retry_after=wait)
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise WireError("encoded_watch", f"The watch of {path} arrives as {encoding}, though it was asked for uncompressed.")


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds, the only form that API servers send."""
    return float(retry_after) if retry_after and retry_after.strip().isdigit() else None
