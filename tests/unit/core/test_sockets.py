"""Sockets that processes share. Real ones."""

from __future__ import annotations

import socket
import sys

import pytest

from backend.core import sockets
from backend.core.errors import PortInUse


@pytest.mark.parametrize(("platform", "expected"), [(sys.platform, 3 if sys.platform == "linux" else 1), ("darwin", 1)])
def test_a_port_is_shared_where_the_kernel_spreads_connections(platform: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    made = sockets.listening("127.0.0.1", 0, 3, what="the test")
    assert len(made) == expected
    (port,) = {one.getsockname()[1] for one in made}
    assert not sockets.port_is_free("127.0.0.1", port)
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    for one in made:
        one.close()
    assert sockets.port_is_free("127.0.0.1", port)


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortInUse, match=str(taken.getsockname()[1])):
        sockets.listening("127.0.0.1", taken.getsockname()[1], 2, what="the gateway")
