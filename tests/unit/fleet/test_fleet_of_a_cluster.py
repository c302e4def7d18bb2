"""The fleet followed at a Kubernetes API, on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from backend.api.fleet import Pod
from backend.core.settings import FleetSettings
from backend.fleet.cluster import pods_of
from backend.fleet.source import FleetSource
from tests.fakes.kubeapi import FakeKubeApi, kube_api, write_kubeconfig  # noqa: F401  a fixture
from tests.fakes.waiting import eventually


def content(ip: str, *, model: str = "m", ready: bool = True) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"model.aibrix.ai/name": model} if model else {}},
        "spec": {"containers": [{"image": "vllm/vllm-openai:v0.32.0"}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": str(ready)}]},
    }


class Followed:
    def __init__(self, source: FleetSource) -> None:
        self.source = source
        self.lists: list[list[Pod]] = []

    def now(self) -> dict[str, bool]:
        return {pod.name: pod.ready for pod in self.lists[-1]} if self.lists else {}

    async def run(self) -> None:
        async for pods in self.source.changes():
            self.lists.append(pods)


@asynccontextmanager
async def followed(kubeconfig: Path) -> AsyncIterator[Followed]:
    seen = Followed(FleetSource(FleetSettings(kubeconfig=kubeconfig)))
    task = asyncio.create_task(seen.run())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_pods_that_come_go_and_lose_their_readiness_are_followed(tmp_path: Path, kube_api: FakeKubeApi) -> None:  # noqa: F811
    await put(kube_api, "a", content("10.0.0.1"))
    await put(kube_api, "database", content("10.0.0.9", model=""))
    async with followed(write_kubeconfig(tmp_path / "config", kube_api.url)) as seen:
        await eventually(lambda: seen.now() == {"a": True})
        await put(kube_api, "b", content("10.0.0.2"))
        await eventually(lambda: seen.now() == {"a": True, "b": True})
        await put(kube_api, "a", content("10.0.0.1", ready=False))
        await eventually(lambda: seen.now() == {"a": False, "b": True})
        await kube_api.remove("v1/pods", "default", "b")
        await eventually(lambda: seen.now() == {"a": False})
        assert seen.source.problem is None


async def test_a_cluster_that_stops_answering_is_said_and_its_pods_are_kept(tmp_path: Path, kube_api: FakeKubeApi) -> None:  # noqa: F811
    await put(kube_api, "a", content("10.0.0.1"))
    async with followed(write_kubeconfig(tmp_path / "config", kube_api.url)) as seen:
        await eventually(lambda: seen.now() == {"a": True})
        await kube_api.stop()
        await eventually(lambda: seen.source.problem is not None)
        assert "not being followed" in str(seen.source.problem)
        assert seen.now() == {"a": True}


async def test_a_cluster_that_was_never_there_gives_an_empty_list_and_a_problem(tmp_path: Path) -> None:
    async with followed(write_kubeconfig(tmp_path / "config", "http://127.0.0.1:9")) as seen:
        await eventually(lambda: seen.lists == [[]])
        assert seen.source.problem is not None


def test_pods_of_two_namespaces_that_share_a_name_are_told_apart() -> None:
    def named(namespace: str, ip: str) -> dict[str, Any]:
        made = content(ip)
        made["metadata"] |= {"name": "a", "namespace": namespace}
        return made

    assert [(pod.name, pod.ip) for pod in pods_of([named("y", "10.0.0.2"), named("x", "10.0.0.1")])] == [
        ("a", "10.0.0.1"),
        ("y/a", "10.0.0.2"),
    ]


async def put(api: FakeKubeApi, name: str, made: dict[str, Any]) -> None:
    await api.put("v1/pods", "default", name, **made)


pytestmark = pytest.mark.timeout(30)
