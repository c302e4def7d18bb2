"""The fleet as one worker uses it: models with their ready pods, each with its pool of connections and the header lines about it; and which
prefill and decode pods belong together.

Built again when the shared table changes; pools of pods that stay are kept, those of pods that left are closed.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable

from backend.api.fleet import Pod
from backend.core.errors import UsageError
from backend.engines.base import EngineAdapter, adapter
from backend.gateway import labels
from backend.gateway.counts import pick_slots
from backend.gateway.fleet_table import Row
from backend.gateway.upstream import PodPool

log = logging.getLogger(__name__)

PREFILL, DECODE = "prefill", "decode"


class PodTarget:
    """A ready pod and everything that is the same for each request sent there."""

    __slots__ = (
        "bootstrap_port", "engine", "group", "ip", "labels", "name", "pool", "prefill_lines", "request_lines", "response_lines", "role",
        "slot",
    )  # fmt: skip

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
        self.prefill_lines = f"prefill-target-pod: {pod.name}\r\nprefill-target-pod-ip: {pod.ip}\r\n".encode()
        """AIBrix names this one's address without a port."""
        role, roleset, revision = pod.place
        self.role = role if role in (PREFILL, DECODE) and _adapter(pod.engine) is not None else ""
        """Empty: answers whole requests."""
        self.group = f"{roleset}@{revision}" if pod.namespace == "default" else f"{pod.namespace}/{roleset}@{revision}"
        self.bootstrap_port = pod.bootstrap_port


class Candidates:
    """Pods in parallel lists, as policies, counts and the index want them. Never changed once made.

    `pairing`: of a model with prefill and decode pods; `pods` are then those that may answer a request alone.
    """

    __slots__ = ("names", "pairing", "pick", "pods")

    def __init__(self, pods: Iterable[PodTarget], pairing: Pairing | None = None) -> None:
        self.pods = list(pods)
        self.pairing = pairing
        self.names = [pod.name for pod in self.pods]
        self.pick = pick_slots([pod.slot for pod in self.pods])

    def without(self, names: Iterable[str]) -> Candidates:
        refused = set(names)
        return Candidates(pod for pod in self.pods if pod.name not in refused)

    def selected(self, selector: str) -> Candidates:
        """Those with the labels that `selector` asks for. Raises labels.SelectorError."""
        wanted = labels.parse(selector)
        return Candidates(pod for pod in self.pods if labels.matches(wanted, pod.labels))


class Pairing:
    """Prefill and decode pods that belong together: of one RoleSet, one revision and one engine family. False when there is no pair.

    Pods without a partner are left out; `ready` has how many there are with them.
    """

    __slots__ = ("decode", "decode_groups", "prefill", "prefill_groups", "ready")

    def __init__(self, prefill: Iterable[PodTarget], decode: Iterable[PodTarget]) -> None:
        prefill, decode = list(prefill), list(decode)
        self.ready = len(prefill), len(decode)
        able = {(pod.group, pod.engine) for pod in prefill} & {(pod.group, pod.engine) for pod in decode}
        mixed = len({group for group, _ in able}) < len(able)
        self.prefill, self.prefill_groups = _in_pairs(prefill, able, mixed)
        self.decode, self.decode_groups = _in_pairs(decode, able, mixed)

    def __bool__(self) -> bool:
        return bool(self.prefill.pods)

    def without(self, names: Container[str]) -> Pairing:
        return Pairing(
            (pod for pod in self.prefill.pods if pod.name not in names), (pod for pod in self.decode.pods if pod.name not in names)
        )

    def with_prefill(self, prefill: PodTarget) -> Pairing:
        """Only that prefill pod, with those that may take over from it."""
        return Pairing((prefill,), self.decode.pods)

    def selected(self, selector: str) -> Pairing:
        """Raises labels.SelectorError."""
        return Pairing(self.prefill.selected(selector).pods, self.decode.selected(selector).pods)

    def has_decode(self, pod: PodTarget) -> bool:
        """Whether that pod, in that boot, still takes requests."""
        return any(other.pool is pod.pool for other in self.decode.pods)


def _in_pairs(pods: list[PodTarget], able: Container[tuple[str, str]], mixed: bool) -> tuple[Candidates, list[str]]:
    kept = [pod for pod in pods if (pod.group, pod.engine) in able]
    return Candidates(kept), [f"{pod.group}:{pod.engine}" if mixed else pod.group for pod in kept]


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
        with_decode: set[str] = set()
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
            if pod.place.role == DECODE:
                with_decode.add(pod.model)
        for key, pool in self.pools.items():
            if key not in pools:
                pool.close()
        self.pools = pools
        self.models = {model: _candidates(pods, model in with_decode) for model, pods in by_model.items()}


def _takes_requests(pod: Pod) -> bool:
    return pod.ready and bool(pod.ip) and 0 < pod.port < 65536 and pod.serves_http


def _candidates(pods: list[PodTarget], with_decode: bool) -> Candidates:
    """`with_decode`: the model has decode pods, ready or not, so that its prefill pods answer nothing alone."""
    if not any(pod.role for pod in pods):
        return Candidates(pods)
    whole = [pod for pod in pods if not pod.role]
    pairing = Pairing((pod for pod in pods if pod.role == PREFILL), (pod for pod in pods if pod.role == DECODE))
    if whole and not pairing:
        return Candidates(whole)
    alone = [pod for pod in pods if not pod.role or _answers_alone(pod, with_decode)]
    return Candidates(alone, pairing if with_decode else None)


def _answers_alone(pod: PodTarget, with_decode: bool) -> bool:
    speaking = _adapter(pod.engine)
    return speaking is not None and speaking.serves_alone and not (with_decode and pod.role == PREFILL)


_unknown: set[str] = set()


def _adapter(engine: str) -> EngineAdapter | None:
    """None for a family without an adapter: nobody knows how its pods would share a request, so each answers alone."""
    try:
        return adapter(engine)
    except UsageError:
        if engine not in _unknown:
            _unknown.add(engine)
            log.warning("pods of engine %r are used without their roles: it is not known how they share a request", engine)
        return None
