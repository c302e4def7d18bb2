"""Every setting of every process, grouped by subject, with its unit and the reason of its default.

Passed down explicitly; nothing reads them from a global. Files and variables: see `backend.core.config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

PORT_BASE = 18800
"""First port of a stack on a laptop; the others follow in the order of docs/architecture.md."""


@dataclass(frozen=True)
class ListenSettings:
    """Where a server listens."""

    host: str = "127.0.0.1"
    """Address. Loopback by default: opening to a network is a decision."""
    port: int = 0
    """TCP port; 0 lets the system choose."""
    workers: int = 2
    """Processes that share the port (gateway only). Two, since a laptop has at least two cores."""


@dataclass(frozen=True)
class PodSettings:
    """A pod named in a file instead of discovered."""

    name: str
    """Unique name, shown everywhere."""
    address: str
    """`host:port` of its HTTP interface."""
    model: str
    """Model that it serves."""
    engine: str = "vllm"
    """Engine family: vllm, sglang, xllm, openai."""
    role: str = ""
    """prefill, decode, or empty for both."""
    roleset: str = ""
    """RoleSet that pairs prefill and decode pods."""
    revision: str = ""
    """Revision of its StormService."""
    labels: dict[str, str] = field(default_factory=dict)
    """Kubernetes labels, for `external-filter`."""


@dataclass(frozen=True)
class FleetSettings:
    """Where the list of pods comes from."""

    file: Path | None = None
    """JSON list of `backend.api.fleet.Pod`, written by the pod runtime; read again when it changes."""
    kubeconfig: Path | None = None
    """Kubeconfig of the cluster whose Pods are the fleet, beside those of `file`."""
    context: str = ""
    """Its context; empty: the current one."""
    namespace: str = ""
    """Namespace of the Pods; empty: all."""
    pod_labels: str = "model.aibrix.ai/name"
    """Label selector of Pods that may be engines. Empty also finds those that name their model in an annotation only."""
    poll_s: float = 0.25
    """Seconds between two looks at the file's change time; a look costs one system call."""
    scrape_s: float = 2.0
    """Seconds between two scrapes of a pod's /metrics. AIBrix scrapes every 0.05 s and pays 4-5 % of a core a pod."""
    scrape_timeout_s: float = 1.5
    """Seconds until a scrape counts as failed."""


@dataclass(frozen=True)
class PrefixCacheSettings:
    """The `prefix-cache` policy."""

    imbalance_requests: int = 8
    """Spread of running requests above which only the least loaded pods may match (AIBrix: ..._IMBALANCE_ABS_COUNT)."""
    deviation_factor: float = 1.0
    """A pod is overloaded above mean + factor x sample deviation of running requests (AIBrix: ..._STANDARD_DEVIATION_FACTOR)."""


@dataclass(frozen=True)
class PairSettings:
    """The `pd` policy, for models with prefill and decode pods."""

    prefill_spread: int = 16
    """Spread of running prefills above which only the least loaded pods may be chosen (AIBRIX_PREFILL_LOAD_IMBALANCE_MIN_SPREAD)."""
    decode_spread: int = 16
    """The same for decodes, from this spread on (AIBRIX_DECODE_LOAD_IMBALANCE_MIN_SPREAD)."""
    deviation_factor: float = 1.0
    """A prefill pod is overloaded above mean + factor x sample deviation of running prefills."""
    prefill_timeout_s: float = 60.0
    """Seconds for a prefill pod's whole answer (AIBRIX_PREFILL_REQUEST_TIMEOUT: 30 in its code, 60 in its manifest)."""


@dataclass(frozen=True)
class RoutingSettings:
    """How a pod is chosen when the request does not say."""

    policy: str = "prefix-cache"
    """Default policy; a request's `routing-strategy` header wins, and models with prefill and decode pods always default to `pd`."""
    prefix_cache: PrefixCacheSettings = PrefixCacheSettings()
    """Parameters of `prefix-cache`."""
    pd: PairSettings = PairSettings()
    """Parameters of `pd`."""
    tokenize_timeout_s: float = 5.0
    """Seconds to wait for an engine's /tokenize; AIBrix's default."""


@dataclass(frozen=True)
class LimitSettings:
    """What the gateway refuses, and when it gives up."""

    header_bytes: int = 65_536
    """Largest request head."""
    body_bytes: int = 16 * 2**20
    """Largest request body: 413 beyond. AIBrix takes 4 MiB on Kubernetes, long-context token prompts need more."""
    header_timeout_s: float = 10.0
    """Seconds for a client to send a whole head and body once it began."""
    connect_timeout_s: float = 2.0
    """Seconds to connect to a pod."""
    first_byte_timeout_s: float = 300.0
    """Seconds to a pod's first byte; long prompts queue."""
    idle_timeout_s: float = 60.0
    """Seconds without a byte from a pod in the middle of an answer."""
    keepalive_s: float = 75.0
    """Seconds an idle client connection is kept."""
    drain_s: float = 5.0
    """Seconds a stopping worker waits for answers under way."""


@dataclass(frozen=True)
class RecordSettings:
    """Decision records on their way to the history."""

    redis_url: str = field(default="", repr=False)
    """Stream server, such as redis://127.0.0.1:6379/0; empty keeps records in the worker only."""
    stream: str = "workbench:decisions"
    """Stream of batches."""
    stream_batches: int = 20_000
    """Approximate length at which the stream is capped."""
    flush_s: float = 0.2
    """Seconds between two batches: what a killed worker can lose."""
    batch_records: int = 500
    """Records of one batch at most."""
    kept_records: int = 20_000
    """Records a worker keeps while Redis is away; older ones are dropped and counted."""


@dataclass(frozen=True)
class GatewaySettings:
    """`python -m backend.gateway --config gateway.toml`."""

    listen: ListenSettings = ListenSettings(port=PORT_BASE + 2)
    routing: RoutingSettings = RoutingSettings()
    limits: LimitSettings = LimitSettings()
    records: RecordSettings = RecordSettings()
    fleet: FleetSettings = FleetSettings()
    pods: tuple[PodSettings, ...] = ()
    """Pods by name; used when `fleet.file` is empty."""
    shared: Path | None = None
    """Folder of the stack's shared files: the fleet table, counts, and the prefix index. Empty: a temporary one, no index."""
    auth_token: str = field(default="", repr=False)
    """When set, clients must send it as a bearer token (AIBRIX_AUTH_BEARER_TOKEN)."""


@dataclass(frozen=True)
class KvIndexSettings:
    """`python -m backend.kvindex --config kvindex.toml`."""

    listen: ListenSettings = ListenSettings(port=PORT_BASE + 3)
    fleet: FleetSettings = FleetSettings()
    pods: tuple[PodSettings, ...] = ()
    shared: Path | None = None
    """Folder of the shared index files; empty: a temporary one."""
    capacity_blocks: int = 262_144
    """Distinct blocks that the first table holds; it grows by doubling. 64 bytes a block."""
    token_file: Path | None = None
    """File with the bearer token that the query API asks for; empty: none (loopback only)."""


@dataclass(frozen=True)
class HistorySettings:
    """Decision records from the stream to Parquet."""

    folder: Path | None = None
    """Where Parquet files are written; empty: `STATE/history`."""
    write_s: float = 60.0
    """Seconds between two files; until then rows are in the stream."""
    write_rows: int = 50_000
    """Rows that make a file early."""
    kept_bytes: int = 2 * 2**30
    """Oldest files are deleted beyond this size."""
    recent_rows: int = 20_000
    """Decisions kept in memory for pages."""


@dataclass(frozen=True)
class ReportSettings:
    """Reports that control writes, by schedule or when asked."""

    folder: Path | None = None
    """Where they are kept; empty: `STATE/reports`. Several control replicas need one that all of them see."""
    daily: str = "0 6 * * *"
    """Cron expression (UTC) of the daily report that a new stack starts with; empty: none. Changed later by the API."""
    time_limit_s: float = 600.0
    """Seconds until a report that is being written is ended and counts as failed. 400,000 requests take about 40 s."""
    kept: int = 60
    """Reports kept; older ones are deleted. Two months of a daily one, some 100 KB each."""
    keys: str = "workbench:schedules"
    """Beginning of the names under which schedules are kept in Redis."""


@dataclass(frozen=True)
class ActionSettings:
    """What control may do to a cluster."""

    kubeconfig: Path | None = None
    """Cluster whose StormServices are operated; empty: none, and actions are refused with that reason."""
    context: str = ""
    """Context of the kubeconfig; empty: its current one."""
    reconcile: bool = False
    """Run the StormService controllers here. Never beside another controller of the same objects, such as AIBrix's own."""
    read_only: bool = False
    """Plans are made, nothing is applied."""
    stall_s: float = 300.0
    """Seconds without progress until an operation counts as failed; a large model takes minutes to load."""
    trouble_s: float = 30.0
    """The same when a pod says why it cannot start (ImagePullBackOff, CrashLoopBackOff, ...)."""


@dataclass(frozen=True)
class ControlSettings:
    """`python -m backend.control --config control.toml`."""

    listen: ListenSettings = ListenSettings(port=PORT_BASE + 1)
    fleet: FleetSettings = FleetSettings()
    pods: tuple[PodSettings, ...] = ()
    """Pods by name, beside those of `fleet.file`."""
    history: HistorySettings = HistorySettings()
    records: RecordSettings = RecordSettings()
    reports: ReportSettings = ReportSettings()
    state: Path = Path(".workbench")
    """State folder of the stack."""
    kvindex_url: str = f"http://127.0.0.1:{PORT_BASE + 3}"
    gateway_url: str = f"http://127.0.0.1:{PORT_BASE + 2}"
    token_file: Path | None = None
    """File with the operator's bearer token, 0600; made at start when missing."""
    actions: ActionSettings = ActionSettings()


@dataclass(frozen=True)
class RuntimeSettings:
    """`python -m backend.localkube`: pods as processes, from a fleet file and from a Kubernetes API of our own."""

    listen: ListenSettings = ListenSettings(port=PORT_BASE)
    kube_port: int = 0
    """Port of the Kubernetes API on 127.0.0.1 (TLS; kubeconfig: `STATE/kube/kubeconfig`); 0: none."""
    state: Path = Path(".workbench")
    """State folder of the stack; pods' logs go to `STATE/pods/`."""
    fleet: Path | None = None
    """Fleet file (YAML); empty: the sample fleet of `backend/manifests/fleet.yaml`."""
    subnet: str = ""
    """First three numbers of the pods' loopback addresses; empty: derived from the port base."""
    probe_s: float = 0.25
    """Seconds between two readiness probes until a pod is ready; four times that afterwards."""
    grace_s: float = 5.0
    """Seconds from SIGTERM to SIGKILL for pods that don't set their own."""
    first_backoff_s: float = 0.5
    """Wait before a crashed pod's first restart; doubles up to `longest_backoff_s`."""
    longest_backoff_s: float = 30.0
    healthy_s: float = 30.0
    """Seconds of health after which a pod's earlier crashes are forgiven."""
    pod_port: int = 8000
    """HTTP port of every pod, where each has an address of its own."""
    log_bytes: int = 10 * 2**20
    """Size at which a pod's log is cut; one older part is kept."""
    engines: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """How to start an engine: its command line with {places}, see `backend.localkube.runtime.commands`."""
    token_file: Path | None = None
    """File with the bearer token that the runtime's own API asks for; empty: none (loopback only)."""


@dataclass(frozen=True)
class DashboardSettings:
    """`python -m apps`."""

    listen: ListenSettings = ListenSettings(port=PORT_BASE + 6)
    control_url: str = f"http://127.0.0.1:{PORT_BASE + 1}"
    token_file: Path | None = None
    auth: Literal["token", "basic", "none"] = "token"
    """token: the stack's own token, handed over by the printed link; basic: `users_file`; none: loopback without login."""
    users_file: Path | None = None


@dataclass(frozen=True)
class Settings:
    """The whole tree."""

    gateway: GatewaySettings = GatewaySettings()
    kvindex: KvIndexSettings = KvIndexSettings()
    control: ControlSettings = ControlSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    dashboard: DashboardSettings = DashboardSettings()
