"""How one simulated engine fetches a prompt's KV from another: who asks, who waits, and who learns that it is over.

One TCP connection a transfer, JSON lines. The decode says what it wants and stays connected, which keeps the prefill's blocks
alive; the prefill says when it is computed; the decode waits until it has blocks of its own and
for as long as the bytes would travel, and says that it is done. No KV exists, so none is sent. Real engines use their own protocols
for the same steps (NIXL's side channel, the ranks' sockets behind a bootstrap server).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from backend.core.errors import PortInUse, WorkbenchError

log = logging.getLogger(__name__)

_RETRY_S = 0.1

Answered = TypeVar("Answered")


class TransferFailed(WorkbenchError):
    """A prompt's KV did not come."""


class Wanted(msgspec.Struct):
    """A decode's first line."""

    key: str
    """What the prefill knows the KV by: a request, or a room."""
    engine_id: str = ""
    """The engine that it believes to speak to; empty: any."""


class _Ready(msgspec.Struct):
    """The prefill's only line: the KV is there, or never will be."""

    error: str = ""


class Offers(Protocol):
    """What a prefill does about those who come to fetch."""

    async def ready(self, wanted: Wanted) -> None:
        """Wait until the KV is computed. Raises TransferFailed when it never will be."""

    def done(self, wanted: Wanted) -> None:
        """It was fetched."""

    def lost(self, wanted: Wanted) -> None:
        """The decode went away before."""


class ChannelServer:
    """The prefill's side. `start` opens the port, `close` ends every transfer."""

    def __init__(self, host: str, port: int, offers: Offers) -> None:
        self._host, self._asked_port = host, port
        self._offers = offers
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        if self._server is None:
            raise RuntimeError("the channel does not listen")
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Raises PortInUse."""
        try:
            self._server = await asyncio.start_server(self._accept, self._host, self._asked_port)
        except OSError as error:
            raise PortInUse(self._host, self._asked_port, what="the transfer of KV between engines") from error

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        try:
            wanted = msgspec.json.decode(await reader.readline(), type=Wanted)
            await self._serve(wanted, reader, writer)
        except (msgspec.DecodeError, OSError, ValueError) as error:
            log.warning("a KV transfer was asked for in a way that nobody understands: %s", error)
        except asyncio.CancelledError:
            pass  # the engine ends; the decode sees the connection close
        finally:
            writer.close()

    async def _serve(self, wanted: Wanted, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Whatever comes from the decode before the KV is ready can only be its end."""
        ended = asyncio.ensure_future(reader.readline())
        ready = asyncio.ensure_future(self._offers.ready(wanted))
        fetched = False
        try:
            await asyncio.wait({ended, ready}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                return
            try:
                ready.result()
                answer = _Ready()
            except TransferFailed as failed:
                answer = _Ready(error=str(failed))
            writer.write(msgspec.json.encode(answer) + b"\n")
            fetched = bool(await ended)
        finally:
            for future in (ended, ready):
                future.cancel()
            if fetched:
                self._offers.done(wanted)
            else:
                self._offers.lost(wanted)


async def fetch(
    host: str, port: int, wanted: Wanted, *, room: asyncio.Event, travel_s: Callable[[], float], handshake_s: float, wait_s: float
) -> float:
    """The decode's side; seconds that the KV travelled. `room` is set when there are blocks for it, and `travel_s` asked then.

    A prefill that cannot be reached is tried for `handshake_s`, and one that has nothing yet gets `wait_s`. Raises TransferFailed.
    """
    reader, writer = await _connect(host, port, handshake_s)
    try:
        writer.write(msgspec.json.encode(wanted) + b"\n")
        async with asyncio.timeout(wait_s):
            line = await reader.readline()
        if not line:
            raise TransferFailed("The prefill engine went away.")
        if error := msgspec.json.decode(line, type=_Ready).error:
            raise TransferFailed(error)
        await room.wait()
        seconds = travel_s()
        if not await _silent(reader, seconds):
            raise TransferFailed("The prefill engine went away during the transfer.")
        writer.write(b"{}\n")
        return seconds
    except TimeoutError:
        raise TransferFailed(f"The prefill engine had no KV for {wait_s:g} s.") from None
    except (OSError, msgspec.DecodeError) as error:
        raise TransferFailed(f"The connection to the prefill engine broke: {error}") from error
    finally:
        writer.close()


async def _silent(reader: asyncio.StreamReader, seconds: float) -> bool:
    """Whether nothing came for so long. There is only one thing to come: the connection's end, with which the KV is lost."""
    try:
        async with asyncio.timeout(seconds):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def _connect(host: str, port: int, handshake_s: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As a message queue does: the connection is tried again until the time is over."""
    loop = asyncio.get_running_loop()
    end = loop.time() + handshake_s
    problem: Exception = TimeoutError("no answer")
    while (left := end - loop.time()) > 0:
        try:
            async with asyncio.timeout(left):
                return await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            problem = error
        await asyncio.sleep(min(_RETRY_S, max(0.0, end - loop.time())))
    raise TransferFailed(f"The prefill engine at {host}:{port} could not be reached: {problem}")


async def fetch_json(host: str, port: int, target: str, kind: type[Answered], *, handshake_s: float) -> Answered:
    """One GET at another engine's small HTTP server. Raises TransferFailed."""
    reader, writer = await _connect(host, port, handshake_s)
    try:
        writer.write(f"GET {target} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n".encode())
        async with asyncio.timeout(handshake_s):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise TransferFailed(f"{host}:{port} is not the bootstrap server of a prefill.")
        return msgspec.json.decode(body, type=kind)
    except (TimeoutError, OSError, msgspec.DecodeError) as error:
        raise TransferFailed(f"{host}:{port} does not answer as the bootstrap server of a prefill: {error}") from error
    finally:
        writer.close()
