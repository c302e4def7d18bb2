"""The fleet as one worker uses it: models with their ready pods, each with its pool of connections and the header lines about it.

Built again when the shared table changes; pools of pods that stay are kept, those of pods that left are closed.
"""

from __future__ import annotations

from collections.abc import Iterable

from backend.api.fleet import Pod
from backend.gateway import labels
from backend.gateway.counts import pick_slots
from backend.gateway.fleet_table import Row
from backend.gateway.upstream import PodPool


class PodTarget:
    """A ready pod and everything that is the same for each request sent there."""

    __slots__ = ("engine", "ip", "labels", "name", "pool", "request_lines", "response_lines", "slot")

    def __init__(self, row: Row, pool: PodPool) -> None:
        pod = row.pod
        self.name = pod.name
        self.ip = pod.ip
        self.engine = pod.engine
        self.labels = pod.labels
        self.slot = row.slot
        self.pool = pool
        self.request_lines = f"host: {pool.address}\r\ntarget-pod: {pool.address}\r\n\r\n".encode()
        """The last lines of a request's head."""
        self.response_lines = f"target-pod: {pod.name}\r\ntarget-pod-ip: {pool.address}\r\n".encode()


class Candidates:
    """Pods in parallel lists, as policies, counts and the index want them. Never changed once made."""

    __slots__ = ("names", "pick", "pods")

    def __init__(self, pods: Iterable[PodTarget]) -> None:
        self.pods = list(pods)
        self.names = [pod.name for pod in self.pods]
        self.pick = pick_slots([pod.slot for pod in self.pods])

    def without(self, names: Iterable[str]) -> Candidates:
        refused = set(names)
        return Candidates(pod for pod in self.pods if pod.name not in refused)

    def selected(self, selector: str) -> Candidates:
        """Those with the labels that `selector` asks for. Raises labels.SelectorError."""
        wanted = labels.parse(selector)
        return Candidates(pod for pod in self.pods if labels.matches(wanted, pod.labels))


class Targets:
    """All models. `models` maps a name to its ready pods; a model without a ready one has an empty list."""

    def __init__(self) -> None:
        self.models: dict[str, Candidates] = {}
        self.pools: dict[tuple[str, int, float], PodPool] = {}
        self.rows: list[Row] = []
        self.generation = -1

    def update(self, generation: int, rows: list[Row]) -> None:
        self.generation = generation
        self.rows = rows
        pools: dict[tuple[str, int, float], PodPool] = {}
        by_model: dict[str, list[PodTarget]] = {}
        for row in rows:
            pod = row.pod
            if not pod.model:
                continue
            ready = by_model.setdefault(pod.model, [])
            # Another boot of the same pod is another process: connections to the old one are dead.
            key = (pod.ip, pod.port, pod.started_at)
            pool = pools[key] = self.pools.get(key) or PodPool(pod.ip, pod.port)
            if _takes_requests(pod):
                ready.append(PodTarget(row, pool))
        for key, pool in self.pools.items():
            if key not in pools:
                pool.close()
        self.pools = pools
        self.models = {model: Candidates(pods) for model, pods in by_model.items()}


def _takes_requests(pod: Pod) -> bool:
    return pod.ready and bool(pod.ip) and 0 < pod.port < 65536
