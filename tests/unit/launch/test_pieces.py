"""The launcher's pieces by themselves: layout, configuration files, lock, ports, what a part's death means. Whole stacks: tests/e2e."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from backend.core import config, processes
from backend.core.errors import ConfigError, EnvironmentProblem, PortInUse, StateFolderError, Unavailable, UsageError
from backend.core.settings import ControlSettings, DashboardSettings, GatewaySettings, KvIndexSettings, RuntimeSettings
from backend.launch import __main__ as command
from backend.launch import cache, ending, lock, look, parts, preflight, readiness, stack, toml, traffic
from backend.launch.child import Child, base_environment
from backend.launch.layout import Layout
from backend.launch.options import UpOptions
from backend.launch.parts import Part, Secrets
from backend.localkube import fleet_file
from backend.simulate import traces
from tests.fakes import ports

KINDS = {
    "runtime": RuntimeSettings,
    "kvindex": KvIndexSettings,
    "gateway": GatewaySettings,
    "control": ControlSettings,
    "dashboard": DashboardSettings,
}


def parts_of(state: Path, **options: object) -> dict[str, Part]:
    found = parts.all_parts(
        UpOptions(state=state, port_base=18800, **{"redis_url": "", **options}),  # type: ignore[arg-type]
        Layout(state, 18800),
        Secrets("word"),
        shared=state / "shared",
        subnet="127.73.112",
        pod_port=8000,
        valkey_server=Path("/bin/true"),
        fleet_file=None,
    )
    return {part.name: part for part in found}


def test_every_part_reads_back_the_configuration_that_it_is_given(tmp_path):
    found = parts_of(tmp_path, workers=3)
    for name, kind in KINDS.items():
        file = tmp_path / f"{name}.toml"
        file.write_text(found[name].config)
        settings = config.load(kind, file)
        assert settings.listen.port == found[name].port
    gateway = config.load(GatewaySettings, tmp_path / "gateway.toml")
    assert (gateway.listen.workers, gateway.fleet.file, gateway.shared) == (3, tmp_path / "pods.json", tmp_path / "shared")
    assert gateway.records.redis_url == "redis://:word@127.0.0.1:18804/0"
    runtime = config.load(RuntimeSettings, tmp_path / "runtime.toml")
    assert runtime.engines["vllm"][1:3] == ("-m", "backend.simulate.engine")


@pytest.mark.parametrize(
    ("options", "absent"),
    [({"dashboard": False}, "dashboard"), ({"traffic": False}, "traffic"), ({"redis_url": "redis://elsewhere:6379/1"}, "valkey")],
    ids=["no_dashboard", "no_traffic", "own_redis"],
)
def test_what_is_switched_off_is_not_started(tmp_path, options, absent):
    assert absent in parts_of(tmp_path)
    assert absent not in parts_of(tmp_path, **options)


def test_one_asks_first_who_needs_the_others():
    """Senders of requests end before routers' peers, and the store of the last records ends last."""
    stages = {name: part.stop_stage for name, part in parts_of(Path("/x")).items()}
    assert max(stages["traffic"], stages["gateway"]) < min(stages["runtime"], stages["control"]) <= stages["control"] < stages["valkey"]


def test_settings_survive_the_way_through_a_file(tmp_path):
    settings = RuntimeSettings(state=Path('/with "quotes" and ü'), probe_s=0.5, engines={"odd name": ("a", "{b}", "c\\d")})
    file = tmp_path / "r.toml"
    file.write_text(toml.dump(settings, heading="two\nlines"))
    assert config.load(RuntimeSettings, file) == settings
    assert "first_backoff_s" not in file.read_text(), "defaults stay out"


def test_a_second_stack_in_the_same_folder_is_told_who_has_it(tmp_path):
    first, second = lock.StateLock(tmp_path / "lock"), lock.StateLock(tmp_path / "lock")
    first.take(port_base=18800)
    with pytest.raises(StateFolderError, match=rf"process {os.getpid()}, port base 18800[\s\S]*--state"):
        second.take(port_base=18900)
    assert lock.holder(tmp_path / "lock") == os.getpid()
    first.release()
    assert lock.holder(tmp_path / "lock") == 0
    assert not (tmp_path / "lock").exists()
    second.take(port_base=18900)
    second.release()


def test_the_lock_of_a_killed_stack_is_free(tmp_path):
    words = f"""
from pathlib import Path
import time
from backend.launch.lock import StateLock
lock = StateLock(Path({str(tmp_path)!r}) / "lock")
lock.take(port_base=1)
print("taken", flush=True)
time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    assert lock.holder(tmp_path / "lock") == holder.pid
    holder.kill()
    holder.communicate()
    assert lock.holder(tmp_path / "lock") == 0
    again = lock.StateLock(tmp_path / "lock")
    again.take(port_base=2)
    again.release()


def test_a_taken_port_is_named_with_the_part_that_needs_it():
    base = ports.free_base("taken")
    with socket.create_server(("127.0.0.1", base + 3)):
        with pytest.raises(PortInUse, match=rf"127.0.0.1:{base + 3} is taken, the kvindex cannot[\s\S]*--port-base"):
            preflight.check_ports(UpOptions(redis_url=""), Layout(Path("/x"), base))


def test_ports_of_what_is_switched_off_may_be_taken():
    base = ports.free_base("off")
    with socket.create_server(("127.0.0.1", base + 4)), socket.create_server(("127.0.0.1", base + 6)):
        preflight.check_ports(UpOptions(redis_url="redis://elsewhere", dashboard=False), Layout(Path("/x"), base))


def test_pods_step_aside_for_a_program_that_listens_everywhere(monkeypatch):
    with socket.create_server(("0.0.0.0", 0)) as everywhere:
        taken = everywhere.getsockname()[1]
        monkeypatch.setattr(preflight, "_POD_PORTS", (taken, 8100))
        assert preflight.pod_space(18800) == ("127.73.112", 8100)


@pytest.mark.parametrize("base", [0, 80, 65_500])
def test_a_port_base_without_room_is_refused(base):
    with pytest.raises(UsageError, match="port base"):
        Layout(Path("/x"), base)


def test_a_state_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StateFolderError, match="--state"):
        preflight.state_folder(UpOptions(state=tmp_path / "file"))


def test_an_engine_nobody_knows_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "f.yaml").write_text("pods: [{name: a, model: m, engine: tgi}]")
    with pytest.raises(ConfigError, match=r"f.yaml.*engine of a.*'tgi'[\s\S]*Known engines: sglang, vllm"):
        preflight.fleet(UpOptions(fleet=tmp_path / "f.yaml"), Layout(tmp_path, 18800))


def test_a_fleet_of_kubernetes_objects_is_told_from_a_list_of_pods(tmp_path):
    found = preflight.fleet(UpOptions(fleet=fleet_file.SAMPLE.parent / "fleet-storm.yaml"), Layout(tmp_path, 18800))
    assert [document["metadata"]["name"] for document in found.objects] == ["mistral-pairs", "llama-pool", "qwen"]
    assert found.pods == 8
    assert fleet_file.read(found.file) == []
    (tmp_path / "f.yaml").write_text("kind: StormService\nmetadata: {name: a}")
    with pytest.raises(ConfigError, match=r"f.yaml `document 1: apiVersion`: is required"):
        preflight.fleet(UpOptions(fleet=tmp_path / "f.yaml"), Layout(tmp_path, 18800))


def test_the_token_is_made_once_and_for_our_eyes_only(tmp_path):
    first = preflight.token(tmp_path / "token")
    assert preflight.token(tmp_path / "token") == first
    assert len(first) > 30
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_nobody_is_found_where_nothing_runs(tmp_path):
    assert look.find(tmp_path) is None
    assert look.status(tmp_path) is None
    assert ending.down(tmp_path) is False
    (tmp_path / "endpoints.json").write_text(f'{{"state": "x", "pid": {os.getpid()}}}')
    assert look.find(tmp_path) is None, "a process without the lock is no stack"


@pytest.mark.parametrize("line", ["--workers 0", "--workers 99", "--port-base x", "--unknown"])
def test_wrong_words_are_wrong_usage(line, capsys):
    try:
        code = command.main(line.split())
    except SystemExit as end:  # argparse's own way
        code = int(end.code or 0)
    assert code == 2
    assert capsys.readouterr().err


def test_options_survive_the_way_to_a_background_process(tmp_path):
    chosen = UpOptions(state=tmp_path, port_base=20000, fleet=Path("f.yaml"), workers=3, dashboard=False, traffic=False, exit_after_s=2.0)
    assert command.options(command.arguments(chosen, tmp_path)) == chosen


@pytest.mark.parametrize("given", ["/given/cache", ""], ids=["given", "not_given"])
def test_the_kernel_cache_is_the_given_one_or_has_a_place(tmp_path, monkeypatch, given):
    monkeypatch.setenv("NUMBA_CACHE_DIR", given)
    monkeypatch.setattr(cache, "environment_folder", lambda: tmp_path / "none")
    assert cache.folder(tmp_path) == (Path(given) if given else tmp_path / "numba-cache")


def test_thread_pools_are_small_unless_somebody_wants_them_large(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.delenv("POLARS_MAX_THREADS", raising=False)
    found = base_environment("s", tmp_path)
    assert (found["OMP_NUM_THREADS"], found["POLARS_MAX_THREADS"], found[processes.STACK]) == ("8", "2", "s")


def test_the_valkey_server_of_the_wheel_is_found():
    assert preflight.valkey_server().name == "valkey-server"


def test_without_any_server_the_way_out_is_told(monkeypatch):
    monkeypatch.setattr(preflight.platform, "machine", lambda: "riscv64")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentProblem, match="REDIS_URL"):
        preflight.valkey_server()


def test_the_demos_traffic_never_ends_and_time_never_runs_back(tmp_path):
    trace = tmp_path / "t.jsonl"
    trace.write_text("".join(f'{{"timestamp": {at}, "input_length": 10, "output_length": 2, "hash_ids": [{at}]}}\n' for at in (0, 5, 900)))
    source = traffic.endless(trace)
    times = [next(source).timestamp for _ in range(9)]
    assert times == sorted(times)
    assert traffic.endless(traces.find(traffic.SAMPLE)).__next__().input_length > 0


# A part as a process


def child(tmp_path: Path, program: str, deaths: list[str], *, name: str = "part") -> Child:
    env = {**os.environ, processes.STACK: str(tmp_path)}
    part = Part(name, (sys.executable, "-c", program))
    return Child(part, env=env, pass_fds=(), log_file=tmp_path / "log", on_death=lambda _, why: deaths.append(why))


async def until(condition, *, seconds: float = 10.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


async def test_a_death_is_told_with_its_reason_and_its_log(tmp_path):
    deaths: list[str] = []
    part = child(tmp_path, "import sys; print('no such column'); sys.exit(7)", deaths)
    part.start()
    await until(lambda: deaths)
    assert deaths == ["ended with exit code 7"]
    assert part.last_words() == "no such column"
    assert part.start_again() == pytest.approx(0.1)
    await until(lambda: len(deaths) == 2)
    assert part.start_again() == pytest.approx(0.2), "the wait doubles"
    await part.stop(1.0)
    assert (part.state, part.restarts, part.pid) == ("stopped", 2, 0)


async def test_a_part_that_ignores_sigterm_is_killed_with_its_group(tmp_path):
    program = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); print('deaf', flush=True); time.sleep(60)"
    )
    part = child(tmp_path, program, [])
    part.start()
    await until(lambda: "deaf" in part.last_words())
    await part.stop(0.2)
    await until(lambda: not processes.of_stack(str(tmp_path)))


async def test_a_foreign_program_ends_with_us(tmp_path):
    """Through a process in between, which is killed: the kernel tells the grandchild."""
    program = (
        "from backend.core import processes; from pathlib import Path; import os, time;"
        f"p = processes.spawn(['sleep', '60'], env=dict(os.environ), log=Path({str(tmp_path / 'log')!r}), die_with_parent=True);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    between = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)  # noqa: ASYNC220
    assert between.stdout is not None
    grandchild = int(between.stdout.readline())
    assert processes.alive(grandchild)
    between.send_signal(signal.SIGKILL)
    between.communicate()
    await until(lambda: not processes.alive(grandchild))


# Readiness


async def serve(answer: bytes, port: int) -> asyncio.Server:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", port)


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.1 302 Found\r\n\r\n", True),
        (b"HTTP/1.1 503 Busy\r\n\r\n", False),
        (b"SSH-2.0\r\n", False),
        (b"", False),
    ],
    ids=["ok", "redirect", "busy", "something_else", "nothing"],
)
async def test_a_part_is_ready_when_it_says_so_in_http(answer, ready):
    server = await serve(answer, 0)
    port = server.sockets[0].getsockname()[1]
    assert await readiness.is_ready(Part("p", (), port=port)) is ready
    server.close()
    await server.wait_closed()
    assert await readiness.is_ready(replace(Part("p", ()), port=port)) is False


async def test_a_redis_that_wants_another_password_is_not_ready():
    server = await serve(b"-WRONGPASS invalid\r\n-NOAUTH Authentication required.\r\n", 0)
    port = server.sockets[0].getsockname()[1]
    assert await readiness.answers_ping("127.0.0.1", port, "word") is False
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(("code", "kind"), [(2, UsageError), (1, Unavailable)])
def test_a_failed_start_says_first_what_failed_and_what_to_do(tmp_path, code, kind):
    log = tmp_path / "control.log"
    log.write_text("".join(f"line {number}\n" for number in range(30)))
    child = Child(parts.Part("control", ("true",)), env={}, pass_fds=(), log_file=log, on_death=lambda *_: None)
    child.exit_code = code
    error = stack.Stack(UpOptions(state=tmp_path))._not_ready(child, "ended with exit code 2")
    first, *rest = str(error).splitlines()
    assert isinstance(error, kind)
    assert first.startswith("control ended with exit code 2. Mend what its log ")
    assert str(log) in first
    assert rest[-1] == "line 29"
