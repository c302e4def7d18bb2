"""StormServices on the stack's own cluster: brought up by `workbench up`, upgraded under load from Python, and seen through kills."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import polars
import pytest

import workbench
from backend.localkube.fleet_file import SAMPLE
from tests.fakes.stack import RunningStack, own_stack
from workbench.errors import OperationFailed, WorkbenchError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

FLEET = SAMPLE.parent / "fleet-storm.yaml"
MODELS = {"mistral-pairs": "mistral-7b", "llama-pool": "llama-8b", "qwen": "qwen3-8b"}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with own_stack(tmp_path_factory.mktemp("cluster"), "--no-traffic", "--no-dashboard", fleet=FLEET) as running:
        yield running
        running.stop()
        assert running.leftovers() == []


@pytest.fixture(scope="module")
def wb(up: RunningStack) -> Iterator[workbench.Workbench]:
    with workbench.connect(up.state) as connected:
        yield connected


class Load:
    """Requests to one model, two at a time, until it is told to stop."""

    def __init__(self, gateway: str, model: str) -> None:
        self.answers: Counter[str] = Counter()
        self.pods: set[str] = set()
        self._url, self._model = f"{gateway}/v1/completions", model
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(2)]

    def _ask(self, seed: int) -> None:
        chance = random.Random(seed)
        with httpx.Client(timeout=30.0) as client:
            while not self._stopped.is_set():
                prompt = [*range(chance.randrange(4) * 1000, 4256), chance.randrange(30_000)]
                body = {"model": self._model, "prompt": prompt, "max_tokens": chance.randint(1, 12), "stream": bool(chance.getrandbits(1))}
                try:
                    answer = client.post(self._url, json=body)
                except httpx.HTTPError as error:
                    self.answers[type(error).__name__] += 1
                    continue
                whole = answer.status_code == 200 and '"abort"' not in answer.text
                self.answers["whole" if whole else f"{answer.status_code} {answer.text[:200]}"] += 1
                self.pods.add(answer.headers.get("target-pod", ""))

    @contextmanager
    def running(self) -> Iterator[Load]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            for thread in self._threads:
                thread.join()


def test_each_service_stands_and_its_model_answers(up: RunningStack, wb: workbench.Workbench) -> None:
    print(f"ready after {up.ready_after_s:.1f} s")
    assert sorted(wb.services.df()["service"].to_list()) == ["default/llama-pool", "default/mistral-pairs", "default/qwen"]
    for model in MODELS.values():
        answer = httpx.post(
            f"{up.endpoints.gateway}/v1/completions", json={"model": model, "prompt": [1, 2, 3], "max_tokens": 2}, timeout=30
        )
        assert answer.status_code == 200, answer.text
        assert ("prefill-target-pod" in answer.headers) == (model != "qwen3-8b")


@pytest.mark.parametrize(
    ("service", "image"),
    [
        pytest.param("mistral-pairs", "vllm/vllm-openai:v0.31.0", id="pairs of vLLM, RoleSet by RoleSet"),
        pytest.param("llama-pool", "lmsysorg/sglang:v0.5.20", id="pools of SGLang, in place"),
        pytest.param("qwen", "vllm/vllm-openai:v0.31.0", id="a plain pool, in place"),
    ],
)
def test_an_upgrade_under_load_fails_no_request(up: RunningStack, wb: workbench.Workbench, service: str, image: str) -> None:
    with Load(up.endpoints.gateway, MODELS[service]).running() as load:
        plan = wb.service(service).plan_upgrade(image)
        began = time.monotonic()
        operation = plan.apply(confirm=service)
        operation.wait(progress=False, timeout=60)
        print(f"{service}: {plan.steps.height} rows of steps, {time.monotonic() - began:.1f} s")
        time.sleep(1.0)  # requests that the new pods alone answer
    assert operation.state == "done"
    assert set(load.answers) == {"whole"}, load.answers
    assert load.answers["whole"] > 5
    assert {pod.image for pod in up.pods() if pod.model == MODELS[service]} == {image}


def test_the_index_stays_exact_from_events_as_arrays_to_events_as_maps(up: RunningStack, wb: workbench.Workbench) -> None:
    """vLLM publishes maps from 0.24 on; blocks are compared hash by hash before the upgrade and after it."""
    compared: list[int] = []

    def differ() -> dict[str, tuple[int, int]]:
        """Per pod: blocks that only the index has, and blocks that only the engine has."""
        found = {}
        for row in wb.fleet.df().filter(polars.col("model") == "qwen3-8b").to_dicts():
            indexed = set(up.get("kvindex", f"/held?pod={row['pod']}").json()["block_hashes"])
            held = {digest[-16:] for digest in httpx.get(f"http://{row['address']}/debug/blocks", timeout=5).json()["block_hashes"]}
            found[row["pod"]] = (len(indexed - held), len(held - indexed))
            compared.append(len(held))
        return found

    def becomes_exact() -> None:
        until = time.monotonic() + 10
        while set((seen := differ()).values()) != {(0, 0)}:
            assert time.monotonic() < until, seen
            time.sleep(0.1)
        assert max(compared) > 0

    wb.service("qwen").plan_upgrade("vllm/vllm-openai:v0.23.0").apply(confirm="qwen").wait(progress=False, timeout=60)
    with Load(up.endpoints.gateway, "qwen3-8b").running():
        time.sleep(1.0)
    becomes_exact()
    with Load(up.endpoints.gateway, "qwen3-8b").running() as load:
        wb.service("qwen").plan_upgrade("vllm/vllm-openai:v0.32.0").apply(confirm="qwen").wait(progress=False, timeout=60)
        time.sleep(1.0)
    becomes_exact()
    assert set(load.answers) == {"whole"}, load.answers


def test_an_image_that_nobody_has_stops_the_rollout_says_why_and_is_taken_back(up: RunningStack, wb: workbench.Workbench) -> None:
    with Load(up.endpoints.gateway, "qwen3-8b").running() as load:
        operation = wb.service("qwen").plan_upgrade("example.com/unknown:v1").apply(confirm="qwen")
        with pytest.raises(OperationFailed, match=r"ImagePullBackOff|ErrImagePull"):
            operation.wait(progress=False, timeout=90)
        operation.abort(confirm="qwen").wait(progress=False, timeout=60)
    assert set(load.answers) == {"whole"}, load.answers


@pytest.mark.parametrize("part", ["control", "runtime", "pod"])
def test_an_upgrade_goes_on_after_a_part_was_killed_in_the_middle(up: RunningStack, wb: workbench.Workbench, part: str) -> None:
    image = {"control": "vllm/vllm-openai:v0.30.0", "runtime": "vllm/vllm-openai:v0.32.0", "pod": "vllm/vllm-openai:v0.30.0"}[part]
    others = {pod.name: pod.pid for pod in up.pods() if "llama" in pod.name}
    operation = wb.service("qwen").plan_upgrade(image).apply(confirm="qwen")
    victim = next(pod.pid for pod in up.pods() if pod.model == "qwen3-8b" and pod.pid) if part == "pod" else up.pid(part)
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    while True:
        try:
            if wb.operation(operation.id).state == "done":
                break
        except WorkbenchError:
            pass  # the part that would answer is coming back
        assert time.monotonic() - began < 45, wb.operation(operation.id)
        time.sleep(0.2)
    print(f"done {time.monotonic() - began:.1f} s after {part} was killed")
    assert {pod.name: pod.pid for pod in up.pods() if "llama" in pod.name} == others
