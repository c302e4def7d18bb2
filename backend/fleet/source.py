"""Which pods exist: from a Kubernetes API, from the file that a pod runtime writes, from pods named in the configuration.

Owns reading, checking and noticing changes. Never decides what a pod is good for, and never forgets a pod because a file is
broken: the last good list stands until a better one can be read, and `problem` says why.
"""

from __future__ import annotations

import asyncio
import contextlib
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

POD_LABEL = "workbench/pod"
"""Label of a runtime's program that names the Pod object it belongs to."""
Stamp = tuple[int, int, int]

_decoder = msgspec.json.Decoder(list[Pod])


class FleetSource:
    """The list of pods, once (`read`) or followed (`changes`). Safe for several followers."""

    def __init__(self, settings: FleetSettings, pods: Sequence[PodSettings] = ()) -> None:
        self.settings = settings
        self.static = static_pods(pods)
        self.pods: list[Pod] = list(self.static)
        """The last good list."""
        self.problems = 0
        """Times that the file, or the cluster, went from good to bad."""
        self._problems: dict[str, WorkbenchError | None] = {}
        self._of_file: list[Pod] = []
        self._of_cluster: list[Pod] = []

    def read(self) -> list[Pod]:
        """The list as it is now. Raises ConfigError, which names file and field, when the file is missing or broken."""
        listed = read_file(self.settings.file) if self.settings.file is not None else []
        # A program of a Pod object: the cluster tells of it.
        self._of_file = [pod for pod in listed if POD_LABEL not in pod.labels]
        self._merge()
        return list(self.pods)

    async def changes(self) -> AsyncIterator[list[Pod]]:
        """The list as soon as every source has said something (it may have said that it cannot be read), then again whenever it
        differs. Pods of the configuration alone: once."""
        follow = {"file": self._follow_file} if self.settings.file is not None else {}
        if self.settings.kubeconfig is not None:
            follow["cluster"] = self._follow_cluster
        news, unheard = asyncio.Event(), set(follow)
        tasks = [asyncio.create_task(run(news, unheard)) for run in follow.values()]
        seen: list[Pod] | None = None
        try:
            while True:
                self._merge()
                if not unheard and self.pods != seen:
                    seen = list(self.pods)
                    yield list(self.pods)
                if not follow:
                    return
                await _next(news, tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow_file(self, news: asyncio.Event, unheard: set[str]) -> None:
        file = self.settings.file
        assert file is not None
        stamp: Stamp | None = None
        while True:
            newest = _stamp(file)
            if newest is None or newest != stamp:
                self._try_read()
                stamp = newest if newest is not None and _settled(newest) else None
                unheard.discard("file")
                news.set()
            await asyncio.sleep(self.settings.poll_s)

    async def _follow_cluster(self, news: asyncio.Event, unheard: set[str]) -> None:
        # Here, not at the top: without a cluster no process needs a client for one.
        from backend.fleet.cluster import ClusterPods

        cluster = ClusterPods(self.settings)
        async with contextlib.aclosing(cluster.changes()) as changes:
            async for listed in changes:
                self._of_cluster = listed
                problem = f"The pods of the cluster are not being followed: {cluster.problem}"
                self._set_problem("cluster", Unavailable(problem) if cluster.problem else None)
                unheard.discard("cluster")
                news.set()

    def _try_read(self) -> None:
        """Read; on failure keep what was known and say so once."""
        try:
            self.read()
        except ConfigError as error:
            if not self._problems.get("file"):
                log.warning("%s The last good list of %d pods stays in use.", error, len(self.pods))
            self._set_problem("file", error)
            return
        if self._problems.get("file"):
            log.info("%s can be read again", self.settings.file)
        self._set_problem("file", None)

    def _set_problem(self, where: str, problem: WorkbenchError | None) -> None:
        self.problems += problem is not None and not self._problems.get(where)
        self._problems[where] = problem

    @property
    def problem(self) -> WorkbenchError | None:
        """Why the newest state cannot be known; None while it can."""
        return next(filter(None, self._problems.values()), None)

    def _merge(self) -> None:
        """A name that is there twice is the earlier one's: configuration, file, cluster."""
        named: dict[str, Pod] = {}
        for pod in (*self.static, *self._of_file, *self._of_cluster):
            named.setdefault(pod.name, pod)
        self.pods = list(named.values())


async def _next(news: asyncio.Event, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for news. Raises what ended one of `tasks`: they follow for ever."""
    waiting = asyncio.ensure_future(news.wait())
    try:
        await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    for task in tasks:
        if task.done():
            task.result()
    news.clear()


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
