"""KV events: messages made by hand, and a publisher with a real PUB and a real replay ROUTER. Not here: an engine (backend.simulate)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import zmq

END = b"\xff" * 8


def stored(
    hashes: Sequence[object], tokens: Sequence[int], *, parent: object = None, block_size: int = 4, **more: object
) -> dict[str, object]:
    """A BlockStored as vLLM 0.24 and later write it."""
    return {
        "type": "BlockStored",
        "block_hashes": list(hashes),
        "parent_block_hash": parent,
        "token_ids": list(tokens),
        "block_size": block_size,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        **more,
    }


def removed(*hashes: object, **more: object) -> dict[str, object]:
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", **more}


def cleared() -> dict[str, object]:
    return {"type": "AllBlocksCleared"}


def batch(*events: object, timestamp: float = 1.0, rank: int = 0) -> bytes:
    """One message."""
    return msgspec.msgpack.encode([timestamp, list(events), rank])


class Publisher:
    """Publishes and replays as an engine does: PUB and ROUTER, sequence from 0, replay in the framing with or without a topic."""

    def __init__(self, host: str = "127.0.0.1", *, topic_in_replay: bool = True, buffer: int = 10_000) -> None:
        self.messages: list[tuple[int, bytes]] = []
        self.requests: list[int] = []
        """Start of every replay that was asked for."""
        self.answers_replay = True
        self._buffer, self._topic_in_replay = buffer, topic_in_replay
        self._context = zmq.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._router = self._context.socket(zmq.ROUTER)
        for socket in (self._pub, self._router):
            socket.setsockopt(zmq.LINGER, 0)
        self.port = self._pub.bind_to_random_port(f"tcp://{host}")
        self.replay_port = self._router.bind_to_random_port(f"tcp://{host}")
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def sources(self) -> bytes:
        """What GET /kv_event_sources answers."""
        entry = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.port}",
            "replay_endpoint": f"tcp://*:{self.replay_port}",
            "buffer_steps": self._buffer,
            "hwm": 100_000,
            "max_queue_size": 100_000,
            "topic": "",
        }
        return msgspec.json.encode({"0": entry})

    def publish(self, payload: bytes, *, lose: bool = False) -> None:
        """Send one message; with `lose` it is only there for replay."""
        with self._lock:
            sequence = self.messages[-1][0] + 1 if self.messages else 0
            self.messages.append((sequence, payload))
            del self.messages[: -self._buffer]
        if not lose:
            self.send(sequence, payload)

    def send(self, sequence: int, payload: bytes) -> None:
        self._pub.send_multipart((b"", sequence.to_bytes(8, "big"), payload))

    def send_frames(self, *frames: bytes) -> None:
        self._pub.send_multipart(frames)

    def restart(self) -> None:
        """Another boot: numbers begin at 0, nothing to replay."""
        with self._lock:
            self.messages = []

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(5)
        self._context.destroy(linger=0)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            if not self._router.poll(50):
                continue
            frames: list[Any] = self._router.recv_multipart()
            if not self.answers_replay:
                continue
            start = int.from_bytes(frames[-1], "big")
            self.requests.append(start)
            with self._lock:
                wanted = [message for message in self.messages if message[0] >= start]
            topic = (b"",) if self._topic_in_replay else ()
            for sequence, payload in wanted:
                self._router.send_multipart((frames[0], b"", *topic, sequence.to_bytes(8, "big"), payload))
            self._router.send_multipart((frames[0], b"", *topic, END, b""))


@contextlib.contextmanager
def publisher(**options: Any) -> Iterator[Publisher]:
    made = Publisher(**options)
    try:
        yield made
    finally:
        made.close()
