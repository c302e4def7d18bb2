"""Prefill and decode apart, as SGLang does it: both get the same request with the same room, and meet at the prefill's bootstrap server.

A prefill computes nothing before its decode has come, and answers (with one token) when the KV was fetched. A decode asks the
bootstrap server where the prefill's rank listens, waits there for the KV, and answers the client. Whichever half fails or goes away,
the other one ends with status 500; a half whose partner never comes waits for `bootstrap_timeout_s`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec

from backend.core.errors import PortInUse
from backend.engines.cost import Link, transfer
from backend.simulate.engine.answers import Answer
from backend.simulate.engine.channel import ChannelServer, TransferFailed, Wanted, fetch, fetch_json
from backend.simulate.engine.driver import Driver
from backend.simulate.engine.http import Clients, Connection, Exchange
from backend.simulate.engine.model import Sequence
from backend.simulate.engine.settings import EngineSettings
from backend.simulate.engine.sglang.figures import SglangFigures
from backend.simulate.engine.sglang.requests import Meeting, bad

log = logging.getLogger(__name__)

_DEFAULT_PORT = 8998
_ROUTE = "/route?prefill_dp_rank=0&prefill_cp_rank=0&target_tp_rank=0&target_pp_rank=0"


@dataclass(eq=False)
class _Room:
    """One meeting at a prefill; either half may be there first."""

    sequence: Sequence | None = None
    decode_here: bool = False
    computed: asyncio.Event = field(default_factory=asyncio.Event)
    failure: str = ""
    timer: asyncio.TimerHandle | None = None


class _Rank(msgspec.Struct):
    """Where a prefill's rank listens, as its bootstrap server tells."""

    rank_ip: str
    rank_port: int


class BootstrapConnector:
    """Either half of a pair; the driver's `Mover`. Only a prefill listens."""

    def __init__(self, settings: EngineSettings, driver: Driver) -> None:
        self._settings = settings
        self._driver = driver
        self._cost = transfer(settings.preset)
        self._link = Link(self._cost, speed=settings.speed)
        self._ranks = ChannelServer(settings.host, 0, self)
        self._clients = Clients(settings.keep_alive_s)
        self._bootstrap: asyncio.Server | None = None
        self._rooms: dict[str, _Room] = {}
        self._fetches: dict[int, tuple[asyncio.Task[None], asyncio.Event]] = {}

    @property
    def port(self) -> int:
        """The bootstrap server's."""
        return 0 if self._bootstrap is None else int(self._bootstrap.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Raises PortInUse."""
        if self._settings.role != "prefill":
            return
        host, port = self._settings.host, self._settings.transfer_port
        await self._ranks.start()
        try:
            loop = asyncio.get_running_loop()
            self._bootstrap = await loop.create_server(lambda: Connection(self._answer, lambda _: None, self._clients), host, port)
        except OSError as error:
            raise PortInUse(host, port, what="the bootstrap server of a prefill") from error

    def close(self) -> None:
        self._ranks.close()
        if self._bootstrap is not None:
            self._bootstrap.close()
        for connection in list(self._clients.open):
            connection.abort()
        for task, _ in self._fetches.values():
            task.cancel()
        for room in self._rooms.values():
            if room.timer is not None:
                room.timer.cancel()

    def prepare(self, answer: Answer, meeting: Meeting) -> None:
        """Take in one half's request. Raises SglangRefused when its room is taken."""
        if self._settings.role == "prefill":
            self._prefill(answer, str(meeting.room))
        else:
            self._decode(answer, meeting)

    # The driver's Mover

    def room(self, sequence: Sequence) -> None:
        self._fetches[id(sequence)][1].set()

    def held(self, sequence: Sequence, answer: Answer) -> bool:
        """The decode is here already and may fetch; the answer goes out when it has."""
        room = self._rooms.get(sequence.request_id)
        if room is not None:
            room.computed.set()
        return False

    def gone(self, sequence: Sequence) -> None:
        task, _ = self._fetches.pop(id(sequence), (None, None))
        if task is not None:
            task.cancel()
        room = self._rooms.get(sequence.request_id)
        if room is not None and room.sequence is sequence:
            room.sequence = None
            self._close_room(sequence.request_id, "The prefill was aborted.")

    # The channel's Offers

    async def ready(self, wanted: Wanted) -> None:
        room = self._rooms.setdefault(wanted.key, _Room())
        if room.decode_here:
            raise TransferFailed(f"Room {wanted.key} has its decode already.")
        room.decode_here = True
        self._meet(room)
        await room.computed.wait()
        if room.failure:
            raise TransferFailed(room.failure)

    def done(self, wanted: Wanted) -> None:
        room = self._rooms.pop(wanted.key, None)
        self._driver.give_up(wanted.key)
        if room is not None and room.sequence is not None:
            self._driver.end(room.sequence)

    def lost(self, wanted: Wanted) -> None:
        self._close_room(wanted.key, "The decode went away.")

    def _prefill(self, answer: Answer, name: str) -> None:
        sequence = answer.sequence
        room = self._rooms.setdefault(name, _Room())
        if room.sequence is not None:
            raise bad(f"bootstrap_room {name} is taken by another request.")
        # Only the first token is computed here, whatever the request allows.
        sequence.request_id, sequence.hold, sequence.max_tokens, sequence.limit_reason = name, True, 1, "length"
        room.sequence = sequence
        self._driver.submit(answer, start=False)
        self._count(1)
        loop = asyncio.get_running_loop()
        late = f"No decode came within {self._settings.bootstrap_timeout_s:g} s."
        room.timer = loop.call_later(self._settings.bootstrap_timeout_s, self._close_room, name, late)
        self._meet(room)

    def _meet(self, room: _Room) -> None:
        """Both halves are here: the prompt is computed."""
        if room.sequence is None or not room.decode_here:
            return
        self._count(-1)
        if room.timer is not None:
            room.timer.cancel()
            room.timer = None
        self._driver.start(room.sequence)

    def _close_room(self, name: str, why: str) -> None:
        room = self._rooms.pop(name, None)
        if room is None:
            return
        room.failure = why
        room.computed.set()
        if room.timer is not None:
            room.timer.cancel()
            self._count(-1)
        self._driver.give_up(name)
        if room.sequence is not None:
            self._driver.fail(room.sequence, f"Prefill transfer failed for request bootstrap_room={name}: {why}")

    def _count(self, change: int) -> None:
        figures = self._driver.figures
        if isinstance(figures, SglangFigures):
            figures.bootstrapping += change

    def _decode(self, answer: Answer, meeting: Meeting) -> None:
        sequence = answer.sequence
        sequence.fetch = True
        room = asyncio.Event()
        task = asyncio.create_task(self._fetch(sequence, meeting, room), name=f"fetch KV of room {meeting.room}")
        self._fetches[id(sequence)] = (task, room)
        self._driver.submit(answer)

    async def _fetch(self, sequence: Sequence, meeting: Meeting, room: asyncio.Event) -> None:
        settings = self._settings
        try:
            if not meeting.host:
                raise TransferFailed("The request has no bootstrap_host.")
            port = meeting.port or _DEFAULT_PORT
            rank = await fetch_json(meeting.host, port, _ROUTE, _Rank, handshake_s=settings.handshake_timeout_s)
            seconds = await fetch(
                rank.rank_ip,
                rank.rank_port,
                Wanted(str(meeting.room)),
                room=room,
                travel_s=lambda: self._link.seconds(time.monotonic(), sequence.external_tokens),
                handshake_s=settings.handshake_timeout_s,
                wait_s=settings.bootstrap_timeout_s,
            )
        except (TransferFailed, OverflowError) as failed:
            log.warning("the KV of room %d did not come: %s", meeting.room, failed)
            self._fetches.pop(id(sequence), None)
            self._driver.fail(sequence, f"Decode transfer failed for request bootstrap_room={meeting.room}: {failed}")
            return
        self._fetches.pop(id(sequence), None)
        self._driver.fetched(sequence, seconds, sequence.external_tokens * self._cost.bytes_per_token)

    def _answer(self, exchange: Exchange) -> None:
        """The bootstrap server: where this prefill's rank is, or with -1 for the ranks what kind of prefill it is."""
        path = urlsplit(exchange.path).path
        if path == "/health":
            exchange.reply(200, b"OK", b"text/plain; charset=utf-8")
        elif path == "/route" and exchange.method == "GET":
            asked = [value for name, value in exchange.query.items() if "rank" in name or "group" in name]
            exchange.reply(200, msgspec.json.encode(self._kind() if asked and set(asked) == {"-1"} else self._rank()))
        else:
            exchange.reply(404, b"404: Not Found", b"text/plain; charset=utf-8")

    def _rank(self) -> dict[str, object]:
        return {"rank_ip": self._settings.host, "rank_port": self._ranks.port}

    def _kind(self) -> dict[str, object]:
        sizes = dict.fromkeys(("attn_tp_size", "attn_cp_size", "dp_size", "pp_size"), 1)
        return {**sizes, "page_size": self._settings.core.block_size, "kv_cache_dtype": "auto", "follow_bootstrap_room": True}
