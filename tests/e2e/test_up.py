"""`workbench up` as a user runs it: comes up, keeps what it started, stops without a trace, and says what is in its way.

Figures are printed, not judged by the clock of a busy machine, save the ten seconds of a stop, which are a promise.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import httpx
import pytest

from backend.core import processes
from backend.launch import look, stack
from backend.launch.background import detached
from backend.launch.options import UpOptions
from tests.fakes import ports
from tests.fakes.stack import RunningStack, own_stack, refused
from tests.fakes.valkey import Valkey

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def until(condition: Callable[[], object], *, seconds: float = 15.0, what: str = "it") -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with own_stack(tmp_path_factory.mktemp("up"), "--no-traffic", pods=2) as running:
        yield running


def test_everything_answers_where_endpoints_json_says(up: RunningStack) -> None:
    assert up.endpoints.version == metadata.version("fleet-workbench")
    print(f"ready after {up.ready_after_s:.1f} s")
    assert up.get("gateway", "/healthz").status_code == 200
    assert up.get("control", "/healthz").status_code == 200
    assert up.get("kvindex", "/healthz").status_code == 200
    assert up.get("runtime", "/healthz").status_code == 200
    assert up.get("dashboard", "/healthz").status_code == 200
    assert [pod["name"] for pod in up.get("runtime", "/pods").json()["items"]] == ["vllm-0", "vllm-1"]
    for part in ("gateway", "control", "kvindex", "runtime"):
        assert "process_resident_memory_bytes" in up.get(part, "/metrics").text, part


def test_a_request_is_served_recorded_and_can_be_explained(up: RunningStack) -> None:
    body = {"model": "qwen3-8b", "prompt": list(range(1000, 1400)), "max_tokens": 4}
    answers = [httpx.post(f"{up.endpoints.gateway}/v1/completions", json=body, timeout=30) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert {answer.headers["target-pod"] for answer in answers} <= {"vllm-0", "vllm-1"}
    wanted = {answer.headers["request-id"] for answer in answers}

    def recorded() -> bool:
        items = up.get("control", "/api/v1/decisions?limit=50").json()["items"]
        return wanted <= {item["id"] for item in items}

    until(recorded, what="the record of an answered request")


def test_status_shows_every_process_with_its_cost(up: RunningStack) -> None:
    status = up.status()
    names = {row.name for row in status.processes}
    assert names == {"up", "valkey", "runtime", "kvindex", "gateway", "control", "dashboard", "vllm-0", "vllm-1"}
    assert status.ready
    assert all(row.rss_bytes > 0 and row.pid > 0 for row in status.processes)
    print(status)


def test_secrets_are_for_the_owners_eyes_only(up: RunningStack) -> None:
    for path in [up.state / "token", up.state / "endpoints.json", *(up.state / "config").iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path
    assert up.get("runtime", "/pods").status_code == 200
    assert httpx.get(f"{up.endpoints.runtime}/pods").status_code == 401


def test_the_fleet_file_is_followed_while_the_stack_runs(up: RunningStack) -> None:
    fleet = up.state.parent / "fleet.yaml"
    text = fleet.read_text()
    before = {pod.name: pod.pid for pod in up.pods()}
    fleet.write_text(text.replace("replicas: 2", "replicas: 3"))
    until(lambda: sum(pod.ready for pod in up.pods()) == 3, what="a third pod")
    fleet.write_text(text.replace("replicas: 2", "replica: 3"))
    until(lambda: "no such field" in up.get("runtime", "/pods").json()["problem"], what="the complaint about the broken file")
    assert sum(pod.ready for pod in up.pods()) == 3, "a broken file leaves the fleet alone"
    fleet.write_text(text)
    until(lambda: len(up.pods()) == 2, what="the third pod's end")
    assert {pod.name: pod.pid for pod in up.pods()} == before
    assert up.get("runtime", "/pods").json()["problem"] == ""


def test_a_pods_log_can_be_read_and_a_pod_restarted(up: RunningStack) -> None:
    assert up.get("runtime", "/pods/vllm-0/log?tail=5").status_code == 200
    assert up.get("runtime", "/pods/vllm-0/log?tail=x").status_code == 400
    assert up.get("runtime", "/pods/nobody/log").status_code == 404
    before = up.pid("vllm-0")
    headers = {"Authorization": f"Bearer {up.token}"}
    assert httpx.post(f"{up.endpoints.runtime}/pods/vllm-0/restart", headers=headers).status_code == 202
    until(lambda: up.pods()[0].pid not in (0, before) and up.pods()[0].ready, what="a new process of the pod")


def test_a_second_stack_beside_it_is_fine_but_not_in_its_folder_or_on_its_ports(up: RunningStack, tmp_path: Path) -> None:
    code, said = refused(up.state, ports.free_base("second"))
    assert (code, f"process {up.process.pid}" in said, "--state" in said) == (1, True, True), said
    code, said = refused(tmp_path / "other", up.port_base)
    assert (code, "is taken" in said, "--port-base" in said) == (1, True, True), said
    with own_stack(tmp_path / "beside", "--no-traffic", "--no-dashboard", pods=1) as second:
        assert {pod.ip for pod in second.pods()}.isdisjoint({pod.ip for pod in up.pods()})
        assert second.get("gateway", "/healthz").status_code == 200
    assert second.leftovers() == []
    assert up.get("gateway", "/healthz").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stop_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with own_stack(tmp_path, pods=2) as running:
        time.sleep(1.0)  # some traffic is under way
        took = running.stop(number)
        print(f"stopped after {took:.1f} s")
        assert took <= 10
        assert running.process.returncode == 0, running.said()
        assert running.leftovers() == []
    assert (running.state / "logs" / "gateway.log").exists(), "logs stay"


def test_a_killed_stack_takes_everything_with_it_and_the_next_one_starts_clean(tmp_path: Path) -> None:
    with own_stack(tmp_path, "--no-traffic", "--no-dashboard", pods=1) as running:
        pids = processes.of_stack(str(running.state))
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
        until(lambda: not processes.of_stack(str(running.state)), seconds=10, what="the end of all children")
        print(f"{len(pids)} processes ended with their parent")
        assert look.find(running.state) is None
        stack.down(running.state)
        assert running.leftovers() in ([], [str(running.state / "lock")])
    with own_stack(tmp_path, "--no-traffic", "--no-dashboard", pods=1) as again:
        assert again.get("gateway", "/healthz").status_code == 200


def test_down_ends_it_from_elsewhere(tmp_path: Path) -> None:
    with own_stack(tmp_path, "--no-traffic", "--no-dashboard", pods=1) as running:
        assert stack.down(running.state) is True
        running.process.wait(5)
        assert running.leftovers() == []
        assert stack.down(running.state) is False


def test_a_stack_can_be_started_in_the_background_and_ends_with_its_starter(tmp_path: Path) -> None:
    base = ports.free_base(tmp_path)
    program = (
        "import sys, os, signal; from backend.launch import stack; from backend.launch.options import UpOptions;"
        f"e = stack.detached({str(tmp_path / 's')!r}, UpOptions(port_base={base}, traffic=False, dashboard=False));"
        "print(e.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    starter = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=90, check=False)
    pid = int(starter.stdout)
    until(lambda: not processes.alive(pid), what="the end of the background stack")
    assert processes.of_stack(str(tmp_path / "s")) == []


def test_a_background_stack_that_cannot_start_says_why(tmp_path: Path) -> None:
    from backend.core.errors import UsageError

    (tmp_path / "f.yaml").write_text("pods:\n  - name: x\n")
    with pytest.raises(UsageError, match=r"f\.yaml:2 `pods\[0\]\.model`: is required"):
        detached(tmp_path / "s", UpOptions(port_base=ports.free_base(tmp_path), fleet=tmp_path / "f.yaml"))


# What is in the way


def test_a_broken_fleet_file_is_refused_with_line_and_field(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text("pods:\n  - name: x\n    model: m\n    replicas: many\n")
    code, said = refused(tmp_path / "s", ports.free_base(tmp_path), "--fleet", str(tmp_path / "fleet.yaml"))
    assert code == 2
    assert "fleet.yaml:4 `pods[0].replicas`" in said, said
    assert "Traceback" not in said


def test_a_state_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").touch()
    code, said = refused(tmp_path / "s", ports.free_base(tmp_path))
    assert (code, "--state" in said, "Traceback" in said) == (1, True, False), said


@pytest.mark.parametrize("offset", range(5), ids=["runtime", "control", "gateway", "kvindex", "valkey"])
def test_a_taken_port_is_named(tmp_path: Path, offset: int) -> None:
    base = ports.free_base(tmp_path)
    with socket.create_server(("127.0.0.1", base + offset)):
        code, said = refused(tmp_path / "s", base)
    assert (code, f"127.0.0.1:{base + offset} is taken" in said, "Traceback" in said) == (1, True, False), said
    assert not (tmp_path / "s" / "lock").exists()


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own; needs the right to mount."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Use up the last byte; gives the file to remove again."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 65_536):
                pass
        except OSError:
            pass
    return ballast


def test_a_full_disk_is_named_at_start(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=1m") as small:
        fill(small)
        code, said = refused(small / "s", ports.free_base(tmp_path))
    assert (code, "No room left" in said, "Traceback" in said) == (1, True, False), said


def test_a_folder_that_cannot_be_written_is_named_at_start(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=1m,ro") as read_only:
        code, said = refused(read_only / "s", ports.free_base(tmp_path))
    assert (code, "not writable" in said, "--state" in said, "Traceback" in said) == (1, True, True, False), said


def test_a_disk_that_fills_up_stops_no_request_and_loses_no_record(tmp_path: Path) -> None:
    def ask(running: RunningStack) -> str:
        body = {"model": "qwen3-8b", "prompt": list(range(1000, 1200)), "max_tokens": 2}
        answer = httpx.post(f"{running.endpoints.gateway}/v1/completions", json=body, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.headers["request-id"]

    with disk(tmp_path / "disk", "size=48m") as small:
        with own_stack(small, "--no-traffic", "--no-dashboard", pods=1) as running:
            ballast = fill(small)
            during = [ask(running) for _ in range(5)]
            os.kill(running.pid("vllm-0"), signal.SIGKILL)
            time.sleep(2.0)
            ballast.unlink()
            until(lambda: running.pods()[0].restarts == 1 and running.pods()[0].ready, what="a current pods.json")
            during.append(ask(running))
            for request in during:
                path = f"/api/v1/decisions/{request}"
                until(lambda path=path: running.get("control", path).status_code == 200, seconds=20, what=f"the record of {request}")  # type: ignore[misc]
        assert running.leftovers() == []


def test_a_redis_that_is_away_at_start_costs_nothing_but_a_warning_and_catches_up_later(tmp_path: Path) -> None:
    redis = Valkey(tmp_path)
    with own_stack(tmp_path, "--no-traffic", "--no-dashboard", pods=1, env={"REDIS_URL": redis.url}) as running:
        assert "REDIS_URL does not answer" in running.said()
        assert "valkey" not in {row.name for row in running.status().processes}
        body = {"model": "qwen3-8b", "prompt": list(range(1000, 1200)), "max_tokens": 2}
        answer = httpx.post(f"{running.endpoints.gateway}/v1/completions", json=body, timeout=30)
        assert answer.status_code == 200
        redis.start()
        try:
            path = f"/api/v1/decisions/{answer.headers['request-id']}"
            until(lambda: running.get("control", path).status_code == 200, seconds=20, what="the record's arrival")
        finally:
            redis.kill()
    assert running.leftovers() == []


def test_a_part_that_keeps_dying_is_shown_with_the_end_of_its_log(tmp_path: Path) -> None:
    with own_stack(tmp_path, "--no-traffic", "--no-dashboard", pods=1) as running:
        (running.state / "config" / "kvindex.toml").write_text("nonsense = 1\n")
        os.kill(running.pid("kvindex"), signal.SIGKILL)
        until(lambda: "no such field" in running.said(), what="the log's end in the message")
        assert running.get("gateway", "/healthz").status_code == 200, "the others go on"
