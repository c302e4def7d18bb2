"""What the fleet reads of a Pod is what the kubelet says of it: the two sides of one status."""

from __future__ import annotations

import asyncio

import pytest

from backend.fleet.pods import pod_of
from backend.localkube.runtime.virtual import Life, VirtualHost
from tests.fakes.nodes import cluster
from tests.fakes.objects import pod, with_image

pytestmark = pytest.mark.looptime
LABELS = {"model.aibrix.ai/name": "m", "model.aibrix.ai/port": "8000", "role-name": "prefill"}


async def test_a_pod_is_starting_then_ready_then_stopping(tmp_path):
    async with cluster(tmp_path, host=VirtualHost(lambda _: Life(ready_s=2, stop_s=1))) as node:
        node.objects.create("pods", pod(labels=LABELS))

        def seen():
            found = pod_of(node.objects.get("pods", "default", "vllm-0"))
            return found.state, found.ip, found.version, found.restarts

        await asyncio.sleep(1)
        assert seen() == ("unready", "10.0.0.1", "0.10.2", 0)
        await asyncio.sleep(2)
        assert seen() == ("ready", "10.0.0.1", "0.10.2", 0)
        first = pod_of(node.objects.get("pods", "default", "vllm-0")).started_at
        node.objects.patch("pods", "vllm-0", with_image("vllm/vllm-openai:v0.11.0"))
        await asyncio.sleep(0.1)
        assert seen()[0] == "unready"
        await asyncio.sleep(5)
        assert seen() == ("ready", "10.0.0.1", "0.11.0", 1)
        assert pod_of(node.objects.get("pods", "default", "vllm-0")).started_at > first, "another boot"
        node.objects.delete("pods", "default", "vllm-0")
        await asyncio.sleep(0.1)
        assert seen()[0] == "stopping"


@pytest.mark.parametrize("image", ["nginx:1.27", "vllm/vllm-openai:nonsense"])
async def test_an_image_that_cannot_be_pulled_is_a_back_off_with_its_reason(tmp_path, image):
    async with cluster(tmp_path) as node:
        node.objects.create("pods", pod(image=image, labels=LABELS))
        for reason in ("ErrImagePull", "ImagePullBackOff"):
            await asyncio.sleep(0.9)
            found = pod_of(node.objects.get("pods", "default", "vllm-0"))
            assert (found.state, found.reason.partition(":")[0]) == ("backoff", reason)
