"""`python -m backend.localkube` by itself: its HTTP interface, its end, and what it says when it cannot start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from backend.api.fleet import Pod
from backend.core import life, processes
from backend.localkube.runtime import record
from tests.fakes import ports

CONFIG = """\
state = "{state}"
fleet = "{folder}/fleet.yaml"
token_file = "{folder}/token"
probe_s = 0.05
[listen]
port = {port}
[engines]
tiny = ["{{python}}", "-m", "tests.fakes.tiny_engine", "--host", "{{ip}}", "--port", "{{port}}"]
"""
FLEET = "pods:\n  - {name: tiny-{i}, replicas: 2, engine: tiny, model: m}\n".replace("tiny-{i}", "'tiny-{i}'")


class Service:
    def __init__(self, folder: Path, process: subprocess.Popen[str], port: int) -> None:
        self.folder, self.process, self.url = folder, process, f"http://127.0.0.1:{port}"
        self.state = folder / "state"

    def pods(self) -> list[Pod]:
        return record.read(self.state / "pods.json")

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, headers={"Authorization": "Bearer word"})

    def left(self) -> list[int]:
        return processes.of_stack(str(self.state))


def start(folder: Path, port: int) -> subprocess.Popen[str]:
    (folder / "runtime.toml").write_text(CONFIG.format(folder=folder, state=folder / "state", port=port))
    (folder / "token").write_text("word\n")
    words = [sys.executable, "-m", "backend.localkube", "--config", str(folder / "runtime.toml")]
    env = {name: value for name, value in os.environ.items() if name not in (life.LIFE_FD, processes.STACK)}
    return subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)


@contextmanager
def serving(folder: Path) -> Iterator[Service]:
    (folder / "fleet.yaml").write_text(FLEET)
    port = ports.free_base(folder)
    service = Service(folder, start(folder, port), port)
    try:
        until(lambda: sum(pod.ready for pod in service.pods()) == 2)
        yield service
    finally:
        service.process.kill()
        service.process.communicate()
        until(lambda: not service.left())


def until(condition: Callable[[], object], *, seconds: float = 15.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it never came to that"
        time.sleep(0.02)


def test_it_serves_what_it_knows_to_those_who_may(tmp_path):
    with serving(tmp_path) as service:
        answer = service.get("/pods").json()
        assert [pod["name"] for pod in answer["items"]] == ["tiny-0", "tiny-1"]
        assert (answer["problem"], answer["fleet_file"]) == ("", str(tmp_path / "fleet.yaml"))
        assert httpx.get(f"{service.url}/pods").status_code == 401
        assert service.get("/pods/tiny-0/log?tail=1").text == "tiny engine"
        assert service.get("/pods/..%2Ftoken/log").status_code == 404
        assert "runtime_pods_ready 2.0" in httpx.get(f"{service.url}/metrics").text


def test_asked_to_end_it_ends_its_pods(tmp_path):
    with serving(tmp_path) as service:
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(10) == 0
        assert service.left() == []
        assert service.pods() == []


def test_killed_while_it_runs_alone_nobody_is_left(tmp_path):
    with serving(tmp_path) as service:
        service.process.kill()
        service.process.wait()
        until(lambda: not service.left())


def test_a_new_runtime_adopts_the_pods_of_a_killed_one(tmp_path):
    """Below a launcher, whose pipe keeps the pods alive; here the test plays the launcher."""
    pipe = life.LifePipe()
    (tmp_path / "fleet.yaml").write_text(FLEET)
    port = ports.free_base(tmp_path)
    (tmp_path / "runtime.toml").write_text(CONFIG.format(folder=tmp_path, state=tmp_path / "state", port=port))
    (tmp_path / "token").write_text("word\n")
    words = [sys.executable, "-m", "backend.localkube", "--config", str(tmp_path / "runtime.toml")]

    def launch() -> subprocess.Popen[bytes]:
        return subprocess.Popen(words, env=pipe.env(), pass_fds=(pipe.read_fd,), stderr=subprocess.DEVNULL)

    file = tmp_path / "state" / "pods.json"
    first = launch()
    until(lambda: sum(pod.ready for pod in record.read(file)) == 2)
    before = {pod.name: pod.pid for pod in record.read(file)}
    first.kill()
    first.wait()
    second = launch()
    until(lambda: _answers(port))
    assert {pod.name: (pod.pid, pod.ready) for pod in record.read(file)} == {name: (pid, True) for name, pid in before.items()}
    pipe.close()
    assert second.wait(10) == 0
    until(lambda: not processes.of_stack(str(tmp_path / "state")))


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_a_broken_fleet_file_is_wrong_usage(tmp_path):
    (tmp_path / "fleet.yaml").write_text("pods:\n  - {name: a}\n")
    process = start(tmp_path, ports.free_base(tmp_path))
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 2
    assert "fleet.yaml:2 `pods[0].model`: is required" in said
    assert "Traceback" not in said


def test_a_taken_port_is_named(tmp_path):
    (tmp_path / "fleet.yaml").write_text(FLEET)
    port = ports.free_base(tmp_path)
    with socket.create_server(("127.0.0.1", port)):
        process = start(tmp_path, port)
        said = process.communicate(timeout=20)[1]
    assert (process.returncode, f"127.0.0.1:{port} is taken" in said, "Traceback" in said) == (1, True, False)
