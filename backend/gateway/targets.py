"""The fleet as one worker uses it: models with their ready pods, each with its pool of connections and the header lines about it; and which
prefill and decode pods belong together.

Built again when the shared table changes; pools of pods that stay are kept, those of pods that left are closed.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable
from itertools import chain

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
        "bootstrap_port", "engine", "ip", "labels", "name", "pool", "prefill_lines", "request_lines", "response_lines", "revision", "role",
        "roleset", "slot", "template_hash", "template_hashes",
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
        self.roleset = roleset if pod.namespace == "default" else f"{pod.namespace}/{roleset}"
        self.revision = revision
        self.template_hash = pod.template_hash
        hashes = pod.template_hashes
        self.template_hashes = (hashes.get(PREFILL, ""), hashes.get(DECODE, ""))
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
        groups = _groups([*prefill, *decode])
        able = set(chain(*(groups[pod] for pod in prefill))) & set(chain(*(groups[pod] for pod in decode)))
        self.prefill = Candidates(pod for pod in prefill if not able.isdisjoint(groups[pod]))
        self.decode = Candidates(pod for pod in decode if not able.isdisjoint(groups[pod]))
        self.prefill_groups = [groups[pod] for pod in self.prefill.pods]
        self.decode_groups = [groups[pod] for pod in self.decode.pods]

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


def _groups(pods: list[PodTarget]) -> dict[PodTarget, tuple[str, ...]]:
    """The revisions of its RoleSet that each pod belongs to, by names that only those of one engine family share.

    A pod that tells the templates of its revision belongs to each revision, of those that the pods around it tell, that has its own
    template. For others the name of their revision is all that is known.
    """
    several = len({pod.engine for pod in pods}) > 1
    told: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for pod in pods:
        if pod.template_hash and all(pod.template_hashes):
            told.setdefault((pod.roleset, pod.engine), set()).add(pod.template_hashes)
    groups = {}
    for pod in pods:
        if pod.template_hash and all(pod.template_hashes):
            own = pod.role == DECODE
            revisions = ["+".join(each) for each in sorted(told[pod.roleset, pod.engine]) if each[own] == pod.template_hash]
        else:
            revisions = [pod.revision]
        groups[pod] = tuple(f"{pod.roleset}@{revision}{f':{pod.engine}' if several else ''}" for revision in revisions)
    return groups


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
    """With `pairing` when it takes two pods to answer. `with_decode`: there are decode pods, ready or not, so prefill pods answer nothing
    alone."""
    if not any(pod.role for pod in pods):
        return Candidates(pods)
    pairing = Pairing((pod for pod in pods if pod.role == PREFILL), (pod for pod in pods if pod.role == DECODE))
    whole = [pod for pod in pods if not pod.role]
    alone = [pod for pod in pods if not pod.role or _answers_alone(pod, with_decode)]
    if pairing or not alone:
        return Candidates(alone, pairing if with_decode else None)
    # While no pair is ready (in the middle of a rollout, say), pods that can do it all do: rather those that are meant to.
    return Candidates(whole or alone)


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
