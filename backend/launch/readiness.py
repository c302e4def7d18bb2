"""Whether a part answers: the smallest question that proves it. Small on purpose: `up` stays in memory for days."""

from __future__ import annotations

import asyncio
from urllib.parse import unquote, urlsplit

from backend.launch.layout import HOST
from backend.launch.parts import Part

TIMEOUT_S = 2.0


async def is_ready(part: Part, *, password: str = "") -> bool:
    """Ask once; a process without an interface is ready as soon as it runs."""
    match part.ready_by:
        case "running":
            return True
        case "redis":
            return await answers_ping(HOST, part.port, password)
        case "http":
            return await answers_http(HOST, part.port, part.ready_path)


async def answers_http(host: str, port: int, path: str) -> bool:
    """Whether a GET is answered with a status below 400."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    line = (await _first_line(host, port, request.encode())).split(maxsplit=2)
    return len(line) > 1 and line[0].startswith(b"HTTP/") and line[1].isdigit() and int(line[1]) < 400


async def answers_ping(host: str, port: int, password: str) -> bool:
    """Whether a Redis server takes our password and is done loading its file."""
    if password:
        words = (b"AUTH", password.encode())
        login = b"*2\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        return (await _first_line(host, port, login + b"PING\r\n", lines=2)).endswith(b"+PONG\r\n")
    return (await _first_line(host, port, b"PING\r\n")).startswith(b"+PONG")


async def redis_answers(url: str) -> bool:
    """Whether the server of a Redis URL can be reached (a user name and TLS are left to those who really use it)."""
    parsed = urlsplit(url)
    if parsed.scheme != "redis" or parsed.username:
        return True
    return await answers_ping(parsed.hostname or HOST, parsed.port or 6379, unquote(parsed.password or ""))


async def _first_line(host: str, port: int, request: bytes, *, lines: int = 1) -> bytes:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(request)
                return b"".join([await reader.readline() for _ in range(lines)])
            finally:
                writer.close()
    except (TimeoutError, OSError):
        return b""
