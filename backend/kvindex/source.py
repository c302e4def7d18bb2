"""One event source on ZeroMQ: its sockets, its tracker, its figures. Lives in the feed's thread and is read from others.

Subscribes, asks for replays in the framing that every version understands, and hands payloads to the index in runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from backend.api.cache import SourceState
from backend.core.clock import Clock
from backend.engines.base import EventSourceInfo
from backend.kvindex import tracker as t
from backend.kvindex.index import PrefixIndex
from backend.kvindex.result import IngestResult
from backend.kvindex.wire import batch_timestamp

log = logging.getLogger(__name__)

LARGEST_MESSAGE = 64 * 2**20
"""ZeroMQ drops a peer that announces more; a step's events are kilobytes."""
DRAIN_MESSAGES = 256
"""Messages taken at one wake-up: enough to fill a kernel call, few enough to let other sources in."""
REPLAY_TIMEOUT_S = 5.0
FIRST_CHECK_S = 1.0
CHECK_S = 15.0
RESYNC_S = 30.0
END_OF_REPLAY = b"\xff" * 8


class Source:
    """`pod` and `rank` name it. All methods but `state` belong to the feed's thread."""

    def __init__(self, context: Any, poller: Any, pod: str, model: str, info: EventSourceInfo, index: PrefixIndex, clock: Clock) -> None:
        self.pod, self.model, self.info = pod, model, info
        self.tracker = t.Tracker(can_replay=bool(info.replay_endpoint))
        self.figures = SourceState(pod=pod, rank=info.rank, endpoint=info.endpoint, replay_endpoint=info.replay_endpoint)
        self._context, self._poller, self._index, self._clock = context, poller, index, clock
        self._connections = 0
        self._dealer: Any = None
        self._replay_deadline = 0.0
        self._check_at = 0.0
        self._resynced_at = -RESYNC_S
        self._bad_frames = 0
        index.add_pod(pod, info.rank)
        self._sub = self._socket(zmq.SUB)
        self._sub.setsockopt(zmq.SUBSCRIBE, b"")
        self._sub.setsockopt(zmq.RECONNECT_IVL, 100)
        self._sub.setsockopt(zmq.RECONNECT_IVL_MAX, 3000)
        self._sub.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        self._sub.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15000)
        self._monitor = self._sub.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self.handlers: dict[Any, Callable[[], None]] = {self._sub: self._on_live, self._monitor: self._on_monitor}
        for socket in self.handlers:
            poller.register(socket, zmq.POLLIN)
        try:
            if info.engine_binds:
                self._sub.connect(info.endpoint)
            else:
                self._sub.bind(info.endpoint)
        except zmq.ZMQError as error:
            self.figures.status, self.figures.reason = "error", f"{info.endpoint}: {error.strerror}"

    def state(self) -> SourceState:
        """A copy of the figures."""
        figures, tracker = self.figures, self.tracker
        figures.last_sequence, figures.gaps, figures.missed, figures.restarts = tracker.last, tracker.gaps, tracker.missed, tracker.restarts
        figures.blocks = self._index.blocks(self.pod, self.info.rank)
        figures.block_size = self._index.block_size(self.pod)
        copied = {name: getattr(figures, name) for name in figures.__struct_fields__}
        more = {"bad_frames": self._bad_frames, "unknown_parent": self._index.given_up(self.pod, self.info.rank)}
        copied["skipped"] = {**figures.skipped, **{reason: count for reason, count in more.items() if count}}
        return SourceState(**copied)

    def deadline(self) -> float:
        """When `on_time` wants to be called; infinity for never."""
        if self._dealer is not None:
            return self._replay_deadline
        return self._check_at or float("inf")

    def on_time(self, now: float) -> None:
        if self._dealer is not None:
            if now >= self._replay_deadline:
                self._close_dealer()
                self.figures.reason = f"no answer from {self.info.replay_endpoint} to a replay request"
                log.warning("%s rank %d: %s", self.pod, self.info.rank, self.figures.reason)
                self._follow(self.tracker.replay_failed())
                self._check_at = now + CHECK_S
        elif self._check_at and now >= self._check_at:
            self._check_at = now + CHECK_S
            self._follow(self.tracker.check())

    def restart(self, reason: str) -> None:
        """Another boot of the engine is known from elsewhere."""
        self.tracker.restarts += 1
        self._close_dealer()
        self._follow(self.tracker.start_over(reason))

    def close(self) -> None:
        self._close_dealer()
        self._sub.disable_monitor()
        for socket in self.handlers:
            self._poller.unregister(socket)
        self._monitor.close(linger=0)
        self._sub.close(linger=0)
        self.handlers = {}

    def _socket(self, kind: int) -> Any:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, 0 if kind == zmq.DEALER else 100_000)
        socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_MESSAGE)
        socket.setsockopt(zmq.IPV6, 1)
        return socket

    def _drain(self, socket: Any) -> Iterator[tuple[bytes, bytes]]:
        """(sequence, payload) of the messages that are there: the last two frames in every framing."""
        for _ in range(DRAIN_MESSAGES):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(frames) < 2 or len(frames[-2]) != 8:
                self._bad_frames += 1
                continue
            yield frames[-2], frames[-1]

    def _on_live(self) -> None:
        instructions: list[t.Instruction] = []
        for sequence, payload in self._drain(self._sub):
            instructions += self.tracker.live(int.from_bytes(sequence, "big", signed=True), payload)
        self._follow(instructions)

    def _on_replay(self) -> None:
        dealer, ended = self._dealer, False
        instructions: list[t.Instruction] = []
        for sequence, payload in self._drain(dealer):
            self._replay_deadline = time.monotonic() + REPLAY_TIMEOUT_S
            if sequence == END_OF_REPLAY:
                ended = True
                break
            instructions += self.tracker.replayed(int.from_bytes(sequence, "big", signed=True), payload)
            if instructions and isinstance(instructions[-1], t.AskReplay):
                break
        if ended:
            self._close_dealer()
            instructions += self.tracker.replay_ended()
        self._follow(instructions)

    def _on_monitor(self) -> None:
        while True:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))["event"]
            except zmq.Again:
                return
            if event == zmq.EVENT_DISCONNECTED:
                self._close_dealer()
                self.tracker.phase = "waiting"
                self._check_at = 0.0
                self.figures.status, self.figures.reason = "lost", f"{self.info.endpoint} closed the connection"
            else:
                self._connections += 1
                self.figures.reconnects = self._connections - 1
                self.figures.reason = "" if self.info.replay_endpoint else "no replay socket: blocks from before the connection are unknown"
                self._check_at = time.monotonic() + FIRST_CHECK_S
                self._follow(self.tracker.connected())

    def _follow(self, instructions: list[t.Instruction]) -> None:
        for run in t.payloads_between(instructions):
            if isinstance(run, list):
                self._ingest(run)
            elif isinstance(run, t.Forget):
                log.info("%s rank %d: forgetting what it held: %s", self.pod, self.info.rank, run.reason)
                self._index.clear(self.pod, self.info.rank)
            else:
                self._ask_replay(run.start)
        if self.tracker.phase == "live" and self.figures.status not in ("error", "live"):
            self.figures.status = "live"

    def _ingest(self, payloads: list[bytes]) -> None:
        result = self._index.ingest_many(self.pod, payloads, model=self.model, rank=self.info.rank)
        figures = self.figures
        figures.batches += len(payloads)
        self._count(result)
        figures.last_event_at = batch_timestamp(payloads[-1]) or figures.last_event_at
        if figures.status == "live" and figures.last_event_at:
            figures.lag_ms = max(0.0, (self._clock.now() - figures.last_event_at) * 1000)
        now = time.monotonic()
        if result.parked and self.tracker.phase == "live" and self.tracker.complete and now - self._resynced_at > RESYNC_S:
            self._resynced_at = now
            self._follow(self.tracker.start_over("a parent block is unknown although no message was missed"))

    def _count(self, result: IngestResult) -> None:
        figures = self.figures
        figures.stored += result.stored
        figures.removed += result.removed
        figures.cleared += result.cleared
        for reason, count in result.reasons.items():
            figures.skipped[reason] = figures.skipped.get(reason, 0) + count

    def _ask_replay(self, start: int) -> None:
        """A fresh DEALER each time: what an earlier answer left behind cannot be taken for this one. (A REQ gets one reply only.)"""
        self._close_dealer()
        if self.figures.status != "live":
            self.figures.status = "replaying"
        self._dealer = self._socket(zmq.DEALER)
        try:
            self._dealer.connect(self.info.replay_endpoint)
            self._dealer.send_multipart((b"", start.to_bytes(8, "big")), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # nothing was asked, so nothing will answer: the deadline ends it
            log.warning("%s rank %d: replay from %s: %s", self.pod, self.info.rank, self.info.replay_endpoint, error.strerror)
        self._poller.register(self._dealer, zmq.POLLIN)
        self.handlers[self._dealer] = self._on_replay
        self._replay_deadline = time.monotonic() + REPLAY_TIMEOUT_S

    def _close_dealer(self) -> None:
        if self._dealer is not None:
            self._poller.unregister(self._dealer)
            self.handlers.pop(self._dealer)
            self._dealer.close(linger=0)
            self._dealer = None
