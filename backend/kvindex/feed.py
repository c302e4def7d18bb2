"""The thread that receives KV events: every source's sockets in one poll, commands from the event loop through a queue.

A thread of its own, so that a long run of the kernel (which drops the interpreter's lock) never holds up the query API, and so that a
quiet fleet costs nothing: the poll sleeps until a socket or a deadline wakes it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

from backend.api.cache import SourceState
from backend.core.clock import Clock
from backend.engines.base import EventSourceInfo
from backend.kvindex.index import PrefixIndex
from backend.kvindex.source import Source

log = logging.getLogger(__name__)

SourceKey = tuple[str, int]


class Feed:
    """All sources. `run` is the thread's body; everything public is safe from any thread."""

    def __init__(self, index: PrefixIndex, clock: Clock) -> None:
        self.sources: dict[SourceKey, Source] = {}
        self._index, self._clock = index, clock
        self._commands: deque[Callable[[], None]] = deque()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._stopping = threading.Event()
        self._context: Any = None
        self._poller: Any = None

    def set_sources(self, pod: str, model: str, infos: list[EventSourceInfo]) -> None:
        """The sources of a pod are these from now on; those that changed are opened anew."""
        self._command(lambda: self._set_sources(pod, model, infos))

    def restarted(self, pod: str) -> None:
        """The pod's process is another one: forget and read again."""
        self._command(lambda: self._each(pod, lambda source: source.restart("the pod's process was started anew")))

    def remove_pod(self, pod: str) -> None:
        self._command(lambda: self._remove_pod(pod))

    def states(self) -> list[SourceState]:
        return [source.state() for _, source in sorted(self.sources.items())]

    @property
    def pending(self) -> bool:
        """Commands are still to be carried out."""
        return bool(self._commands)

    def stop(self) -> None:
        self._stopping.set()
        self._wake()

    def run(self) -> None:
        """Receive until `stop`. An error ends the thread and reaches whoever waits for it."""
        self._context = zmq.Context(io_threads=1)
        self._poller = zmq.Poller()
        self._poller.register(self._wake_read, zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                self._turn()
        finally:
            for source in self.sources.values():
                source.close()
            self._context.destroy(linger=0)
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _turn(self) -> None:
        now = time.monotonic()
        deadline = min((source.deadline() for source in self.sources.values()), default=float("inf"))
        timeout_ms = None if deadline == float("inf") else max(0, int((deadline - now) * 1000) + 1)
        ready = {socket for socket, _ in self._poller.poll(timeout_ms)}
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
            while self._commands:
                self._commands[0]()
                self._commands.popleft()
        now = time.monotonic()
        for source in list(self.sources.values()):
            for socket, handle in list(source.handlers.items()):
                if socket in ready and socket in source.handlers:
                    handle()
            if source.deadline() <= now:
                source.on_time(now)

    def _set_sources(self, pod: str, model: str, infos: list[EventSourceInfo]) -> None:
        wanted = {(pod, info.rank): info for info in infos}
        for key in [key for key in self.sources if key[0] == pod]:
            source = self.sources[key]
            if wanted.get(key) != source.info or source.model != model:
                self._close(key)
        for key, info in wanted.items():
            if key not in self.sources:
                self.sources[key] = Source(self._context, self._poller, pod, model, info, self._index, self._clock)

    def _remove_pod(self, pod: str) -> None:
        for key in [key for key in self.sources if key[0] == pod]:
            self._close(key)
        self._index.remove_pod(pod)

    def _close(self, key: SourceKey) -> None:
        self.sources.pop(key).close()
        self._index.remove_pod(*key)

    def _each(self, pod: str, act: Callable[[Source], None]) -> None:
        for key, source in self.sources.items():
            if key[0] == pod:
                act(source)

    def _command(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except (BlockingIOError, OSError):
            # a full pipe has woken the thread already; a closed one has no thread any more
            pass
