"""Pods over virtual programs, in virtual time: what a Pod's status says and when. Real programs: test_kubelet_programs."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from backend.localkube.runtime import addresses
from backend.localkube.runtime.virtual import Life, VirtualHost
from tests.fakes.nodes import cluster
from tests.fakes.objects import Objects, pod, with_image

pytestmark = pytest.mark.looptime

UNKNOWN = "nginx:1.27"


async def test_a_pod_is_placed_started_and_ready(tmp_path):
    async with cluster(tmp_path) as node:
        node.objects.create("pods", pod())
        await asyncio.sleep(0.5)
        assert node.status()["phase"] == "Running"
        assert node.objects.get("pods", "default", "vllm-0")["spec"]["nodeName"] == "local"
        assert not node.ready()
        assert node.condition("ContainersReady")["reason"] == "ContainersNotReady"
        assert "engine" in node.condition("ContainersReady")["message"]
        await asyncio.sleep(1)
        status = node.status()
        assert {entry["type"]: entry["status"] for entry in status["conditions"]} == dict.fromkeys(
            ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"), "True"
        )
        assert (status["podIP"], status["hostIP"], status["startTime"]) == ("10.0.0.1", "127.0.0.1", "2023-11-14T22:13:20Z")
        (container,) = status["containerStatuses"]
        assert container["imageID"].startswith("vllm/vllm-openai@sha256:")
        assert (container["ready"], container["started"], container["restartCount"]) == (True, True, 0)
        assert container["state"] == {"running": {"startedAt": "2023-11-14T22:13:20Z"}}
        assert container["containerID"].startswith("virtual://1-")
        assert node.reasons() == ["Scheduled", "Pulled", "Created", "Started"]


async def test_transition_times_change_with_their_condition_only(tmp_path):
    async with cluster(tmp_path, host=VirtualHost(lambda _: Life(ready_s=5))) as node:
        node.objects.create("pods", pod())
        await asyncio.sleep(6)
        scheduled, ready = node.condition("PodScheduled"), node.condition("Ready")
        assert scheduled["lastTransitionTime"] == "2023-11-14T22:13:20Z"
        assert ready["lastTransitionTime"] == "2023-11-14T22:13:25Z"


async def test_nothing_is_written_when_nothing_happens(tmp_path):
    async with cluster(tmp_path) as node:
        node.objects.create("pods", pod())
        await asyncio.sleep(20)
        writes = node.objects.writes
        node.objects.patch("pods", "vllm-0", lambda obj: {**obj, "metadata": {**obj["metadata"], "annotations": {"a": "b"}}})
        await asyncio.sleep(600)
        assert node.objects.writes == writes + 1


@pytest.mark.parametrize("image", [UNKNOWN, "vllm/vllm-openai:nonsense"])
async def test_an_unknown_image_is_a_pull_error_then_a_back_off_and_a_correction_helps(tmp_path, image):
    async with cluster(tmp_path) as node:
        node.objects.create("pods", pod(image=image))
        await asyncio.sleep(0.5)
        waiting = node.container()["state"]["waiting"]
        assert waiting["reason"] == "ErrImagePull"
        assert image in waiting["message"]
        await asyncio.sleep(1)
        assert node.container()["state"]["waiting"]["reason"] == "ImagePullBackOff"
        assert node.status()["phase"] == "Pending"
        assert node.container()["restartCount"] == 0
        assert node.reasons() == ["Scheduled", "Failed", "Failed", "BackOff", "Failed"]
        await asyncio.sleep(600)
        assert node.container()["state"]["waiting"]["reason"] == "ImagePullBackOff"
        node.objects.patch("pods", "vllm-0", with_image("vllm/vllm-openai:v0.10.2"))
        await asyncio.sleep(2)
        assert node.ready()
        assert node.container()["restartCount"] == 0


async def test_another_image_on_a_running_pod_restarts_the_container_in_place(tmp_path):
    async with cluster(tmp_path) as node:
        node.objects.create("pods", pod())
        await asyncio.sleep(2)
        before, ip = node.container(), node.status()["podIP"]
        node.objects.patch("pods", "vllm-0", with_image("vllm/vllm-openai:v0.11.0"))
        await asyncio.sleep(0.1)
        assert not node.ready(), "routers are told before the program is"
        assert node.container()["imageID"] == before["imageID"]
        await asyncio.sleep(2)
        after = node.container()
        assert node.ready()
        assert (after["restartCount"], after["image"]) == (1, "vllm/vllm-openai:v0.11.0")
        assert after["imageID"] != before["imageID"]
        assert after["lastState"]["terminated"]["exitCode"] == 0
        assert after["lastState"]["terminated"]["containerID"] == before["containerID"]
        assert node.status()["podIP"] == ip
        assert "Killing" in node.reasons()


async def test_an_unknown_image_on_a_running_pod_ends_the_container_and_waits(tmp_path):
    async with cluster(tmp_path) as node:
        node.objects.create("pods", pod())
        await asyncio.sleep(2)
        node.objects.patch("pods", "vllm-0", with_image(UNKNOWN))
        await asyncio.sleep(2)
        container = node.container()
        assert container["state"]["waiting"]["reason"] == "ImagePullBackOff"
        assert container["lastState"]["terminated"]["reason"] == "Completed"
        assert node.status()["phase"] == "Running"
        node.objects.patch("pods", "vllm-0", with_image("vllm/vllm-openai:v0.10.2"))
        await asyncio.sleep(2)
        assert (node.ready(), node.container()["restartCount"]) == (True, 1)


async def test_a_crash_loop_backs_off_and_says_so(tmp_path):
    async with cluster(tmp_path, host=VirtualHost(lambda _: Life(ready_s=9, exits_s=0.1, code=3))) as node:
        node.objects.create("pods", pod())
        await asyncio.sleep(4.5)
        container = node.container()
        assert container["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        assert "back-off" in container["state"]["waiting"]["message"]
        assert container["lastState"]["terminated"]["exitCode"] == 3
        assert container["lastState"]["terminated"]["reason"] == "Error"
        assert container["restartCount"] == 3
        assert (node.status()["phase"], node.ready()) == ("Running", False)
        assert "BackOff" in node.reasons()


@pytest.mark.parametrize(
    ("policy", "code", "phase", "reason"),
    [("Never", 0, "Succeeded", "PodCompleted"), ("Never", 3, "Failed", "PodFailed"), ("OnFailure", 0, "Succeeded", "PodCompleted")],
)
async def test_a_restart_policy_can_let_a_pod_end(tmp_path, policy, code, phase, reason):
    async with cluster(tmp_path, host=VirtualHost(lambda _: Life(ready_s=1, exits_s=2, code=code))) as node:
        node.objects.create("pods", pod(restartPolicy=policy))
        await asyncio.sleep(60)
        assert node.status()["phase"] == phase
        assert node.container()["state"]["terminated"]["exitCode"] == code
        assert node.condition("Ready")["reason"] == reason
        assert node.container()["restartCount"] == 0
        node.objects.delete("pods", "default", "vllm-0")
        await asyncio.sleep(1)
        assert node.objects.list("pods") == []


async def test_a_deleted_pod_is_not_ready_at_once_and_goes_when_its_program_has_ended(tmp_path):
    async with cluster(tmp_path, host=VirtualHost(lambda _: Life(ready_s=1, stop_s=3))) as node:
        node.objects.create("pods", pod())
        await asyncio.sleep(2)
        node.objects.delete("pods", "default", "vllm-0")
        await asyncio.sleep(0.01)
        assert not node.ready()
        await asyncio.sleep(3)
        assert node.status() != {}
        await asyncio.sleep(0.3)
        assert node.objects.list("pods") == []
        assert node.runtime.pods() == []
        assert "Killing" in node.reasons()


@pytest.mark.parametrize(
    ("hook", "grace_s", "gone_after_s"),
    [(None, 5, 5), (2, 5, 5), (30, 5, 7)],
    ids=["no_hook", "sleep_counts_as_grace", "sleep_that_takes_all_leaves_two_seconds"],
)
async def test_grace_holds_for_sleep_and_signal_together(tmp_path, hook, grace_s, gone_after_s):
    life = {"lifecycle": {"preStop": {"sleep": {"seconds": hook}}}} if hook else {}
    async with cluster(tmp_path, host=VirtualHost(lambda _: Life(ready_s=0.5, stop_s=math.inf))) as node:
        node.objects.create("pods", pod(terminationGracePeriodSeconds=grace_s, **life))
        await asyncio.sleep(1)
        node.objects.delete("pods", "default", "vllm-0")
        await asyncio.sleep(gone_after_s - 0.2)
        assert node.objects.list("pods") != []
        await asyncio.sleep(0.4)
        assert node.objects.list("pods") == []


async def test_a_shorter_grace_may_follow_and_force_does_not_wait(tmp_path):
    async with cluster(tmp_path, host=VirtualHost(lambda _: Life(ready_s=0.5, stop_s=math.inf))) as node:
        node.objects.create("pods", pod("a"))
        node.objects.create("pods", pod("b"))
        await asyncio.sleep(1)
        node.objects.delete("pods", "default", "a")
        await asyncio.sleep(1)
        node.objects.delete("pods", "default", "a", grace_s=3)
        await asyncio.sleep(3.5)
        assert [entry["metadata"]["name"] for entry in node.objects.list("pods")] == ["b"]
        node.objects.delete("pods", "default", "b", grace_s=0)
        await asyncio.sleep(0.1)
        assert node.runtime.pods() == []


async def test_a_pod_of_the_same_name_may_follow_at_once(tmp_path):
    async with cluster(tmp_path, host=VirtualHost(lambda _: Life(ready_s=0.5, stop_s=5))) as node:
        node.objects.create("pods", pod())
        await asyncio.sleep(1)
        node.objects.delete("pods", "default", "vllm-0", grace_s=0)
        node.objects.create("pods", pod())
        await asyncio.sleep(1)
        assert node.ready()
        assert node.container()["restartCount"] == 0
        assert len(node.runtime.pods()) == 1


async def test_a_readiness_gate_of_a_controller_holds_the_pod_back(tmp_path):
    gate = "stormservice.orchestration.aibrix.ai/in-place-update-ready"
    async with cluster(tmp_path) as node:
        node.objects.create("pods", pod(readinessGates=[{"conditionType": gate}]))
        await asyncio.sleep(2)
        assert node.condition("ContainersReady")["status"] == "True"
        assert node.condition("Ready")["reason"] == "ReadinessGatesNotReady"
        found = node.objects.get("pods", "default", "vllm-0")
        opened = [*found["status"]["conditions"], {"type": gate, "status": "True"}]
        node.objects.update_status("pods", {**found, "status": {**found["status"], "conditions": opened}})
        await asyncio.sleep(0.1)
        assert node.ready()
        assert node.condition(gate)["status"] == "True"


async def test_two_containers_share_an_address_and_both_must_be_ready(tmp_path):
    both = pod()
    both["spec"]["containers"].append({"name": "sidecar", "image": "lmsysorg/sglang:v0.5.3", "args": ["--port", "8001"]})
    slow = VirtualHost(lambda spec: Life(ready_s=3 if spec.engine == "sglang" else 1))
    async with cluster(tmp_path, host=slow) as node:
        node.objects.create("pods", both)
        await asyncio.sleep(2)
        assert [entry["ready"] for entry in node.status()["containerStatuses"]] == [True, False]
        assert node.condition("Ready")["message"] == "containers with unready status: [sidecar]"
        await asyncio.sleep(2)
        assert node.ready()
        assert {entry.ip for entry in node.runtime.pods()} == {node.status()["podIP"]}


async def test_a_missing_map_is_a_configuration_error_until_it_comes(tmp_path):
    source = {"configMapKeyRef": {"name": "settings", "key": "K"}}
    async with cluster(tmp_path) as node:
        node.objects.create("pods", pod(env=[{"name": "K", "valueFrom": source}]))
        await asyncio.sleep(2)
        assert node.container()["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        assert "settings" in node.container()["state"]["waiting"]["message"]
        node.objects.create("configmaps", {"metadata": {"name": "settings", "namespace": "default"}, "data": {"K": "v"}})
        await asyncio.sleep(15)
        assert node.ready()


async def test_an_image_that_never_gets_ready_stays_unready(tmp_path):
    async with cluster(tmp_path) as node:
        node.objects.create("pods", pod(image="vllm/vllm-openai:never-ready"))
        await asyncio.sleep(3600)
        assert (node.status()["phase"], node.ready(), node.container()["restartCount"]) == ("Running", False, 0)


async def test_what_this_node_does_not_do_is_said_once(tmp_path):
    async with cluster(tmp_path) as node:
        node.objects.create("pods", pod(readinessProbe={"exec": {"command": ["true"]}}, initContainers=[{"name": "i", "image": "x"}]))
        await asyncio.sleep(60)
        assert node.reasons().count("Unsupported") == 2
        assert node.ready()


async def test_a_full_node_leaves_pods_pending_until_there_is_room(tmp_path):
    async with cluster(tmp_path, space=addresses.Imagined(capacity=2)) as node:
        for name in ("a", "b", "c"):
            node.objects.create("pods", pod(name))
        await asyncio.sleep(3)
        assert node.condition("PodScheduled", "c")["reason"] == "Unschedulable"
        assert "FailedScheduling" in node.reasons("c")
        node.objects.delete("pods", "default", "a")
        await asyncio.sleep(5)
        assert (node.ready("b"), node.ready("c")) == (True, True)


async def test_a_pod_that_names_a_full_node_itself_fails(tmp_path):
    async with cluster(tmp_path, space=addresses.Imagined(capacity=1)) as node:
        for name in ("a", "b"):
            node.objects.create("pods", pod(name, nodeName="local"))
        await asyncio.sleep(3)
        assert (node.ready("a"), node.status("b")["phase"], node.status("b")["reason"]) == (True, "Failed", "OutOfpods")


async def test_a_gated_pod_waits_and_a_pod_of_another_node_is_not_ours(tmp_path):
    async with cluster(tmp_path) as node:
        node.objects.create("pods", pod("gated", schedulingGates=[{"name": "g"}]))
        node.objects.create("pods", pod("elsewhere", nodeName="other"))
        await asyncio.sleep(3)
        assert node.condition("PodScheduled", "gated")["reason"] == "SchedulingGated"
        assert node.status("elsewhere")["phase"] == "Pending"
        assert "podIP" not in node.status("elsewhere")
        node.objects.patch("pods", "gated", lambda obj: {**obj, "spec": {**obj["spec"], "schedulingGates": []}})
        await asyncio.sleep(2)
        assert node.ready("gated")


async def test_a_node_that_lost_its_programs_starts_them_again_and_says_what_it_does_not_know(tmp_path):
    async with cluster(tmp_path) as first:
        objects = first.objects
        objects.create("pods", pod())
        await asyncio.sleep(2)
        first.kubelet.stop()
        first.scheduler.stop()
    async with cluster(tmp_path, objects=Objects(objects.state)) as second:
        await asyncio.sleep(2)
        assert second.ready()
        container = second.container()
        assert container["restartCount"] == 1
        assert container["lastState"]["terminated"]["reason"] == "ContainerStatusUnknown"


async def test_pods_deleted_while_the_node_was_away_go_when_it_is_back(tmp_path):
    async with cluster(tmp_path) as first:
        objects = first.objects
        objects.create("pods", pod())
        await asyncio.sleep(2)
    objects.delete("pods", "default", "vllm-0")
    async with cluster(tmp_path, objects=Objects(objects.state)) as second:
        await asyncio.sleep(1)
        assert second.objects.list("pods") == []


async def test_finished_pods_give_their_addresses_back(tmp_path):
    host = VirtualHost(lambda _: Life(ready_s=1, exits_s=2, code=0))
    async with cluster(tmp_path, host=host, space=addresses.Imagined(capacity=1)) as node:
        for name in ("a", "b"):
            node.objects.create("pods", pod(name, restartPolicy="Never"))
        await asyncio.sleep(10)
        assert (node.status("a")["phase"], node.status("b")["phase"]) == ("Succeeded", "Succeeded")
        assert node.container("a")["state"]["terminated"]["exitCode"] == 0


async def test_where_there_is_one_address_each_pod_has_ports_and_tells_them(tmp_path):
    async with cluster(tmp_path, space=addresses.Space("", 18800)) as node:
        for name in ("a", "b"):
            node.objects.create("pods", pod(name, ports=[{"containerPort": 8000}]))
        await asyncio.sleep(3)
        assert (node.ready("a"), node.ready("b")) == (True, True)
        told = [entry["metadata"]["annotations"]["workbench/port-map"] for entry in node.objects.list("pods")]
        assert told == [str(entry.port) for entry in node.runtime.pods()] == ["18900", "18903"]


async def test_thousands_of_pods_become_ready_and_go(tmp_path):
    count, began = 2000, time.process_time()
    async with cluster(tmp_path, host=VirtualHost(lambda _: Life(ready_s=30)), warnings_only=True) as node:
        for number in range(count):
            node.objects.create("pods", pod(f"p-{number}"))
        await asyncio.sleep(31)
        assert all(node.ready(f"p-{number}") for number in range(count))
        assert len({entry["status"]["podIP"] for entry in node.objects.list("pods")}) == count
        for number in range(count):
            node.objects.delete("pods", "default", f"p-{number}")
        await asyncio.sleep(5)
        assert node.objects.list("pods") == []
    assert time.process_time() - began < 10, "a pod should cost well under a millisecond"
