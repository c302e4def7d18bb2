"""Readiness and liveness: one GET on a fresh connection, since what must be proven is that the pod takes new ones."""

from __future__ import annotations

import asyncio

from backend.localkube.runtime.addresses import Address
from backend.localkube.runtime.model import Probed

PATH = "/health"


async def probe(address: Address, *, timeout_s: float = 1.0) -> Probed:
    """Ask once. Never raises for what a pod can do: refuse, hang, answer rubbish."""
    try:
        async with asyncio.timeout(timeout_s):
            line = await _status_line(address)
    except TimeoutError:
        return Probed(False, f"GET {PATH} was not answered within {timeout_s:g} s")
    except OSError as error:
        return Probed(False, f"GET {PATH}: {error.strerror or error}")
    words = line.split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return Probed(False, f"GET {PATH} was not answered in HTTP: {line[:40]!r}")
    if words[1] != b"200":
        return Probed(False, f"GET {PATH} answered {words[1].decode()}")
    return Probed(True)


async def _status_line(address: Address) -> bytes:
    reader, writer = await asyncio.open_connection(address.ip, address.http_port, limit=4096)
    try:
        writer.write(f"GET {PATH} HTTP/1.1\r\nHost: {address.ip}:{address.http_port}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        line = await reader.read(64)
        return line.split(b"\r\n", 1)[0]
    finally:
        writer.close()
