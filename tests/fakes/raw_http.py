"""An HTTP client that sends exactly the bytes it is given and reads answers strictly; nothing is repaired on the way."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    raw_body: bytes
    """As framed on the wire."""

    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """`async with RawClient(port) as client:`"""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.host, self.port = host, port

    async def __aenter__(self) -> RawClient:
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port, limit=2**24)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (ConnectionError, BrokenPipeError):
            pass

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> tuple[int, dict[str, str]]:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        line, *lines = raw[:-4].decode("latin-1").split("\r\n")
        version, status, _ = line.split(" ", 2)
        assert version == "HTTP/1.1"
        headers: dict[str, str] = {}
        for each in lines:
            name, _, value = each.partition(": ")
            assert name.lower() not in headers, f"{name} is there twice"
            headers[name.lower()] = value
        return int(status), headers

    async def answer(self, *, head_only: bool = False, timeout_s: float = 10.0) -> Answer:
        async with asyncio.timeout(timeout_s):
            return await self._answer(head_only)

    async def _answer(self, head_only: bool) -> Answer:
        status, headers = await self.head()
        if head_only or status in (204, 304) or status < 200:
            return Answer(status, headers, b"", b"")
        if headers.get("transfer-encoding") == "chunked":
            assert "content-length" not in headers
            return Answer(status, headers, *await self._chunks())
        if "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        else:
            assert headers.get("connection") == "close"
            body = await self.reader.read()
        return Answer(status, headers, body, body)

    async def _chunks(self) -> tuple[bytes, bytes]:
        body = raw = b""
        while True:
            line = await self.reader.readuntil(b"\r\n")
            raw += line
            size = int(line.split(b";")[0], 16)
            chunk = await self.reader.readexactly(size + 2)
            raw += chunk
            assert chunk.endswith(b"\r\n")
            body += chunk[:-2]
            if size == 0:
                return body, raw

    async def ended(self, timeout_s: float = 5.0) -> bytes:
        """What came before the other side closed."""
        async with asyncio.timeout(timeout_s):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


def post(body: Any, *, path: str = "/v1/completions", extra: str = "", version: str = "1.1") -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/{version}\r\nhost: gateway\r\ncontent-type: application/json\r\n{extra}content-length: {len(raw)}\r\n\r\n"
    return head.encode() + raw


def get(path: str, *, method: str = "GET", extra: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: gateway\r\n{extra}\r\n".encode()


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": [1, 2, 3, 4], "max_tokens": 4, **fields}


async def ask(port: int, body: Any, **how: Any) -> Answer:
    """One request on a connection of its own."""
    async with RawClient(port) as client:
        client.send(post(body, **how))
        return await client.answer()
