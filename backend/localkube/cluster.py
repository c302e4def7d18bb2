"""The laptop's cluster in one process: its Kubernetes API, the node that runs its Pods, and the scheduler that gives them the node."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

from backend.core import files
from backend.localkube.api.server import ApiServer
from backend.localkube.folder import FOLDER, kubeconfig
from backend.localkube.kubelet.images import Images
from backend.localkube.kubelet.scheduler import Scheduler
from backend.localkube.kubelet.service import Kubelet
from backend.localkube.objects import Objects
from backend.localkube.runtime.model import PodSpec
from backend.localkube.runtime.pods import PodRuntime


class Cluster:
    """`start` once the runtime is there, `stop` before it is closed."""

    def __init__(self, state: Path, runtime: PodRuntime, port: int) -> None:
        folder = files.ensure_folder(state / FOLDER)
        self.objects = Objects(folder / "cluster.sqlite")
        self.kubelet = Kubelet(self.objects, runtime, Images.read())
        self.scheduler = Scheduler(self.objects, self.kubelet.node, runtime.options.space.capacity)
        self.server = ApiServer(self.objects, port=port, kubeconfig=kubeconfig(state), logs=self.kubelet.log)
        # Objects live long and hold no cycles: looking through all of them again and again would take most of the time.
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)

    async def start(self, others: Sequence[PodSpec] = ()) -> None:
        """Listen, and take over what an earlier process left running. `others`: programs of the runtime that no Pod stands for.
        Raises PortInUse."""
        await self.server.start()
        self.kubelet.start(others)
        self.scheduler.start()

    async def stop(self) -> None:
        self.scheduler.stop()
        self.kubelet.stop()
        await self.server.stop()
        self.objects.close()
