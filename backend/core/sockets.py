"""Listening sockets made by hand: for a server whose processes share a port, and to look whether a port is free."""

from __future__ import annotations

import socket
import sys

from backend.core.errors import PortInUse

BACKLOG = 4096
"""Connections that may wait: a restart of whoever accepts them takes a second."""


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now (a look, not a promise)."""
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def listening(host: str, port: int, count: int, *, what: str) -> list[socket.socket]:
    """`count` sockets on one port, among which the kernel spreads connections; one for all where it does not (macOS).

    Port 0 lets the system choose. Raises PortInUse.
    """
    spread = sys.platform == "linux"
    sockets: list[socket.socket] = []
    for _ in range(count if spread else 1):
        made = socket.socket(_family(host))
        sockets.append(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if spread:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            made.bind((host, port))
            made.listen(BACKLOG)
        except OSError as error:
            for one in sockets:
                one.close()
            raise PortInUse(host, port, what=what) from error
        port = made.getsockname()[1]
    return sockets


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
