"""Which processes a stack has, with what configuration they start, when they count as ready and in which order they end. Pure.

They start all at once: each waits for its peers by itself, which is what it must be able to do anyway when one of them dies.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from backend.core.settings import (
    ActionSettings,
    ControlSettings,
    DashboardSettings,
    FleetSettings,
    GatewaySettings,
    HistorySettings,
    KvIndexSettings,
    LimitSettings,
    ListenSettings,
    RecordSettings,
    RuntimeSettings,
)
from backend.launch import engines, toml
from backend.launch.layout import HOST, Layout
from backend.launch.options import UpOptions

DRAIN_S = 2.0
"""Seconds that a stopping gateway worker of a laptop's stack waits for its answers: the whole stop must stay below ten."""

STALL_S, TROUBLE_S = 60.0, 15.0
"""Simulated engines start in a second: an upgrade on a laptop has failed sooner than one that loads real weights."""

ReadyBy = Literal["http", "redis", "running"]


@dataclass(frozen=True)
class Part:
    """One process of the stack."""

    name: str
    argv: tuple[str, ...]
    port: int = 0
    ready_by: ReadyBy = "http"
    ready_path: str = "/healthz"
    stop_stage: int = 0
    """Parts of a lower stage are gone before those of a higher one are asked."""
    config_file: Path | None = None
    config: str = field(default="", repr=False)
    """Its text; may hold secrets."""
    foreign: bool = False
    """Not one of ours: it cannot watch the life pipe."""
    needs_sockets: bool = False
    """Gets its listening sockets from us, so that they survive it."""


@dataclass(frozen=True)
class Secrets:
    """What parts share and nobody else knows."""

    valkey_password: str = field(repr=False)


def redis_url(options: UpOptions, layout: Layout, secrets: Secrets) -> str:
    return options.redis_url or f"redis://:{secrets.valkey_password}@{HOST}:{layout.port('valkey')}/0"


def all_parts(
    options: UpOptions,
    layout: Layout,
    secrets: Secrets,
    *,
    shared: Path,
    subnet: str,
    pod_port: int,
    valkey_server: Path,
    fleet_file: Path | None,
) -> list[Part]:
    """The parts of a stack, in the order in which people read them. `fleet_file`: pods without a cluster; None: the sample."""
    fleet = FleetSettings(file=layout.pods, kubeconfig=layout.kubeconfig)
    records = RecordSettings(redis_url=redis_url(options, layout, secrets))
    listen = {part: ListenSettings(port=layout.port(part)) for part in ("runtime", "control", "gateway", "kvindex", "dashboard")}
    runtime = RuntimeSettings(
        listen=listen["runtime"],
        kube_port=layout.port("kube"),
        state=layout.state,
        fleet=fleet_file,
        subnet=subnet,
        pod_port=pod_port,
        engines=engines.TABLE,
        token_file=layout.token,
    )
    gateway = GatewaySettings(
        listen=replace(listen["gateway"], workers=options.workers),
        limits=LimitSettings(drain_s=DRAIN_S),
        records=records,
        fleet=fleet,
        shared=shared,
    )
    control = ControlSettings(
        listen=listen["control"],
        fleet=fleet,
        history=HistorySettings(folder=layout.state / "history"),
        records=records,
        actions=ActionSettings(kubeconfig=layout.kubeconfig, reconcile=True, stall_s=STALL_S, trouble_s=TROUBLE_S),
        state=layout.state,
        kvindex_url=layout.url("kvindex"),
        gateway_url=layout.url("gateway"),
        token_file=layout.token,
    )
    kvindex = KvIndexSettings(listen=listen["kvindex"], fleet=fleet, shared=shared, token_file=layout.token)
    dashboard = DashboardSettings(listen=listen["dashboard"], control_url=layout.url("control"), token_file=layout.token)
    parts = [
        _ours(layout, "runtime", "backend.localkube", runtime, stop_stage=1),
        _ours(layout, "kvindex", "backend.kvindex", kvindex, stop_stage=1),
        replace(_ours(layout, "gateway", "backend.gateway", gateway), needs_sockets=True),
        _ours(layout, "control", "backend.control", control, stop_stage=1),
    ]
    if not options.redis_url:
        parts.insert(0, _valkey(layout, secrets, valkey_server))
    if options.dashboard:
        parts.append(_ours(layout, "dashboard", "apps", dashboard))
    if options.traffic:
        traffic = (sys.executable, "-m", "backend.launch.traffic", "--gateway", layout.url("gateway"), "--pods", str(layout.pods))
        parts.append(Part("traffic", traffic, ready_by="running"))
    return parts


def _ours(layout: Layout, name: str, module: str, settings: Any, *, stop_stage: int = 0) -> Part:
    file = layout.config(name)
    heading = f"Settings of {name}, written by `workbench up` at every start. Change them by environment variables or start the part alone."
    return Part(
        name,
        (sys.executable, "-m", module, "--config", str(file)),
        port=layout.port(name),
        stop_stage=stop_stage,
        config_file=file,
        config=toml.dump(settings, heading=heading),
    )


def _valkey(layout: Layout, secrets: Secrets, server: Path) -> Part:
    file = layout.state / "config" / "valkey.conf"
    lines = [
        f"bind {HOST}",
        f"port {layout.port('valkey')}",
        f"requirepass {secrets.valkey_password}",
        f'dir "{layout.state / "valkey"}"',
        "appendonly yes",
        # With `everysec` the server may answer XADD while the entry is only in its own memory (it postpones the write when the
        # disk is busy), so a kill would lose what it acknowledged. The gateway sends a few batches a second: syncing each is cheap.
        "appendfsync always",
        'save ""',
        "daemonize no",
        "loglevel warning",
        # Streams are capped by their writers; this only stops a runaway client from eating the laptop.
        "maxmemory 512mb",
        "maxmemory-policy noeviction",
    ]
    return Part(
        "valkey",
        (str(server), str(file)),
        port=layout.port("valkey"),
        ready_by="redis",
        stop_stage=2,
        config_file=file,
        config="\n".join(lines) + "\n",
        foreign=True,
    )
