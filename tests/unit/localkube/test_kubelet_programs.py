"""Pods over real programs: simulated engines as processes and as objects of this loop. What is said when: test_kubelet."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from backend.core import life, processes
from backend.launch.engines import in_process
from backend.localkube.kubelet.images import Images, Rule
from backend.localkube.runtime.inprocess import InProcessHost
from tests.fakes.nodes import Cluster, cluster
from tests.fakes.objects import Objects, pod, with_image
from tests.fakes.waiting import eventually

TINY_RULE = Rule(
    repository="tiny",
    engine="tiny",
    version="1.0",
    command=[sys.executable, "-m", "tests.fakes.tiny_engine", "--host", "{ip}", "--port", "{port}"],
    flags={name: name for name in ("crash-after", "hang-file", "say", "worker")},
    switches={"ignore-term": "ignore-term"},
    tags={"broken": {"crash-after": "0"}},
)
TINY = Images([TINY_RULE])


@pytest.fixture(autouse=True)
def life_pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever becomes of a test or of the whole run: no process outlives it."""
    pipe = life.LifePipe()
    monkeypatch.setenv(life.LIFE_FD, str(pipe.read_fd))
    yield
    pipe.close()


async def get(node: Cluster, path: str, name: str = "vllm-0", port: int = 8000) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://{node.status(name)['podIP']}:{port}{path}")


def engines() -> InProcessHost:
    return InProcessHost({"backend.simulate.engine": in_process})


def number(node: Cluster, name: str = "vllm-0") -> int:
    """Of the process, from the container's id."""
    return int(node.container(name)["containerID"].removeprefix("process://").partition("-")[0])


async def test_a_pod_is_a_simulated_engine_with_the_options_of_its_template(tmp_path):
    async with cluster(tmp_path, real=True) as node:
        probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 1}
        node.objects.create(
            "pods",
            pod(
                command=["vllm", "serve", "qwen3-8b"],
                args=["--port", "$(PORT)", "--block-size", "16", "--tensor-parallel-size", "4"],
                env=[{"name": "PORT", "value": "8123"}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                ports=[{"name": "http", "containerPort": 8123}],
                readinessProbe=probe,
            ),
        )
        await eventually(node.ready, 15)
        info = (await get(node, "/server_info?config_format=json", port=8123)).json()["vllm_config"]
        assert (info["model_config"]["model"], info["cache_config"]["block_size"]) == ("qwen3-8b", 16)
        assert (await get(node, "/version", port=8123)).json() == {"version": "0.10.2"}
        environment = processes.environment(number(node))
        assert (environment["PORT"], environment["IP"]) == ("8123", node.status()["podIP"])
        log = node.kubelet.log("default", "vllm-0", "engine", {"tailLines": "1"})
        assert b"ready on" in log
        node.objects.delete("pods", "default", "vllm-0")
        await eventually(lambda: node.objects.list("pods") == [])
        await eventually(lambda: list((tmp_path / "pods").iterdir()) == [])
        assert node.runtime.pods() == []


async def test_the_pods_of_a_killed_node_go_on_and_are_taken_over(tmp_path):
    objects = Objects()
    async with cluster(tmp_path, real=True, objects=objects, images=TINY, end=False) as first:
        for name in ("stays", "changes", "deleted", "forgotten"):
            objects.create("pods", pod(name, image="tiny:1.0"))
        await eventually(lambda: all(first.ready(entry["metadata"]["name"]) for entry in objects.list("pods")))
        await asyncio.sleep(0.05)  # pods.json is written behind the change
        before = {name: first.container(name) for name in ("stays", "changes")}
        address = first.status("stays")["podIP"]
        pids = {name: number(first, name) for name in ("stays", "changes", "deleted", "forgotten")}
        space = first.runtime.options.space
        abandon(first)
    assert all(processes.alive(pid) for pid in pids.values())
    objects.patch("pods", "changes", with_image("tiny:2.0"))
    objects.delete("pods", "default", "deleted")
    del objects.state["pods"]["default", "forgotten"]
    async with cluster(tmp_path, real=True, objects=objects, images=TINY, space=space) as second:
        assert second.ready("stays"), "not a moment of not ready"
        await eventually(lambda: second.container("changes")["restartCount"] == 1 and second.ready("changes"))
        await eventually(lambda: [entry["metadata"]["name"] for entry in objects.list("pods")] == ["changes", "stays"])
        await eventually(lambda: not processes.alive(pids["deleted"]) and not processes.alive(pids["forgotten"]))
        assert second.container("stays") == before["stays"]
        assert second.status("stays")["podIP"] == address
        assert second.container("changes")["imageID"] != before["changes"]["imageID"]
        os.kill(pids["stays"], signal.SIGKILL)  # an adopted one is watched like our own
        await eventually(lambda: second.container("stays")["restartCount"] == 1 and second.ready("stays"))
        assert second.container("stays")["lastState"]["terminated"]["reason"] == "ContainerStatusUnknown"


def abandon(node: Cluster) -> None:
    """What `kill -9` leaves: programs and the record, nobody who watches."""
    node.runtime.on_change = lambda name, tracked: None
    for timer in node.runtime._timers.values():
        timer.cancel()
    for stop in node.runtime.host.watches.values():
        stop()
    node.runtime._pods.clear()
    for child in node.runtime.host.children.values():
        child.returncode = 0  # or Popen warns that we left it alone, which is the point


async def test_a_killed_container_is_restarted_and_its_end_is_told(tmp_path):
    async with cluster(tmp_path, real=True, images=TINY) as node:
        node.objects.create("pods", pod(image="tiny:1.0"))
        await eventually(node.ready)
        os.kill(number(node), signal.SIGKILL)
        killed_at = time.monotonic()
        await eventually(lambda: not node.ready())
        assert time.monotonic() - killed_at < 0.3
        await eventually(lambda: node.ready() and node.container()["restartCount"] == 1)
        last = node.container()["lastState"]["terminated"]
        assert (last["exitCode"], last["signal"], last["reason"]) == (137, 9, "Error")


async def test_a_broken_image_is_a_crash_loop_with_the_last_words_of_its_log(tmp_path):
    async with cluster(tmp_path, real=True, images=TINY) as node:
        node.objects.create("pods", pod(image="tiny:broken"))
        await eventually(lambda: (node.container().get("state", {}).get("waiting") or {}).get("reason") == "CrashLoopBackOff")
        assert "out of memory (as told)" in node.container()["state"]["waiting"]["message"]
        assert node.container()["lastState"]["terminated"]["exitCode"] == 3


async def test_a_variable_that_no_process_can_have_is_a_reason_not_a_crash(tmp_path):
    async with cluster(tmp_path, real=True, images=TINY) as node:
        node.objects.create("pods", pod(image="tiny:1.0", env=[{"name": "A", "value": "zero\0byte"}]))
        await eventually(lambda: "could not be started" in str(node.container().get("state")))


@pytest.mark.parametrize("tag", ["broken", "never-ready"])
async def test_the_images_for_practice_do_what_they_promise(tmp_path, tag):
    async with cluster(tmp_path, host=engines(), real=True) as node:
        node.objects.create("pods", pod(image=f"vllm/vllm-openai:{tag}"))
        await asyncio.sleep(0.5)
        assert not node.ready()
        state = node.container()["state"]
        if tag == "broken":
            assert state["waiting"]["reason"] == "CrashLoopBackOff"
            assert node.container()["lastState"]["terminated"]["exitCode"] == 2
        else:
            assert "running" in state
            assert node.container()["restartCount"] == 0


async def test_a_hung_container_leaves_routing_and_is_replaced_by_its_liveness_probe(tmp_path):
    hang = tmp_path / "hang"
    asked = {"httpGet": {"path": "/health", "port": 8000}, "timeoutSeconds": 1, "periodSeconds": 1}
    async with cluster(tmp_path, real=True, images=TINY) as node:
        more = {"readinessProbe": {**asked, "failureThreshold": 1}, "livenessProbe": {**asked, "failureThreshold": 2}}
        node.objects.create("pods", pod(image="tiny:1.0", args=["--hang-file", str(hang)], **more))
        await eventually(node.ready)
        hang.touch()
        await eventually(lambda: not node.ready())
        await eventually(lambda: (node.container()["restartCount"], hang.unlink(missing_ok=True))[0] == 1)
        await eventually(node.ready)
        assert "hung" in node.container()["lastState"]["terminated"]["message"]
        assert "Unhealthy" in node.reasons()


async def test_a_start_that_its_probe_never_passes_is_tried_again(tmp_path):
    startup = {"tcpSocket": {"port": 9999}, "periodSeconds": 1, "failureThreshold": 2}
    async with cluster(tmp_path, real=True, images=TINY) as node:
        node.objects.create("pods", pod(image="tiny:1.0", startupProbe=startup))
        await eventually(lambda: "running" in node.container().get("state", {}))
        await asyncio.sleep(0.5)
        assert (node.container()["started"], node.ready()) == (False, False)
        await eventually(lambda: node.container()["restartCount"] == 1)
        assert not node.ready()


async def test_a_container_that_ignores_sigterm_is_killed_after_its_grace(tmp_path):
    async with cluster(tmp_path, real=True, images=TINY) as node:
        node.objects.create("pods", pod(image="tiny:1.0", args=["--ignore-term"], terminationGracePeriodSeconds=1))
        await eventually(node.ready)
        pid, began = number(node), time.monotonic()
        node.objects.delete("pods", "default", "vllm-0")
        await eventually(lambda: node.objects.list("pods") == [])
        assert 0.9 < time.monotonic() - began < 3
        assert not processes.alive(pid)


async def test_a_followed_log_ends_with_its_container(tmp_path):
    async with cluster(tmp_path, real=True, images=TINY) as node:
        node.objects.create("pods", pod(image="tiny:1.0", args=["--say", "hello", "--crash-after", "0.5"], restartPolicy="Never"))
        await eventually(lambda: node.kubelet.log("default", "vllm-0", "", {}) == b"hello\n")
        followed = node.kubelet.log("default", "vllm-0", "engine", {"follow": "true"})
        text = b"".join([part async for part in followed])
        assert text == b"hello\ntiny engine: out of memory (as told)\n"
        assert node.kubelet.log("default", "nobody", "", {}) == b""


async def test_pairs_of_both_families_become_ready_from_the_options_of_the_real_engines(tmp_path):
    pair = '{"kv_connector":"NixlConnector","kv_role":"kv_both"}'
    sglang = ["--model-path", "m", "--port", "8000", "--tp", "2", "--disaggregation-mode"]
    wanted = [
        pod("vllm-p", "vllm/vllm-openai:v0.10.2", command=["sh", "-c"], args=[f"vllm serve m --port 8000 --kv-transfer-config '{pair}'"]),
        pod("vllm-d", "vllm/vllm-openai:v0.24.0", labels={"role-name": "decode"}, args=["--model", "m", "--kv-transfer-config", pair]),
        pod("sglang-p", "lmsysorg/sglang:v0.5.3", args=[*sglang, "prefill", "--disaggregation-bootstrap-port", "8998"]),
        pod("sglang-d", "lmsysorg/sglang:latest", args=[*sglang, "decode"]),
    ]
    async with cluster(tmp_path, host=engines(), real=True) as node:
        for obj in wanted:
            node.objects.create("pods", obj)
        await eventually(lambda: all(node.ready(obj["metadata"]["name"]) for obj in wanted), 20)
        assert (await get(node, "/version", "vllm-d")).json() == {"version": "0.24.0"}
        assert (await get(node, "/get_server_info", "sglang-p")).json()["disaggregation_mode"] == "prefill"


async def test_many_engines_run_in_this_process_and_one_is_upgraded(tmp_path):
    async with cluster(tmp_path, host=engines(), real=True) as node:
        names = [f"e-{index}" for index in range(40)]
        for name in names:
            node.objects.create("pods", pod(name, args=["--model", "m", "--num-blocks", "64", "--max-model-len", "1024"]))
        await eventually(lambda: all(node.ready(name) for name in names), 30)
        assert node.container("e-0")["containerID"].startswith("inprocess://")
        assert (await get(node, "/version", "e-7")).json() == {"version": "0.10.2"}
        node.objects.patch("pods", "e-7", with_image("vllm/vllm-openai:v0.24.0"))
        await eventually(lambda: node.container("e-7")["restartCount"] == 1 and node.ready("e-7"))
        assert (await get(node, "/version", "e-7")).json() == {"version": "0.24.0"}
        for name in names:
            node.objects.delete("pods", "default", name)
        await eventually(lambda: node.objects.list("pods") == [])
