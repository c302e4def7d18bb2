"""The fleet from a Kubernetes API: Pods with a model, followed by an informer. Same code for the laptop's cluster and any other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import msgspec

from backend.api.fleet import Pod
from backend.core.settings import FleetSettings
from backend.fleet.pods import pod_of
from backend.kube.client import KubeClient
from backend.kube.informer import Informer
from backend.kube.resources import PODS

GATHER_S = 0.02
"""Changes that come together are told together: a rollout touches several Pods at once."""
LOOK_S = 1.0
"""Seconds between two looks at whether the API is still being followed."""


def pods_of(objects: Iterable[dict[str, Any]]) -> list[Pod]:
    """The engines among `objects`, by name. Where namespaces share a name, the later ones carry theirs in front."""
    pods = [pod for obj in objects if (pod := pod_of(obj)) is not None]
    named: dict[str, Pod] = {}
    for pod in sorted(pods, key=lambda pod: (pod.namespace, pod.name)):
        name = pod.name if pod.name not in named else f"{pod.namespace}/{pod.name}"
        named[name] = pod if name == pod.name else msgspec.structs.replace(pod, name=name)
    return sorted(named.values(), key=lambda pod: pod.name)


class ClusterPods:
    """`problem` says why the list may be old; "" while it is being kept current."""

    def __init__(self, settings: FleetSettings, client: KubeClient | None = None) -> None:
        """Raises ConfigError for a kubeconfig that cannot be used."""
        self._client = client or KubeClient.from_kubeconfig(settings.kubeconfig, settings.context or None)
        self._informer = Informer(self._client, PODS, namespace=settings.namespace or None, labels=settings.pod_labels)
        self._changed = asyncio.Event()
        self._informer.add_handler(lambda *_: self._changed.set())

    @property
    def problem(self) -> str:
        return self._informer.problem

    async def changes(self) -> AsyncGenerator[list[Pod], None]:
        """The list once it is known or cannot be had, then whenever it may differ, or when following it breaks or is mended."""
        following = asyncio.create_task(self._informer.run())
        told: str | None = None
        try:
            while True:
                await self._until_news(told)
                await asyncio.sleep(GATHER_S)
                self._changed.clear()
                told = self.problem
                yield pods_of(self._informer.list())
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await self._client.close()

    async def _until_news(self, told: str | None) -> None:
        """A change, or another `problem` than the one that was `told`. None: nothing was, so the first list or problem will do."""
        while not self._changed.is_set():
            if self.problem != told if told is not None else self._informer.synced.is_set() or self.problem:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), GATHER_S if told is None else LOOK_S)
