"""Readiness and liveness: one GET on a fresh connection, since what must be proven is that the pod takes new ones."""

from __future__ import annotations

import asyncio

from backend.localkube.runtime.addresses import Address
from backend.localkube.runtime.model import Probe, Probed, ProbeKind

HEALTH = Probe()
"""What is asked when nobody says: the engines' /health."""


async def probe(address: Address, asked: Probe = HEALTH, kind: ProbeKind = ProbeKind.READINESS) -> Probed:
    """Ask once. Never raises for what a pod can do: refuse, hang, answer rubbish. As in Kubernetes, 200 to 399 is a good answer."""
    port = asked.port or address.http_port
    what = f"GET {asked.path}" if asked.path is not None else f"a connection to port {port}"
    try:
        async with asyncio.timeout(asked.timeout_s):
            line = await _status_line(address.ip, port, asked.path)
    except TimeoutError:
        return Probed(False, f"{what} was not answered within {asked.timeout_s:g} s", kind)
    except OSError as error:
        return Probed(False, f"{what}: {error.strerror or error}", kind)
    if asked.path is None:
        return Probed(True, kind=kind)
    words = line.split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return Probed(False, f"{what} was not answered in HTTP: {line[:40]!r}", kind)
    if not 200 <= int(words[1]) < 400:
        return Probed(False, f"{what} answered {words[1].decode()}", kind)
    return Probed(True, kind=kind)


async def _status_line(ip: str, port: int, path: str | None) -> bytes:
    reader, writer = await asyncio.open_connection(ip, port, limit=4096)
    try:
        if path is None:
            return b""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {ip}:{port}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        line = await reader.read(64)
        return line.split(b"\r\n", 1)[0]
    finally:
        writer.close()
