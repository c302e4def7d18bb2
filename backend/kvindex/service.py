"""The index service: feed thread, discovery, query API, heartbeat, and the moment at which a new index is shown to readers."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from pathlib import Path

from backend.api.cache import SourceState
from backend.core import web
from backend.core.clock import Clock, SystemClock
from backend.core.files import ensure_folder
from backend.core.metrics import Registry
from backend.core.settings import KvIndexSettings
from backend.core.supervise import Supervisor
from backend.fleet.source import FleetSource
from backend.kvindex import figures, kernels
from backend.kvindex.discovery import Discovery
from backend.kvindex.feed import Feed
from backend.kvindex.handlers import Handlers
from backend.kvindex.index import PrefixIndex

log = logging.getLogger(__name__)

BEAT_S = 0.5
_LOOK_S = 0.05
SHARE_AGAIN_S = 5.0
"""Seconds between two attempts to give readers an index that outgrew shared memory."""
PUBLISH_AFTER_S = 3.0
"""Readers get the new index at the latest then, however many engines have not answered."""


class IndexService:
    """Everything of one index process. `run` returns when `tasks` is stopped."""

    def __init__(self, settings: KvIndexSettings, tasks: Supervisor, *, clock: Clock | None = None) -> None:
        self.settings, self.clock = settings, clock or SystemClock()
        self._tasks = tasks
        self._temporary = settings.shared is None
        self.folder = ensure_folder(settings.shared or Path(tempfile.mkdtemp(prefix="workbench-index-")))
        self.index = PrefixIndex(settings.capacity_blocks, self.folder, publish=False, wait_for_kernels=False)
        self.feed = Feed(self.index, self.clock)
        self.discovery = Discovery(FleetSource(settings.fleet, settings.pods), self.feed, tasks)
        self.port = 0

    async def run(self) -> None:
        registry = Registry()
        figures.register(registry, self)
        app = web.application(registry, token=web.read_token(self.settings.token_file))
        Handlers(self).register(app)
        runner = await web.serve(app, host=self.settings.listen.host, port=self.settings.listen.port, what="kvindex")
        self.port = web.bound_port(runner)
        receiver = asyncio.create_task(asyncio.to_thread(self.feed.run), name="kvindex:receiver")
        receiver.add_done_callback(self._receiver_ended)
        self._tasks.start("kernels", self._load_kernels)
        self._tasks.start("discovery", self.discovery.run)
        self._tasks.start("publish", self._publish)
        self._tasks.start("room", self._share_again)
        self._tasks.start("heartbeat", self._beat, on_death="stop")
        try:
            await self._tasks.wait_stopped()
        finally:
            await self._tasks.close()
            self.feed.stop()
            await asyncio.gather(receiver, return_exceptions=True)
            await runner.cleanup()
            self.index.close()
            if self._temporary:
                shutil.rmtree(self.folder, ignore_errors=True)

    def source_states(self) -> list[SourceState]:
        states = [*self.feed.states(), *self.discovery.states()]
        known = {state.pod for state in states}
        states += [SourceState(pod=pod.name, reason="not asked yet") for pod in self.discovery.pods() if pod.name not in known]
        return sorted(states, key=lambda state: (state.pod, state.rank))

    def only_model(self) -> str:
        """The fleet's model when there is just one; "" otherwise."""
        models = {pod.model for pod in self.discovery.pods()}
        return models.pop() if len(models) == 1 else ""

    async def _load_kernels(self) -> None:
        started = time.monotonic()
        await asyncio.to_thread(kernels.warm)
        log.info("kernels ready after %.1f s", time.monotonic() - started)

    async def _publish(self) -> None:
        """Show the index once the first round of replays is in; at once when readers have nothing to look at."""
        for _ in range(int(PUBLISH_AFTER_S / _LOOK_S)):
            if not self.index.has_predecessor or self.discovery.settled():
                break
            await asyncio.sleep(_LOOK_S)
        self.index.publish()
        log.info("index published: %d blocks", self.index.stats().distinct_blocks)

    async def _beat(self) -> None:
        while True:
            self.index.beat()
            await asyncio.sleep(BEAT_S)

    async def _share_again(self) -> None:
        told = ""
        while True:
            await asyncio.sleep(SHARE_AGAIN_S)
            if self.index.problem:
                if not told:
                    log.error("%s Readers keep an older index until there is room.", self.index.problem)
                await asyncio.to_thread(self.index.share)
            if told and not self.index.problem:
                log.info("readers see the whole index again")
            told = self.index.problem

    def _receiver_ended(self, receiver: asyncio.Task[None]) -> None:
        if not receiver.cancelled() and (error := receiver.exception()) is not None:
            log.error("the receiving thread died, the process ends", exc_info=error)
            self._tasks.stop(error)
