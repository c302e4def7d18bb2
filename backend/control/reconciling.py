"""The StormService controllers in this process: one of all control replicas leads, the others stand by."""

from __future__ import annotations

import os
import socket

from backend.core.settings import ControlSettings
from backend.core.supervise import Supervisor
from backend.kube.client import KubeClient
from backend.kube.lease import LeaderElector
from backend.storm.service import StormControllers

LEASE = "workbench-storm"
LEASE_S, RENEW_S, RETRY_S = 6.0, 4.0, 0.5
"""Shorter than client-go's 15, 10 and 2 s: a killed control shall go on within ten seconds."""


class Reconciling:
    """Does nothing unless `actions.reconcile` is set: two controllers of the same objects undo each other's work."""

    def __init__(self, settings: ControlSettings, tasks: Supervisor) -> None:
        """Raises ConfigError for a kubeconfig that cannot be used."""
        chosen = settings.actions
        self._tasks = tasks
        self._client = KubeClient.from_kubeconfig(chosen.kubeconfig, chosen.context or None) if chosen.reconcile else None
        self._controllers: StormControllers | None = None

    def start(self) -> None:
        if self._client is not None:
            self._tasks.start("storm", self._compete)

    async def _compete(self) -> None:
        assert self._client is not None
        identity = f"{socket.gethostname()}-{os.getpid()}"
        namespace = self._client.access.namespace or "default"
        elector = LeaderElector(self._client, namespace, LEASE, identity, duration_s=LEASE_S, renew_deadline_s=RENEW_S, retry_s=RETRY_S)
        await elector.run(self._lead)

    async def _lead(self) -> None:
        """A controller that ends, ends this term; what it knew is read again in the next."""
        assert self._client is not None
        async with Supervisor("storm") as tasks:
            self._controllers = StormControllers(self._client)
            try:
                self._controllers.start(tasks)
                await tasks.wait_stopped()
            finally:
                self._controllers = None

    @property
    def problems(self) -> dict[str, str]:
        """Resources that are not being followed, and why; empty while another replica leads."""
        return self._controllers.problems if self._controllers is not None else {}

    async def close(self) -> None:
        """After the supervisor's tasks have ended."""
        if self._client is not None:
            await self._client.close()
