"""A fake engine on a real socket whose answers can be made wrong in every way that an engine was seen, or is feared, to be.

`behaviour` chooses: ok, garbage, trickle, stall (never answers), stall_middle, close_middle, reset (before any byte), reset_middle,
abort (a draining vLLM), surplus (bytes behind its answer), both_lengths, status:NNN, not_json, holds_error, until_close, chunked.
It applies to the OpenAI paths only; `/tokenize` has `tokenize_behaviour`.

In a disaggregated fleet it behaves as vLLM does (a prefill names its blocks, a decode may fetch each once: see `Blocks`) or as SGLang
(both legs wait for each other in a room: see `Rooms`).
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any, cast

TOKEN = "data: " + json.dumps({"object": "text_completion", "choices": [{"index": 0, "text": " token", "finish_reason": None}]}) + "\n\n"
ROLE = "data: " + json.dumps({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}) + "\n\n"
DELTA = "data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": " token"}}]}) + "\n\n"
DONE = "data: [DONE]\n\n"


@dataclass
class Seen:
    """A request as it reached the engine."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.line.split(" ")[1]


class Blocks:
    """KV blocks that vLLM's prefill pods keep for decode pods, by the id of the prefill. Fetched twice: the test's bug or the gateway's."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        """Name of the prefill engine."""
        self.fetched: list[tuple[str, str]] = []
        """Names of the two engines."""

    def keep(self, engine: str) -> dict[str, Any]:
        name = f"prefill-{len(self.kept) + len(self.fetched)}"
        self.kept[name] = engine
        blocks = {"remote_block_ids": [[5, 6]], "remote_engine_id": engine, "remote_request_id": name, "remote_host": "10.1.1.1"}
        return {"do_remote_prefill": True, "do_remote_decode": False, **blocks}

    def fetch(self, params: dict[str, Any], engine: str) -> None:
        self.fetched.append((self.kept.pop(params["remote_request_id"]), engine))


class Rooms:
    """Where SGLang's two legs meet."""

    def __init__(self) -> None:
        self.inside: dict[int, list[str]] = {}
        self._both: dict[int, asyncio.Event] = {}

    async def meet(self, room: int, engine: str) -> None:
        self.inside.setdefault(room, []).append(engine)
        both = self._both.setdefault(room, asyncio.Event())
        if len(self.inside[room]) == 2:
            both.set()
        await both.wait()


@dataclass
class FakeEngine:
    """`async with FakeEngine() as engine:` listens on a free port."""

    name: str = "engine"
    host: str = "127.0.0.1"
    port: int = 0
    behaviour: str = "ok"
    tokenize_behaviour: str = "ok"
    chunks: int = 4
    gap_s: float = 0.0
    """Seconds between two tokens of a stream."""
    delay_s: float = 0.0
    """Seconds before an answer begins."""
    answer_delay_s: float = 0.0
    """The same, behind the meeting of both legs."""
    cached_tokens: int | None = 0
    text: str = "hello"
    told_usage: dict[str, Any] | None = None
    """Instead of the usual counts."""
    events: list[str] | None = None
    """What a stream consists of, instead of the usual tokens; each goes out as one chunk."""
    blocks: Blocks | None = None
    rooms: Rooms | None = None
    requests: list[Seen] = field(default_factory=list)
    connections: set[_Connection] = field(default_factory=set)
    accepted: int = 0
    closed_at: list[float] = field(default_factory=list)
    """Monotonic times at which connections ended."""
    _server: asyncio.Server | None = None

    async def __aenter__(self) -> FakeEngine:
        await self.start()
        return self

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self.connections):
            connection.end()
        await asyncio.sleep(0)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def answered(self) -> list[Seen]:
        """Requests without those to /tokenize."""
        return [seen for seen in self.requests if seen.path != "/tokenize"]

    def usage(self) -> dict[str, Any]:
        if self.told_usage is not None:
            return dict(self.told_usage)
        usage: dict[str, Any] = {"prompt_tokens": 100, "completion_tokens": self.chunks, "total_tokens": 100 + self.chunks}
        if self.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        return usage


class _Connection(asyncio.Protocol):
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.buffer = b""
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.engine.accepted += 1
        self.engine.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.engine.connections.discard(self)
        self.engine.closed_at.append(time.monotonic())
        if self.task is not None:
            self.task.cancel()

    def end(self) -> None:
        if self.task is not None:
            self.task.cancel()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.task is None or self.task.done():
            self.take()

    def take(self) -> None:
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        seen = Seen(line, headers, rest[:length])
        self.engine.requests.append(seen)
        self.task = asyncio.get_running_loop().create_task(self.answer(seen))

    async def answer(self, seen: Seen) -> None:
        if self.engine.delay_s:
            await asyncio.sleep(self.engine.delay_s)
        if seen.path == "/tokenize":
            await self.tokenize(seen)
        else:
            asked = json.loads(seen.body)
            await self.meet(asked)
            if self.engine.answer_delay_s:
                await asyncio.sleep(self.engine.answer_delay_s)
            if asked.get("stream"):
                await self.stream(seen, bool((asked.get("stream_options") or {}).get("include_usage")))
            else:
                await self.whole(asked)
        if self.buffer and not self.transport.is_closing():
            self.take()

    async def meet(self, asked: dict[str, Any]) -> None:
        engine = self.engine
        # A prefill that fails does so before it has handed anything over, unless it is told to answer later.
        fails = asked.get("max_tokens") == 1 and engine.behaviour != "ok" and not engine.answer_delay_s
        if engine.rooms is not None and "bootstrap_room" in asked and not fails:
            await engine.rooms.meet(asked["bootstrap_room"], engine.name)
        params = asked.get("kv_transfer_params")
        if engine.blocks is not None and params and params.get("do_remote_prefill"):
            engine.blocks.fetch(params, engine.name)

    async def tokenize(self, seen: Seen) -> None:
        how = self.engine.tokenize_behaviour
        if how == "stall":
            await asyncio.sleep(3600)
        if how != "ok":
            self.send(500, b'{"error": {"message": "no tokenizer"}}')
            return
        asked = json.loads(seen.body)
        text = asked["prompt"] if "prompt" in asked else json.dumps(asked["messages"])
        tokens = list(text.encode())
        self.send(200, json.dumps({"count": len(tokens), "max_model_len": 4096, "tokens": tokens}).encode())

    def send(self, status: int, body: bytes, extra: str = "") -> None:
        self.transport.write(
            f"HTTP/1.1 {status} Text\r\ncontent-type: application/json\r\n{extra}content-length: {len(body)}\r\n\r\n".encode() + body
        )

    def reset(self) -> None:
        """RST instead of FIN."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    async def whole(self, asked: dict[str, Any] | None = None) -> None:
        engine, how = self.engine, self.engine.behaviour
        finish = "abort" if how == "abort" else "stop"
        usage = engine.usage()
        if how == "abort":
            usage["completion_tokens"] = 0
        answer: dict[str, Any] = {
            "id": "c1",
            "model": "m",
            "choices": [{"index": 0, "text": engine.text, "finish_reason": finish}],
            "usage": usage,
        }
        params = (asked or {}).get("kv_transfer_params")
        if engine.blocks is not None and params and params.get("do_remote_decode"):
            answer["kv_transfer_params"] = engine.blocks.keep(engine.name)
        body = json.dumps(answer).encode()
        if how in ("ok", "abort"):
            self.send(200, body)
        elif how.startswith("status:"):
            status = int(how.removeprefix("status:"))
            error = {"error": {"message": "engine says no", "type": "BadRequestError", "param": "prompt", "code": status}}
            self.send(status, json.dumps(error).encode(), "retry-after: 7\r\n")
        elif how == "plain_error":
            self.transport.write(b"HTTP/1.1 503 X\r\ncontent-length: 4\r\n\r\nbusy")
        elif how == "holds_error":
            self.send(200, b'{"error": {"message": "inside", "code": 429}}')
        elif how == "not_json":
            self.send(200, b"<html>")
        elif how == "surplus":
            self.send(200, body)
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nevil!")
        elif how == "both_lengths":
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")
        elif how == "chunked":
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
            for at in range(0, len(body), 40):
                part = body[at : at + 40]
                self.transport.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.transport.write(b"0\r\n\r\n")
        elif how == "until_close":
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + body)
            self.transport.close()
        else:
            head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            await self.spoil(head, body)

    async def spoil(self, head: bytes, body: bytes) -> None:
        how = self.engine.behaviour
        if how == "garbage":
            self.transport.write(b"\x00\x01\x02 this is not HTTP\r\n\r\n")
        elif how == "trickle":
            for byte in head + body:
                self.transport.write(bytes((byte,)))
                await asyncio.sleep(0)
        elif how == "stall":
            await asyncio.sleep(3600)
        elif how == "bad_chunk":
            self.transport.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n")
        elif how == "reset":
            self.reset()
        elif how in ("stall_middle", "close_middle", "reset_middle"):
            self.transport.write(head + body[: len(body) // 2])
            await asyncio.sleep(0.02)
            if how == "stall_middle":
                await asyncio.sleep(3600)
            elif how == "reset_middle":
                self.reset()
            else:
                self.transport.close()
        else:
            raise AssertionError(f"unknown behaviour {how!r}")

    async def stream(self, seen: Seen, include_usage: bool) -> None:
        engine, how = self.engine, self.engine.behaviour
        if how in ("garbage", "reset", "stall"):
            await self.spoil(b"", b"")
            return
        if how.startswith("status:"):
            await self.whole()
            return
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n")
        chat = seen.path.startswith("/v1/chat")
        events = ([ROLE] if chat else []) + [DELTA if chat else TOKEN] * engine.chunks
        if include_usage:
            events.append("data: " + json.dumps({"choices": [], "usage": engine.usage()}) + "\n\n")
        events = [*(engine.events if engine.events is not None else events), DONE]
        for number, event in enumerate(events):
            if number == len(events) // 2 and how in ("stall_middle", "close_middle", "reset_middle", "bad_chunk"):
                await self.break_stream(how)
                return
            await self.event(event.encode())
            if engine.gap_s:
                await asyncio.sleep(engine.gap_s)
        self.transport.write(b"0\r\n\r\n")

    async def event(self, event: bytes) -> None:
        frame = b"%x\r\n%b\r\n" % (len(event), event)
        if self.engine.behaviour != "trickle":
            self.transport.write(frame)
            return
        # Split inside the event and inside the frame, so that no packet holds a whole event.
        for at in range(0, len(frame), 7):
            self.transport.write(frame[at : at + 7])
            await asyncio.sleep(0.0005)

    async def break_stream(self, how: str) -> None:
        await asyncio.sleep(0.02)
        if how == "bad_chunk":
            self.transport.write(b"zz\r\nno size\r\n")
        elif how == "stall_middle":
            await asyncio.sleep(3600)
        elif how == "reset_middle":
            self.reset()
        else:
            self.transport.close()
