"""Which pods exist and how they are."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

PodState = Literal["starting", "ready", "unready", "stopping", "backoff", "failed"]
"""starting: process runs, not ready yet; backoff: waits for its next start; failed: will not be started again."""

LoadState = Literal["fresh", "stale", "never"]

ROLE_LABEL, ROLESET_LABEL, REVISION_LABEL = "role-name", "roleset-name", "storm-service-revision"
ROLE_REVISION_LABEL = "stormservice.orchestration.aibrix.ai/role-revision-name"
GROUP_INDEX_LABELS = ("pod-group-index", "stormservice.orchestration.aibrix.ai/pod-group-index")
HASH_LABEL = "role-template-hash"
HASHES_ANNOTATION = "stormservice.orchestration.aibrix.ai/role-template-hashes"
BOOTSTRAP_PORT_ANNOTATION = "model.aibrix.ai/sglang-bootstrap-port"


class Place(NamedTuple):
    """Where a pod stands in its StormService; empty where that is not known."""

    role: str
    roleset: str
    revision: str


class Pod(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One engine process or container. The pod runtime writes a JSON list of these; an informer will make them from Kubernetes."""

    name: str
    namespace: str = "default"
    ip: str
    port: int = 8000
    model: str = ""
    engine: str = "vllm"
    version: str = ""
    role: str = ""
    roleset: str = ""
    revision: str = ""
    image: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    """Those of `model.aibrix.ai/` and `orchestration.aibrix.ai/`."""
    state: PodState = "starting"
    ready: bool = False
    """Answers its readiness probe and is not about to stop: may get new requests."""
    reason: str = ""
    """Why it is not ready, for people."""
    started_at: float = 0.0
    """Seconds since 1970 of its process' start; another value means another boot: forget what it held."""
    restarts: int = 0
    pid: int = 0

    @property
    def address(self) -> str:
        return f"{self.ip}:{self.port}"

    @property
    def place(self) -> Place:
        """The fields, and for those left empty the labels that StormService's controller writes.

        A revision that is the role's own says nothing of other roles: one that a new revision left as it was keeps the older name.
        """
        labels = self.labels
        own = "" if ROLE_REVISION_LABEL in labels else self.revision
        return Place(
            self.role or labels.get(ROLE_LABEL, ""), self.roleset or labels.get(ROLESET_LABEL, ""), labels.get(REVISION_LABEL) or own
        )

    @property
    def template_hash(self) -> str:
        """Of its own role's template: what it runs."""
        return self.labels.get(HASH_LABEL, "")

    @property
    def template_hashes(self) -> dict[str, str]:
        """Of each role, in the revision that this pod was made for, from the annotation `decode=4c9xz2,prefill=884f64`.

        A role's own revision does not tell what belongs together: a role that a new revision leaves as it is belongs to both.
        """
        pairs = (each.partition("=") for each in self.annotations.get(HASHES_ANNOTATION, "").split(","))
        return {role.strip(): value.strip() for role, equals, value in pairs if equals}

    @property
    def serves_http(self) -> bool:
        """Of an instance that spans several pods only the first one does."""
        return all(self.labels.get(label, "0") == "0" for label in GROUP_INDEX_LABELS)

    @property
    def bootstrap_port(self) -> int:
        """Where a prefill pod hands out KV blocks, when it says so; 0: the engine's default."""
        told = self.annotations.get(BOOTSTRAP_PORT_ANNOTATION) or self.labels.get(BOOTSTRAP_PORT_ANNOTATION, "")
        return int(told) if told.isdecimal() and int(told) < 65536 else 0


class PodLoad(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What the last scrape of a pod's metrics said. Rates are over the time between two scrapes."""

    state: LoadState = "never"
    scraped_at: float = 0.0
    error: str = ""
    running: float = 0.0
    """Requests in the batch."""
    waiting: float = 0.0
    """Requests in the queue."""
    kv_usage: float = 0.0
    """Share of KV blocks in use by running requests, 0..1."""
    prefix_queries: float = 0.0
    """Prompt tokens looked up in the prefix cache since start."""
    prefix_hits: float = 0.0
    """Prompt tokens found there since start."""
    hit_rate: float | None = None
    """Hits per query over the last minute; None before the first query."""
    prompt_tokens_per_s: float = 0.0
    generation_tokens_per_s: float = 0.0
    requests_finished: float = 0.0
    ttft_mean_s: float | None = None
    """Mean time to first token of the requests since the last scrape."""
    missing: list[str] = []
    """Metrics that this engine should have and has not."""


class PodView(msgspec.Struct, kw_only=True):
    """A pod with its load, as the control API lists it."""

    pod: Pod
    load: PodLoad


class FleetSnapshot(msgspec.Struct, kw_only=True):
    """The whole fleet at one moment. `version` grows with every change, so that a viewer can ask for what came since."""

    version: int
    at: float
    pods: list[PodView]
    requests_per_s: float = 0.0
    """Finished requests a second through the gateway over the last 10 s."""
    errors_per_s: float = 0.0
    ttft_p95_ms: float | None = None
    """Over the last minute; None without a request."""
    hit_rate: float | None = None
    """Cached prompt tokens over all prompt tokens of the last minute's requests."""
