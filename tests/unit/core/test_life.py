"""Children end with their parent, however it ends; listening sockets are handed down."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

from backend.core.life import LIFE_FD, SOCKETS, LifePipe

CHILD = """
import asyncio, sys
from backend.core.life import on_stop
async def main():
    stopped = asyncio.Event(); on_stop(stopped.set); print("ready", flush=True); await stopped.wait(); print("ended", flush=True)
asyncio.run(main())
"""
PARENT = f"""
import subprocess, sys, time
from backend.core.life import LifePipe
pipe = LifePipe()
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], env=pipe.env(), pass_fds=(pipe.read_fd,), stdout=sys.stdout)
time.sleep(60)
"""


def test_a_child_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.send_signal(signal.SIGKILL)
    assert parent.stdout.readline() == "ended\n"
    parent.wait()
    parent.stdout.close()


def test_a_child_ends_on_sigterm() -> None:
    env = {key: value for key, value in os.environ.items() if key != LIFE_FD}
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, env=env)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.terminate()
    assert child.stdout.readline() == "ended\n"
    assert child.wait() == 0
    child.stdout.close()


def test_a_listening_socket_is_handed_down() -> None:
    pipe = LifePipe()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        code = (
            "from backend.core.life import inherited_sockets as s; print([x.getsockname() for x in s('gateway')], s('other'));"
            "[x.close() for x in s('gateway')]"
        )
        env = {**pipe.env(), SOCKETS: f"gateway={listening.fileno()}"}
        told = subprocess.run(
            [sys.executable, "-c", code], env=env, pass_fds=(listening.fileno(),), capture_output=True, text=True, check=True
        )
        assert told.stdout.strip() == f"[{listening.getsockname()}] []"
    pipe.close()
