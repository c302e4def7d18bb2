"""Which event sources there are: follows the fleet, asks each engine where it publishes, tells the feed.

Never opens an event socket. A pod that cannot be asked is asked again with growing, jittered waits; one that publishes nothing is
listed as unsupported with the reason.
"""

from __future__ import annotations

import asyncio
import logging
import random

import httpx

from backend.api.cache import SourceState
from backend.api.fleet import Pod
from backend.core.errors import UsageError, WireError
from backend.core.supervise import Supervisor
from backend.engines import base
from backend.fleet.source import FleetSource
from backend.kvindex.feed import Feed

log = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 5.0
TIMEOUT_S = 2.0
_UNKNOWN_PATH = (404, 405, 501)

PodKey = tuple[str, str, int, str, str]


class Discovery:
    """Keeps the feed's sources as the fleet is."""

    def __init__(self, fleet: FleetSource, feed: Feed, tasks: Supervisor) -> None:
        self._fleet, self._feed, self._tasks = fleet, feed, tasks
        self._pods: dict[str, Pod] = {}
        self._unsupported: dict[str, SourceState] = {}
        self.listed = False
        """The fleet has been read once."""
        self.asked: set[str] = set()
        """Pods whose sources are known, or known to be none."""

    async def run(self) -> None:
        async for pods in self._fleet.changes():
            await self._follow({pod.name: pod for pod in pods})
            self.listed = True

    def pods(self) -> list[Pod]:
        return list(self._pods.values())

    def states(self) -> list[SourceState]:
        """Pods without sources: what is wrong with them."""
        return list(self._unsupported.values())

    def settled(self) -> bool:
        """Every pod that could answer has been asked, and every source's first replay is over."""
        return (
            self.listed
            and not self._feed.pending
            and all(pod.name in self.asked for pod in self._pods.values() if pod.ready)
            and all(state.status not in ("connecting", "replaying") for state in self._feed.states())
        )

    async def _follow(self, pods: dict[str, Pod]) -> None:
        for name in self._pods.keys() - pods.keys():
            await self._drop(name)
            self._feed.remove_pod(name)
        for name, pod in pods.items():
            known = self._pods.get(name)
            self._pods[name] = pod
            if known is not None and _key(known) == _key(pod):
                if known.started_at and pod.started_at and known.started_at != pod.started_at:
                    self._feed.restarted(name)
                elif not (name not in self.asked and pod.ready and not known.ready):
                    continue
            await self._drop(name, keep=True)
            self._tasks.start(f"discover:{name}", lambda pod=pod: self._ask_until_answered(pod))  # type: ignore[misc]

    async def _drop(self, name: str, *, keep: bool = False) -> None:
        await self._tasks.cancel(f"discover:{name}")
        self.asked.discard(name)
        self._unsupported.pop(name, None)
        if not keep:
            self._pods.pop(name, None)

    async def _ask_until_answered(self, pod: Pod) -> None:
        wait = FIRST_WAIT_S
        while True:
            problem = await self._ask(pod)
            if not problem:
                self.asked.add(pod.name)
                return
            if pod.ready:
                self._unsupported[pod.name] = SourceState(pod=pod.name, status="error", reason=problem)
            await asyncio.sleep(wait * random.uniform(0.7, 1.3))
            wait = min(wait * 2, LONGEST_WAIT_S)

    async def _ask(self, pod: Pod) -> str:
        """Ask once; what is in the way, or "" when the question is settled."""
        try:
            adapter = base.adapter(pod.engine)
        except UsageError:
            return self._none(pod, f"engine {pod.engine!r} is not known to publish KV events")
        answer, path = None, ""
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
                for path in adapter.event_paths:
                    answer = await client.get(f"http://{pod.address}{path}")
                    if answer.status_code not in _UNKNOWN_PATH:
                        break
        except httpx.HTTPError as error:
            return f"{pod.address} does not answer: {type(error).__name__}"
        if answer is None or answer.status_code in _UNKNOWN_PATH:
            status = answer.status_code if answer is not None else "nothing"
            return self._none(pod, f"GET {path} answers {status}: the engine is too old or publishes no KV events")
        if answer.status_code != 200:
            return f"GET {path} answers {answer.status_code}"
        try:
            infos = adapter.event_sources(answer.content, pod.ip)
        except WireError as error:
            return str(error)
        if not infos:
            return self._none(pod, "the engine runs without KV events; start it with --kv-events-config")
        self._unsupported.pop(pod.name, None)
        self._feed.set_sources(pod.name, pod.model, infos)
        return ""

    def _none(self, pod: Pod, reason: str) -> str:
        log.warning("%s: %s", pod.name, reason)
        self._unsupported[pod.name] = SourceState(pod=pod.name, status="unsupported", reason=reason)
        self._feed.set_sources(pod.name, pod.model, [])
        return ""


def _key(pod: Pod) -> PodKey:
    """What makes another source of it; a restart at the same address keeps its sockets."""
    return pod.name, pod.ip, pod.port, pod.engine, pod.model
