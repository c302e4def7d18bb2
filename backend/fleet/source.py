"""Which pods exist: from a Kubernetes API, from the file that a pod runtime writes, from pods named in the configuration.

Owns reading, checking and noticing changes. Never decides what a pod is good for, and never forgets a pod because a file is
broken: the last good list stands until a better one can be read, and `problem` says why.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from backend.api.fleet import Pod
from backend.core.errors import ConfigError, Unavailable, WorkbenchError
from backend.core.settings import FleetSettings, PodSettings

log = logging.getLogger(__name__)

UNSETTLED_S = 0.1
"""A file changed less than this ago is read again at the next look: two changes within one tick of the file system's clock
(4 ms on ext4) can have the same change time."""

Stamp = tuple[int, int, int]

_decoder = msgspec.json.Decoder(list[Pod])


class FleetSource:
    """The list of pods, once (`read`) or followed (`changes`). Safe for several followers."""

    def __init__(self, settings: FleetSettings, pods: Sequence[PodSettings] = ()) -> None:
        self.settings = settings
        self.static = static_pods(pods)
        self.pods: list[Pod] = list(self.static)
        """The last good list."""
        self.problem: WorkbenchError | None = None
        """Why the newest state cannot be known; None while it can."""
        self.problems = 0
        """Times that the file went from good to bad."""

    def read(self) -> list[Pod]:
        """The list as it is now. Raises ConfigError, which names file and field, when the file is missing or broken."""
        listed = read_file(self.settings.file) if self.settings.file is not None else []
        names = {pod.name for pod in self.static}
        self.pods = self.static + [pod for pod in listed if pod.name not in names]
        return list(self.pods)

    async def changes(self) -> AsyncIterator[list[Pod]]:
        """The list at once (empty when it cannot be read yet), then again whenever it differs. Pods of the configuration alone: once."""
        if self.settings.kubeconfig is not None:
            async for listed in self._changes_of_cluster():
                yield listed
            return
        self._try_read()
        seen = list(self.pods)
        yield list(seen)
        file = self.settings.file
        if file is None:
            return
        stamp: Stamp | None = None
        while True:
            await asyncio.sleep(self.settings.poll_s)
            newest = _stamp(file)
            if newest is not None and newest == stamp:
                continue
            self._try_read()
            stamp = newest if newest is not None and _settled(newest) else None
            if self.pods != seen:
                seen = list(self.pods)
                yield list(seen)

    async def _changes_of_cluster(self) -> AsyncIterator[list[Pod]]:
        # Here, not at the top: most stacks' gateways and indexes know their fleet without an HTTP client for Kubernetes.
        from backend.fleet.cluster import ClusterPods

        cluster = ClusterPods(self.settings)
        seen: tuple[list[Pod], str] | None = None
        names = {pod.name for pod in self.static}
        async for listed in cluster.changes():
            problem = cluster.problem
            self.problems += bool(problem) and self.problem is None
            self.problem = Unavailable(f"The pods of the cluster are not being followed: {problem}") if problem else None
            self.pods = self.static + [pod for pod in listed if pod.name not in names]
            if seen != (self.pods, problem):
                seen = (list(self.pods), problem)
                yield list(self.pods)

    def _try_read(self) -> None:
        """Read; on failure keep what was known and say so once."""
        try:
            self.read()
        except ConfigError as error:
            if self.problem is None:
                self.problems += 1
                log.warning("%s The last good list of %d pods stays in use.", error, len(self.pods))
            self.problem = error
            return
        if self.problem is not None:
            log.info("%s can be read again", self.settings.file)
        self.problem = None


def read_file(file: Path) -> list[Pod]:
    """The pods in `file`. Raises ConfigError with file, line and field."""
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            "no such file", file=str(file), fix="The pod runtime writes it when it starts; check that it runs, or the path."
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(file)) from error
    try:
        pods = _decoder.decode(raw)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at ")
        raise ConfigError(problem, file=str(file), field=path.strip("`").removeprefix("$")) from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"is not a JSON list of pods: {error}", file=str(file), line=_line_of(raw, str(error))) from None
    _refuse_doubles(pods, file)
    return pods


def static_pods(pods: Sequence[PodSettings]) -> list[Pod]:
    """Pods named in a configuration: taken as ready, since nobody probes them."""
    made = []
    for at, pod in enumerate(pods):
        host, _, port = pod.address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"is {pod.address!r}, not host:port", field=f"pods[{at}].address", fix="Write it as 127.0.0.1:8000.")
        made.append(
            Pod(
                name=pod.name,
                ip=host,
                port=int(port),
                model=pod.model,
                engine=pod.engine,
                role=pod.role,
                roleset=pod.roleset,
                revision=pod.revision,
                labels=dict(pod.labels),
                state="ready",
                ready=True,
            )
        )
    _refuse_doubles(made, None)
    return made


def _refuse_doubles(pods: Sequence[Pod], file: Path | None) -> None:
    first: dict[str, int] = {}
    for at, pod in enumerate(pods):
        if not pod.name:
            raise ConfigError("is empty", file=str(file or ""), field=f"[{at}].name")
        if pod.name in first:
            raise ConfigError(f"{pod.name!r} is the name of [{first[pod.name]}] too", file=str(file or ""), field=f"[{at}].name")
        first[pod.name] = at


def _line_of(raw: bytes, problem: str) -> int:
    """Line of the byte that msgspec complains about; the last line for a file that ends too early."""
    found = re.search(r"\(byte (\d+)\)", problem)
    return raw[: int(found[1])].count(b"\n") + 1 if found else raw.count(b"\n") + 1


def _stamp(file: Path) -> Stamp | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _settled(stamp: Stamp) -> bool:
    return time.time() - stamp[0] / 1e9 > UNSETTLED_S
