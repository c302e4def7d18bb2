"""How pods are: their /metrics, read every few seconds through the engine's adapter.

Owns asking, rates and staleness. A pod that does not answer keeps its last figures and says how old they are; a figure that the
engine does not have is listed as missing, never taken as zero.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable

import msgspec

from backend.api.fleet import Pod, PodLoad
from backend.core.clock import Clock, SystemClock
from backend.core.errors import Unavailable, UsageError
from backend.core.settings import FleetSettings
from backend.core.supervise import Supervisor
from backend.engines.base import EngineAdapter, adapter
from backend.fleet.fetch import Page
from backend.fleet.rates import LoadHistory

log = logging.getLogger(__name__)

STALE_AFTER_SCRAPES = 3
"""Scrapes that may fail before figures count as stale."""
LARGEST_ANSWER = 16 * 2**20
"""Bytes of /metrics at most; a real vLLM under load sends 72 KB."""
_ASKED_STATES = frozenset({"ready", "unready", "stopping"})


class Scraper:
    """Follows the pods it was told of. `load` answers from memory."""

    def __init__(self, settings: FleetSettings, tasks: Supervisor, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.failures = 0
        """Scrapes that failed, since start."""
        self._tasks = tasks
        self._clock: Clock = clock or SystemClock()
        self._pages: dict[str, Page] = {}
        self._pods: dict[str, Pod] = {}
        self._history: dict[str, LoadHistory] = {}

    async def follow(self, pods: Iterable[Pod]) -> None:
        """Scrape exactly these from now on; a pod that was started anew forgets its figures."""
        wanted = {pod.name: pod for pod in pods}
        for name in self._pods.keys() - wanted.keys():
            await self._tasks.cancel(_task(name))
            self._forget(name)
        for name, pod in wanted.items():
            known = self._pods.get(name)
            if known is None or (known.started_at, known.address, known.engine) != (pod.started_at, pod.address, pod.engine):
                self._forget(name)
                self._history[name] = LoadHistory()
                self._pages[name] = Page(pod.ip, pod.port, "/metrics", largest_bytes=LARGEST_ANSWER)
            self._pods[name] = pod
            if known is None:
                self._tasks.start(_task(name), lambda name=name: self._scrape_always(name))  # type: ignore[misc]
        self._pods = wanted

    def load(self, name: str) -> PodLoad:
        """The newest figures of a pod, with their age judged now."""
        history = self._history.get(name)
        if history is None:
            return PodLoad()
        load = history.load
        late = self._clock.monotonic() - history.scraped_monotonic > STALE_AFTER_SCRAPES * self.settings.scrape_s
        return msgspec.structs.replace(load, state="stale") if load.state == "fresh" and late else load

    def close(self) -> None:
        """Let go of the connections; call it after the tasks have ended."""
        for page in self._pages.values():
            page.close()

    def _forget(self, name: str) -> None:
        self._history.pop(name, None)
        if page := self._pages.pop(name, None):
            page.close()

    async def _scrape_always(self, name: str) -> None:
        # Spread over the period, so that pods which appear together are not asked together.
        await asyncio.sleep(random.random() * min(self.settings.scrape_s, 1.0))
        while True:
            if self._pods[name].state in _ASKED_STATES:
                await self.scrape(name)
            await asyncio.sleep(self.settings.scrape_s * random.uniform(0.95, 1.05))

    async def scrape(self, name: str) -> PodLoad:
        """Ask a pod once and return what is known now."""
        pod, history = self._pods[name], self._history[name]
        try:
            engine: EngineAdapter = adapter(pod.engine)
            async with asyncio.timeout(self.settings.scrape_timeout_s):
                text = await self._pages[name].fetch()
            figures = engine.parse_load(text)
        except TimeoutError:
            self._failed(history, f"no answer within {self.settings.scrape_timeout_s:g} s")
        except (Unavailable, UsageError) as error:
            self._failed(history, error.message)
        except ValueError as error:
            self._failed(history, f"a figure cannot be read: {error}")
        else:
            history.add(figures, set(engine.metrics.spellings()), now=self._clock.now(), monotonic=self._clock.monotonic())
        return self.load(name)

    def _failed(self, history: LoadHistory, why: str) -> None:
        self.failures += 1
        history.fail(why)


def _task(name: str) -> str:
    return f"scrape:{name}"
