"""The pipeline put together from settings, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable

from backend.api.actions import Operation
from backend.control.actions.cluster import KubeCluster
from backend.control.actions.forecast import forecast
from backend.control.actions.progress import Limits
from backend.control.actions.service import Actions, Cached
from backend.control.actions.store import RedisStore
from backend.core.clock import Clock
from backend.core.errors import Unavailable, WorkbenchError
from backend.core.settings import ControlSettings
from backend.core.supervise import Supervisor


class Parts:
    """What must be started and closed together."""

    def __init__(self, actions: Actions | None, cluster: KubeCluster | None, store: RedisStore | None, missing: WorkbenchError) -> None:
        self._actions, self._cluster, self._store, self._missing = actions, cluster, store, missing

    @property
    def actions(self) -> Actions:
        """Raises what is missing."""
        if self._actions is None:
            raise self._missing
        return self._actions

    def start(self) -> None:
        if self._cluster is not None and self._actions is not None:
            self._cluster.start()
            self._actions.start()

    async def close(self) -> None:
        """After the supervisor's tasks have ended."""
        if self._cluster is not None:
            await self._cluster.close()
        if self._store is not None:
            await self._store.close()


def build(settings: ControlSettings, tasks: Supervisor, *, clock: Clock, publish: Callable[[Operation], None], cached: Cached) -> Parts:
    """Raises ConfigError for a kubeconfig or a stream server that is named and cannot be used."""
    chosen = settings.actions
    if chosen.kubeconfig is None:
        return _none("This stack has no Kubernetes cluster.", "Name one: `workbench up --kubeconfig FILE`, or [actions] kubeconfig.")
    if not settings.records.redis_url:
        return _none("Actions need a stream server, which keeps plans and operations.", "Set [records] redis_url.")
    cluster = KubeCluster.connect(chosen.kubeconfig, chosen.context, tasks)
    store = RedisStore(settings.records.redis_url)
    actions = Actions(
        cluster,
        store,
        forecast,
        tasks,
        clock=clock,
        publish=publish,
        cached=cached,
        limits=Limits(chosen.stall_s, chosen.trouble_s),
        read_only=chosen.read_only,
    )
    return Parts(actions, cluster, store, Unavailable(""))


def _none(message: str, fix: str) -> Parts:
    return Parts(None, None, None, Unavailable(message, fix=fix))
