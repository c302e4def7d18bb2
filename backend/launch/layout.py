"""Where everything of a stack is: ports by offset from the base, files below the state folder. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backend.core.errors import UsageError
from backend.localkube import folder

HOST = "127.0.0.1"
OFFSETS = {"runtime": 0, "control": 1, "gateway": 2, "kvindex": 3, "valkey": 4, "kube": 5, "dashboard": 6}
"""Part -> port offset. `kube` is the Kubernetes API, served by the same process as `runtime`."""

_LOWEST_BASE, _HIGHEST_BASE = 1024, 65_000


@dataclass(frozen=True)
class Layout:
    """Paths and ports of the stack at `state`."""

    state: Path
    port_base: int

    def __post_init__(self) -> None:
        if not _LOWEST_BASE <= self.port_base <= _HIGHEST_BASE:
            raise UsageError(f"The port base must lie between {_LOWEST_BASE} and {_HIGHEST_BASE}, not at {self.port_base}.")

    def port(self, part: str) -> int:
        return self.port_base + OFFSETS[part]

    def url(self, part: str) -> str:
        return f"http://{HOST}:{self.port(part)}"

    def config(self, part: str) -> Path:
        return self.state / "config" / f"{part}.toml"

    def log(self, part: str) -> Path:
        return self.state / "logs" / f"{part}.log"

    @property
    def pods(self) -> Path:
        """The fleet file for all: a JSON list of pods."""
        return self.state / "pods.json"

    @property
    def kubeconfig(self) -> Path:
        """How clients of the stack's own cluster log in."""
        return folder.kubeconfig(self.state)

    @property
    def endpoints(self) -> Path:
        return self.state / "endpoints.json"

    @property
    def table(self) -> Path:
        """What runs, for `workbench status`."""
        return self.state / "processes.json"

    @property
    def token(self) -> Path:
        return self.state / "token"

    @property
    def lock(self) -> Path:
        return self.state / "lock"

    @property
    def stack_name(self) -> str:
        """Value of WORKBENCH_STACK of everything that belongs to this stack."""
        return str(self.state)
