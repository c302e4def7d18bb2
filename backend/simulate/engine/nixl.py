"""Prefill and decode apart, as vLLM's NIXL connector does it: what `kv_transfer_params` say, who fetches, and what happens if not.

A prefill that was asked to (`do_remote_decode`) ends with its blocks held and tells where they are. A decode that gets those words
back (`do_remote_prefill`) fetches the whole prompt's KV and computes only its last token. Measured on vLLM 0.32.0: a prefill that
cannot be reached fails the request after 5 s with status 500; words that were used before are answered as if nothing were wrong.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any

from backend.engines.cost import Link, transfer
from backend.simulate.engine.answers import Answer
from backend.simulate.engine.bodies import VllmWriter
from backend.simulate.engine.channel import ChannelServer, TransferFailed, Wanted, fetch
from backend.simulate.engine.dialect import Version
from backend.simulate.engine.driver import Driver
from backend.simulate.engine.model import Sequence
from backend.simulate.engine.settings import EngineSettings

log = logging.getLogger(__name__)

_NEEDED = ("remote_block_ids", "remote_engine_id", "remote_host", "remote_port")
# 0.32.0 is measured; when the older ones got each field was read, not seen.
_TP_SIZE_SINCE = (0, 10)
_REQUEST_ID_SINCE = (0, 14)
_GROUPS_SINCE = (0, 17)
_WHOLE_SINCE = (0, 31)
# Leases that a waiting decode renews came about here; before, there was one long timeout.
_LEASES_SINCE = (0, 22)


def lease_s(version: Version) -> float:
    """Seconds that a version holds KV which nobody comes for."""
    return 30.0 if version >= _LEASES_SINCE else 480.0


class NixlConnector:
    """Both halves of one engine; the driver's `Mover`."""

    def __init__(self, settings: EngineSettings, driver: Driver) -> None:
        self.engine_id = str(uuid.uuid4())
        self._settings = settings
        self._version = settings.version_numbers
        self._driver = driver
        self._cost = transfer(settings.preset)
        self._link = Link(self._cost, speed=settings.speed)
        self._server = ChannelServer(settings.host, settings.transfer_port, self)
        self._fetches: dict[int, tuple[asyncio.Task[None], asyncio.Event]] = {}

    @property
    def port(self) -> int:
        return self._server.port

    async def start(self) -> None:
        await self._server.start()

    def close(self) -> None:
        self._server.close()
        for task, _ in self._fetches.values():
            task.cancel()

    def internal_id(self, shown: str, *, chat: bool) -> str:
        """The name of a request between engines; old versions used the one that clients see, equal on both by X-Request-Id."""
        return f"{shown}{'' if chat else '-0'}-{os.urandom(4).hex()}" if self._version >= _REQUEST_ID_SINCE else shown

    def prepare(self, sequence: Sequence, params: Mapping[str, Any]) -> None:
        """Note in a new request what its `kv_transfer_params` mean, and begin to reach the prefill that they name."""
        if params.get("do_remote_decode"):
            sequence.hold = True
        elif params.get("do_remote_prefill"):
            wanted = self._wanted(sequence, params)
            if wanted is None:
                log.warning("kv_transfer_params without %s: the prompt is computed here", ", ".join(_NEEDED))
                return
            sequence.fetch = True
            told = params.get("remote_prefill_cached_tokens")
            sequence.shown_cached = told if self._version >= _WHOLE_SINCE and isinstance(told, int) else sequence.prompt_tokens
            room = asyncio.Event()
            task = asyncio.create_task(self._fetch(sequence, params, wanted, room), name=f"fetch KV {sequence.request_id}")
            self._fetches[id(sequence)] = (task, room)

    # The driver's Mover

    def room(self, sequence: Sequence) -> None:
        self._fetches[id(sequence)][1].set()

    def held(self, sequence: Sequence, answer: Answer) -> bool:
        """The answer goes out at once and tells where the blocks are."""
        if isinstance(answer.writer, VllmWriter):
            answer.writer.transfer = self._params(sequence)
        return True

    def gone(self, sequence: Sequence) -> None:
        task, _ = self._fetches.pop(id(sequence), (None, None))
        if task is not None:
            task.cancel()

    # The channel's Offers

    async def ready(self, wanted: Wanted) -> None:
        """What is not held any more is not missed: the decode reads blocks that others use, and does not notice."""
        if wanted.engine_id != self.engine_id:
            await asyncio.sleep(self._settings.handshake_timeout_s)
            raise TransferFailed("The prefill is another engine than the one that computed the prompt.")
        if self._driver.core.held.pin(wanted.key) is None:
            log.warning("KV of %s was fetched, which is not held: it came too late, or twice", wanted.key)

    def done(self, wanted: Wanted) -> None:
        self._driver.fetch_over(wanted.key, fetched=True)

    def lost(self, wanted: Wanted) -> None:
        self._driver.fetch_over(wanted.key, fetched=False)

    def _wanted(self, sequence: Sequence, params: Mapping[str, Any]) -> Wanted | None:
        key = params.get("remote_request_id") or (None if self._version >= _REQUEST_ID_SINCE else sequence.request_id)
        if key is None or any(params.get(name) is None for name in _NEEDED):
            return None
        return Wanted(str(key), str(params["remote_engine_id"]))

    async def _fetch(self, sequence: Sequence, params: Mapping[str, Any], wanted: Wanted, room: asyncio.Event) -> None:
        try:
            seconds = await fetch(
                str(params["remote_host"]),
                int(params["remote_port"]),
                wanted,
                room=room,
                travel_s=lambda: self._link.seconds(time.monotonic(), sequence.external_tokens),
                handshake_s=self._settings.handshake_timeout_s,
                wait_s=self._settings.handshake_timeout_s + 1,
            )
        except (TransferFailed, ValueError, TypeError, OverflowError) as failed:
            log.warning("the KV of %s did not come: %s", sequence.request_id, failed)
            self._fetches.pop(id(sequence), None)
            self._driver.fail(sequence, str(failed))
            return
        self._fetches.pop(id(sequence), None)
        size = self._settings.core.block_size
        self._driver.fetched(sequence, seconds, -(-sequence.external_tokens // size) * size * self._cost.bytes_per_token)

    def _params(self, sequence: Sequence) -> dict[str, object]:
        """Where a decode finds this prefill's KV, in the order of the fields that vLLM has."""
        blocks: list[Any] = self._driver.core.held.blocks_of(sequence.request_id)
        params: dict[str, object] = {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [blocks] if self._version >= _GROUPS_SINCE else blocks,
            "remote_engine_id": self.engine_id,
        }
        if self._version >= _REQUEST_ID_SINCE:
            params["remote_request_id"] = sequence.request_id
        params |= {"remote_host": self._settings.host, "remote_port": self.port}
        if self._version >= _TP_SIZE_SINCE:
            params["tp_size"] = 1
        if self._version >= _WHOLE_SINCE:
            params |= {"dcp_size": 1, "pp_size": 1, "remote_num_tokens": sequence.prompt_tokens, "remote_blocks_expiry_time": None}
            params |= {"transfer_mode": "pull", "remote_prefill_cached_tokens": sequence.cached_tokens}
        return params
