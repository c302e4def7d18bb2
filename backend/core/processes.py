"""Starting, watching and looking at operating-system processes; shared by the pod runtime and the launcher.

A process is known by its number *and* its start time: numbers are used again. Everything started here carries `WORKBENCH_STACK` in
its environment, so that a stack can find what belongs to it even when all records are lost (Linux only; elsewhere such a search
finds nothing).
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STACK = "WORKBENCH_STACK"
"""Environment variable that names the stack a process belongs to (its state folder)."""

_PROC = Path("/proc")
_LINUX: bool = sys.platform == "linux"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Usage:
    """What a process costs now."""

    rss_bytes: int
    cpu_s: float


def spawn(
    argv: Sequence[str], *, env: Mapping[str, str], log: Path, pass_fds: Sequence[int] = (), die_with_parent: bool = False
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, both outputs appended to `log`.

    `die_with_parent` is for foreign programs that cannot watch the life pipe: the kernel sends them SIGTERM when we die (Linux).
    """
    with open(log, "ab", buffering=0) as output:
        return subprocess.Popen(
            list(argv),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            preexec_fn=_terminate_with_parent if die_with_parent and _LINUX else None,
        )


def started_at(pid: int) -> float:
    """When the process began, seconds since 1970; 0.0 when there is none (or only a zombie)."""
    if not _LINUX:
        return _started_at_by_ps(pid)
    fields = _stat(pid)
    if not fields or fields[0] in ("Z", "X"):
        return 0.0
    return _boot_time() + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def alive(pid: int) -> bool:
    """Whether `pid` runs (a zombie does not)."""
    if pid <= 0:
        return False
    if _LINUX:
        fields = _stat(pid)
        return bool(fields) and fields[0] not in ("Z", "X")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def signal_group(pid: int, number: int) -> None:
    """Signal the process and its group (it leads one, see `spawn`); a process that is gone is fine."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
    except PermissionError:  # macOS answers so for a group that holds only a zombie
        pass


def watch_exit(pid: int, callback: Callable[[], None]) -> Callable[[], None]:
    """Call `callback` once in the running loop when `pid` ends, child of ours or not; returns how to stop watching."""
    loop = asyncio.get_running_loop()
    if not hasattr(os, "pidfd_open"):
        return _poll_exit(pid, callback)
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return loop.call_soon(callback).cancel

    def stop() -> None:
        nonlocal fd
        if fd >= 0:
            loop.remove_reader(fd)
            os.close(fd)
            fd = -1

    def ended() -> None:
        stop()
        callback()

    loop.add_reader(fd, ended)
    return stop


def become_subreaper() -> None:
    """Descendants whose parent died become our children, so that we can end and reap them (Linux; elsewhere nothing happens)."""
    if _LINUX:
        _libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_strangers(own: set[int]) -> None:
    """Take the exit status of finished children that nobody waits for: those inherited as subreaper, not the ones in `own`."""
    for pid in [pid for pid, fields in _all() if fields[0] == "Z" and int(fields[1]) == os.getpid() and pid not in own]:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass


def of_stack(stack: str) -> list[int]:
    """Numbers of all running processes that carry `WORKBENCH_STACK=stack`, ourselves excepted."""
    wanted = f"{STACK}={stack}".encode()
    found = []
    for pid, fields in _all():
        if pid == os.getpid() or fields[0] in ("Z", "X"):
            continue
        if wanted in _environment(pid):
            found.append(pid)
    return found


def children(pid: int) -> list[int]:
    """Numbers of the running children of a process."""
    return [child for child, fields in _all() if int(fields[1]) == pid and fields[0] not in ("Z", "X")]


def session_of(pid: int) -> int:
    """Number of the process that leads its session; 0 when there is no such process."""
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return 0


def environment(pid: int) -> dict[str, str]:
    """The environment that the process was started with; empty when we may not see it."""
    pairs = (entry.decode(errors="replace").partition("=") for entry in _environment(pid) if entry)
    return {key: value for key, _, value in pairs}


def session_usage(leaders: Sequence[int]) -> dict[int, Usage]:
    """Memory and processor time by session leader, all processes of its session together (of one that leads none: its own)."""
    page, tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
    totals = {pid: Usage(0, 0.0) for pid in leaders}
    for pid, fields in _all():
        leader = pid if pid in totals else int(fields[3])
        if leader in totals and fields[0] not in ("Z", "X"):
            before = totals[leader]
            cpu_s = (int(fields[11]) + int(fields[12])) / tick
            totals[leader] = Usage(before.rss_bytes + int(fields[21]) * page, before.cpu_s + cpu_s)
    return totals


def _all() -> Iterator[tuple[int, list[str]]]:
    if not _PROC.is_dir():
        return
    for entry in os.listdir(_PROC):
        if entry.isdigit() and (fields := _stat(int(entry))):
            yield int(entry), fields


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on (state first): the second may hold spaces and brackets."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return []
    return text[text.rfind(")") + 2 :].split()


def _environment(pid: int) -> list[bytes]:
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


@functools.cache
def _boot_time() -> float:
    """Taken once: the kernel's own value moves by a second when the clock is set."""
    for line in (_PROC / "stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0


def _started_at_by_ps(pid: int) -> float:
    told = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
    return time.mktime(time.strptime(told, "%a %b %d %H:%M:%S %Y")) if told else 0.0


def _poll_exit(pid: int, callback: Callable[[], None]) -> Callable[[], None]:
    loop = asyncio.get_running_loop()
    handle: asyncio.TimerHandle

    def look() -> None:
        nonlocal handle
        if alive(pid):
            handle = loop.call_later(0.1, look)
        else:
            callback()

    handle = loop.call_later(0.1, look)
    return lambda: handle.cancel()


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _terminate_with_parent() -> None:
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
