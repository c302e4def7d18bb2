"""Connections to one API server, made anew when the server's address or the certificates change."""

from __future__ import annotations

import socket
import ssl

import httpx

from backend.kube.access import Access
from backend.kube.errors import ClusterUnreachable

IDLE_S = 20.0
"""Idle connections are closed before servers and load balancers do it (60 s and more), so that none is closed under a request."""
_DEAD_AFTER = (15, 5, 3)
"""A silent peer is asked after 15 s, then every 5 s, and is dead after 3 unanswered questions: 30 s in all."""

SocketOption = tuple[int, int, int]


class Pools:
    """One pool of calls, whose size is bounded, and one of streams, which each hold a connection for minutes."""

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._made_for: tuple[str, str, str] | None = None
        self._pair: tuple[httpx.AsyncClient, httpx.AsyncClient] | None = None
        self._retired: tuple[httpx.AsyncClient, httpx.AsyncClient] | None = None

    async def calls(self, access: Access) -> httpx.AsyncClient:
        return (await self._for(access))[0]

    async def streams(self, access: Access) -> httpx.AsyncClient:
        return (await self._for(access))[1]

    async def close(self) -> None:
        for pair in (self._pair, self._retired):
            for client in pair or ():
                await client.aclose()
        self._pair = self._retired = self._made_for = None

    async def _for(self, access: Access) -> tuple[httpx.AsyncClient, httpx.AsyncClient]:
        wanted = (access.server, access.fingerprint, access.proxy)
        if self._pair is None or wanted != self._made_for:
            # What runs on the old connections may end there: they are closed one change later.
            old, self._retired = self._retired, self._pair
            limits = httpx.Limits(max_connections=self._connections, max_keepalive_connections=self._connections, keepalive_expiry=IDLE_S)
            streams = httpx.Limits(max_connections=None, max_keepalive_connections=0)
            self._pair, self._made_for = (_client(access, limits), _client(access, streams)), wanted
            for client in old or ():
                await client.aclose()
        assert self._pair is not None
        return self._pair


def _client(access: Access, limits: httpx.Limits) -> httpx.AsyncClient:
    # A plain-HTTP server still needs an argument here: httpx would load all public authorities otherwise (20 ms).
    verify = access.context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    transport = httpx.AsyncHTTPTransport(verify=verify, limits=limits, proxy=access.proxy or None, socket_options=_socket_options())
    return httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=False)


def _socket_options() -> list[SocketOption]:
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
    for name, value in zip(names, _DEAD_AFTER, strict=True):
        if hasattr(socket, name):  # macOS names the first one otherwise
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


def failure(access: Access, error: Exception, timeout_s: float) -> ClusterUnreachable:
    """The error of our tree for one of httpx: what happened, and whether the request can have arrived."""
    server = access.server
    certificate = _certificate_problem(error)
    if certificate:
        fix = f"Check certificate-authority and server of {access.where}; the server's certificate must be valid for the name asked."
        return ClusterUnreachable(server, f"its certificate is not trusted ({certificate})", unsent=True, fix=fix)
    if isinstance(error, httpx.ConnectError):
        return ClusterUnreachable(server, f"no connection ({_reason(error)})", unsent=True)
    if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
        return ClusterUnreachable(server, "no connection in time", unsent=True)
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return ClusterUnreachable(server, f"no answer within {timeout_s:g} s")
    return ClusterUnreachable(server, f"the connection broke ({_reason(error)})")


def _certificate_problem(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        cause = cause.__cause__ or cause.__context__
    return ""


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
