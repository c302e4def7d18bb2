"""KV events over ZeroMQ: a PUB socket with numbered batches, and a ROUTER that replays the last ones.

Runs inside the caller's event loop: the ROUTER's file descriptor wakes it, so an idle engine costs nothing. Numbers start at 0
with every process; a consumer that sees them go backwards knows that the engine is a new one. Transport as `specs/engines.md` 2
measured it, with one difference: a wildcard binds to the engine's own address only, so that many pods fit on one machine.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import zmq

from backend.core.errors import EnvironmentProblem, UsageError, WorkbenchError

_END = b"\xff" * 8
_BATCHES_A_TURN = 256


@dataclass(frozen=True, kw_only=True)
class PublisherSettings:
    """The names are those of vLLM's `--kv-events-config`."""

    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    topic: str = ""
    buffer_steps: int = 10_000
    """Batches kept for replay."""
    hwm: int = 100_000
    """Batches queued for a slow subscriber before more are dropped."""
    max_queue_size: int = 100_000
    host: str = "127.0.0.1"
    """Address that a wildcard stands for."""


class Publisher:
    """Owns both sockets. Create it inside a running loop. Raises EnvironmentProblem when an endpoint is taken."""

    def __init__(self, settings: PublisherSettings, *, replay_has_topic: bool = True) -> None:
        self.settings = settings
        self.next_number = 0
        self.replays = 0
        self._replay_has_topic = replay_has_topic
        self._buffer: deque[tuple[bytes, bytes]] = deque(maxlen=settings.buffer_steps)
        self._topic = settings.topic.encode()
        self._context = zmq.Context()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._router: zmq.Socket[bytes] | None = None
        try:
            self._pub = self._open_pub()
            self.endpoint = _resolved(self._pub, settings.endpoint)
            """As told to subscribers: what was configured, or with the port that the system chose for port 0."""
            self.replay_endpoint = settings.replay_endpoint
            if settings.replay_endpoint:
                self._router = self._open_router(settings.replay_endpoint)
                self.replay_endpoint = _resolved(self._router, settings.replay_endpoint)
        except WorkbenchError:
            self._context.destroy(linger=0)
            raise

    def publish(self, payload: bytes) -> None:
        """Send one batch and keep it for replay; after `close`, do nothing."""
        if self._closed:
            return
        number = self.next_number.to_bytes(8, "big")
        self.next_number += 1
        self._buffer.append((number, payload))
        try:
            self._pub.send_multipart((self._topic, number, payload), zmq.NOBLOCK)
        except zmq.Again:
            pass  # a connecting PUB whose peer never came has a full queue; the batch can still be replayed

    def close(self) -> None:
        """Close both sockets; what a subscriber has not fetched within a moment is lost, as with a real engine."""
        if self._closed:
            return
        self._closed = True
        if self._router is not None:
            self._loop.remove_reader(self._router.fileno())
        self._context.destroy(linger=100)

    def _open_pub(self) -> zmq.Socket[bytes]:
        pub = self._context.socket(zmq.PUB)
        pub.set_hwm(self.settings.hwm)
        endpoint = self.settings.endpoint
        if binds(endpoint, self.settings.host):
            _bind(pub, _on_host(endpoint, self.settings.host), "KV events")
        else:
            try:
                pub.connect(endpoint)
            except zmq.ZMQError as error:
                raise UsageError(f"{endpoint} is not an endpoint: {error}.", fix="Write it like tcp://*:5557.") from error
        return pub

    def _open_router(self, endpoint: str) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        router.set_hwm(0)  # a ROUTER drops what exceeds its queue, and a replay has as many messages as the buffer
        _bind(router, _on_host(endpoint, self.settings.host), "the replay of KV events")
        self._loop.add_reader(router.fileno(), self._serve_replays)
        return router

    def _serve_replays(self) -> None:
        """Answer all waiting requests. The descriptor only signals edges, so nothing may be left unread."""
        router = self._router
        while router is not None and not self._closed and router.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            frames = router.recv_multipart(zmq.NOBLOCK)
            if len(frames) == 3 and len(frames[2]) == 8:
                client, _, start = frames
                self.replays += 1
                first = self.next_number - len(self._buffer)
                skipped = max(0, int.from_bytes(start, "big") - first)
                self._replay(client, iter(list(islice(self._buffer, skipped, None))))

    def _replay(self, client: bytes, batches: Iterator[tuple[bytes, bytes]]) -> None:
        """Send a part and leave the loop to others before the next; running streams must not stutter for a long buffer."""
        router = self._router
        if router is None or self._closed:
            return
        topic = (self._topic,) if self._replay_has_topic else ()
        sent = 0
        for number, payload in islice(batches, _BATCHES_A_TURN):
            router.send_multipart((client, b"", *topic, number, payload))
            sent += 1
        if sent == _BATCHES_A_TURN:
            self._loop.call_soon(self._replay, client, batches)
            return
        end_topic = (b"",) if self._replay_has_topic else ()
        router.send_multipart((client, b"", *end_topic, _END, b""))
        self._loop.call_soon(self._serve_replays)  # sending may have swallowed the edge of the next request


def binds(endpoint: str, host: str) -> bool:
    """vLLM's rule: a PUB binds on wildcards and local transports, and connects to any concrete host.

    One exception of ours: on its own address it binds, where a real engine would connect to itself and never be heard.
    """
    local = endpoint.startswith(("ipc://", "inproc://", f"tcp://{host}:"))
    return local or "*" in endpoint or "::" in endpoint


def _resolved(socket: zmq.Socket[bytes], endpoint: str) -> str:
    return str(socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()) if endpoint.endswith(":0") else endpoint


def _on_host(endpoint: str, host: str) -> str:
    return endpoint.replace("*", host, 1) if host not in ("", "0.0.0.0", "::") else endpoint


def _bind(socket: zmq.Socket[bytes], endpoint: str, what: str) -> None:
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
            raise EnvironmentProblem(
                f"{endpoint} cannot be used for {what}: {error.strerror}.", fix="Stop the other program, or choose another endpoint."
            ) from error
        raise UsageError(f"{endpoint} is not an endpoint for {what}: {error.strerror}.", fix="Write it like tcp://*:5557.") from error
