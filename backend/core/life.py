"""How a process learns that it should end: signals, and the end of the process that started it.

The parent holds the write end of a pipe whose read end every descendant inherits (its number is in `WORKBENCH_LIFE_FD`). The
kernel closes the write end however the parent dies, so nothing is left behind by a `kill -9`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable

LIFE_FD = "WORKBENCH_LIFE_FD"
SOCKETS = "WORKBENCH_SOCKETS"


class LifePipe:
    """The parent's end. Children are started with `env=pipe.env(...)` and `pass_fds=(pipe.read_fd,)`."""

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe()
        os.set_inheritable(self.read_fd, True)

    def env(self, base: dict[str, str] | None = None) -> dict[str, str]:
        return {**(os.environ if base is None else base), LIFE_FD: str(self.read_fd)}

    def close(self) -> None:
        for fd in (self.read_fd, self._write_fd):
            with contextlib.suppress(OSError):
                os.close(fd)


def inherited_life_fd() -> int | None:
    """The read end that our parent left us, or None when we were started by hand."""
    try:
        fd = int(os.environ.get(LIFE_FD, ""))
        os.fstat(fd)
    except (ValueError, OSError):
        return None
    return fd


def watch_parent(on_end: Callable[[], None]) -> None:
    """Call `on_end` once in the running loop when the parent is gone; does nothing without a parent's pipe."""
    fd = inherited_life_fd()
    if fd is None:
        return
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(fd)
        on_end()

    loop.add_reader(fd, ended)


def on_stop(callback: Callable[[], None]) -> None:
    """Call `callback` on SIGTERM, on SIGINT, and when the parent is gone."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, callback)
    watch_parent(callback)


def inherited_sockets(name: str) -> list[socket.socket]:
    """Listening sockets that the parent keeps open for us, so that a restart refuses nobody.

    `WORKBENCH_SOCKETS` is `name=fd,fd;name=fd`. Empty when there are none.
    """
    for entry in os.environ.get(SOCKETS, "").split(";"):
        key, _, fds = entry.partition("=")
        if key == name and fds:
            return [socket.socket(fileno=os.dup(int(fd))) for fd in fds.split(",")]
    return []
