"""The kubelet on the API server's own objects, with their rules, versions and conflicts; programs are virtual, and so is time."""

from __future__ import annotations

import asyncio

import pytest

from backend.core.clock import LoopClock
from backend.localkube.objects import Objects
from backend.localkube.runtime.virtual import Life, VirtualHost
from tests.fakes.nodes import cluster
from tests.fakes.objects import pod, with_image

pytestmark = pytest.mark.looptime


def change(objects: Objects, name: str, how) -> None:
    objects.update("pods", how(objects.get("pods", "default", name)))


def objects_in(folder, epoch: float = 1_700_000_000.0) -> Objects:
    return Objects(folder / "objects.sqlite", clock=LoopClock(epoch))


async def test_a_pod_lives_from_its_creation_to_its_end(tmp_path):
    objects = objects_in(tmp_path)
    async with cluster(tmp_path, objects=objects, host=VirtualHost(lambda _: Life(ready_s=1, stop_s=2))) as node:
        objects.create("pods", pod(labels={"app": "a"}))
        await asyncio.sleep(2)
        assert node.ready()
        assert node.status()["qosClass"] == "BestEffort", "what the API server said stays"
        change(objects, "vllm-0", with_image("vllm/vllm-openai:v0.11.0"))
        await asyncio.sleep(4)
        assert (node.ready(), node.container()["restartCount"]) == (True, 1)
        objects.delete("pods", "default", "vllm-0")
        await asyncio.sleep(1)
        assert not node.ready()
        await asyncio.sleep(2)
        assert objects.get("pods", "default", "vllm-0") is None
        assert node.kubelet.failures == 0
        assert node.kubelet.events.lost == 0
        assert {event["reason"] for event in objects.list("events")} == {"Scheduled", "Pulled", "Created", "Started", "Killing"}
    objects.close()


async def test_a_finalizer_keeps_the_object_and_not_the_program(tmp_path):
    objects = objects_in(tmp_path)
    held = pod()
    held["metadata"]["finalizers"] = ["example.dev/hold"]
    async with cluster(tmp_path, objects=objects) as node:
        objects.create("pods", held)
        await asyncio.sleep(2)
        objects.delete("pods", "default", "vllm-0")
        await asyncio.sleep(3)
        assert node.runtime.pods() == []
        assert node.status()["phase"] == "Succeeded"
        assert "terminated" in node.container()["state"]
        writes = objects.get("pods", "default", "vllm-0")["metadata"]["resourceVersion"]
        await asyncio.sleep(600)
        assert objects.get("pods", "default", "vllm-0")["metadata"]["resourceVersion"] == writes
        change(objects, "vllm-0", lambda obj: {**obj, "metadata": {**obj["metadata"], "finalizers": []}})
        await asyncio.sleep(0.1)
        assert objects.get("pods", "default", "vllm-0") is None
    objects.close()


async def test_what_a_killed_cluster_remembers_is_made_true_again(tmp_path):
    first = objects_in(tmp_path)
    async with cluster(tmp_path, objects=first) as node:
        for name in ("a", "b"):
            first.create("pods", pod(name))
        await asyncio.sleep(2)
        node.kubelet.stop()
        node.scheduler.stop()
        first.delete("pods", "default", "b")
    first.close()
    second = objects_in(tmp_path)
    async with cluster(tmp_path, objects=second) as node:
        await asyncio.sleep(2)
        assert [entry["metadata"]["name"] for entry in second.list("pods")] == ["a"]
        assert (node.ready("a"), node.container("a")["restartCount"]) == (True, 1)
    second.close()
