"""The runtime with real processes: starts, notices, restarts, adopts, ends. Decisions as such: test_steps."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from backend.api.fleet import Pod
from backend.core import life, processes
from backend.core.errors import NotFound
from backend.core.supervise import Supervisor
from backend.localkube.runtime import addresses, podlogs, record
from backend.localkube.runtime.model import Limits, PodSpec
from backend.localkube.runtime.pods import PodRuntime, RuntimeOptions
from tests.fakes import ports

TINY = ("{python}", "-m", "tests.fakes.tiny_engine", "--host", "{ip}", "--port", "{port}")
LIMITS = Limits(grace_s=0.5, leave_s=0.2, first_backoff_s=0.05, longest_backoff_s=0.4, healthy_s=30)


def spec(name: str = "tiny-0", **args: str) -> PodSpec:
    return PodSpec(name=name, engine="tiny", model="m", args={key.replace("_", "-"): value for key, value in args.items()})


@asynccontextmanager
async def running(state: Path, *, adopt: tuple[PodSpec, ...] = (), **more: object) -> AsyncIterator[PodRuntime]:
    base = ports.free_base(state)
    options = RuntimeOptions(
        state=state,
        space=addresses.Space(addresses.subnet_of(base), base),
        engines={"tiny": TINY},
        limits=LIMITS,
        probe_s=0.05,
        stack=str(state),
    )
    async with Supervisor("test") as tasks:
        runtime = PodRuntime(replace(options, **more), tasks)
        if adopt:
            runtime.adopt(adopt)
        try:
            yield runtime
        finally:
            await runtime.close(patience_s=1.0)
            assert processes.of_stack(str(state)) == []


async def until(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it never came to that"
        await asyncio.sleep(0.01)


def in_file(state: Path) -> dict[str, Pod]:
    return {pod.name: pod for pod in record.read(state / "pods.json")}


def all_ready(runtime: PodRuntime, count: int) -> Callable[[], bool]:
    return lambda: sum(pod.ready for pod in runtime.pods()) == count


async def test_pods_become_ready_and_everybody_can_read_of_it(tmp_path):
    async with running(tmp_path) as runtime:
        runtime.want([spec("tiny-0"), spec("tiny-1")])
        await until(all_ready(runtime, 2))
        await asyncio.sleep(0)
        pods = in_file(tmp_path)
        assert {name: (pod.state, pod.ready, pod.model) for name, pod in pods.items()} == {
            "tiny-0": ("ready", True, "m"),
            "tiny-1": ("ready", True, "m"),
        }
        assert pods["tiny-0"].ip != pods["tiny-1"].ip
        assert pods["tiny-0"].started_at == processes.started_at(pods["tiny-0"].pid) > 0
    assert in_file(tmp_path) == {}


async def test_a_killed_pod_is_in_the_file_at_once_and_back_soon(tmp_path):
    async with running(tmp_path) as runtime:
        runtime.want([spec()])
        await until(all_ready(runtime, 1))
        before = runtime.pods()[0]
        os.kill(before.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        await until(lambda: not in_file(tmp_path)["tiny-0"].ready)
        assert time.monotonic() - killed_at < 0.3
        assert "SIGKILL" in in_file(tmp_path)["tiny-0"].reason
        await until(all_ready(runtime, 1))
        after = runtime.pods()[0]
        assert (after.restarts, after.ip) == (before.restarts + 1, before.ip)
        assert after.pid != before.pid


async def test_a_crash_loop_backs_off_and_says_why(tmp_path):
    async with running(tmp_path) as runtime:
        runtime.want([spec(crash_after="0")])
        await until(lambda: runtime.pods()[0].restarts >= 2)
        await until(lambda: runtime.pods()[0].state == "backoff")
        assert "exit code 3" in runtime.pods()[0].reason
        assert "out of memory" in runtime.pods()[0].reason


async def test_a_program_that_does_not_exist_is_a_reason_not_a_crash(tmp_path):
    async with running(tmp_path, engines={"tiny": ("/no/such/program",)}) as runtime:
        runtime.want([spec()])
        await until(lambda: "could not be started" in runtime.pods()[0].reason)


async def test_changed_arguments_give_a_new_process_and_others_keep_theirs(tmp_path):
    async with running(tmp_path) as runtime:
        runtime.want([spec("tiny-0"), spec("tiny-1")])
        await until(all_ready(runtime, 2))
        before = {pod.name: pod for pod in runtime.pods()}
        runtime.want([spec("tiny-0", say="hello"), spec("tiny-1")])
        assert [(pod.state, pod.ready) for pod in runtime.pods()] == [("stopping", False), ("ready", True)]
        assert processes.alive(before["tiny-0"].pid), "routers are told before the pod is"
        await until(lambda: runtime.pods()[0].pid not in (0, before["tiny-0"].pid))
        await until(all_ready(runtime, 2))
        assert runtime.pods()[1].pid == before["tiny-1"].pid
        assert "hello" in podlogs.tail(podlogs.path(tmp_path, "tiny-0"), 5)


async def test_a_pod_that_leaves_the_fleet_is_ended_and_its_address_is_used_again(tmp_path):
    async with running(tmp_path) as runtime:
        runtime.want([spec("tiny-0"), spec("tiny-1")])
        await until(all_ready(runtime, 2))
        gone = runtime.pods()[0]
        runtime.want([spec("tiny-1")])
        await until(lambda: [pod.name for pod in runtime.pods()] == ["tiny-1"])
        assert not processes.alive(gone.pid)
        runtime.want([spec("tiny-1"), spec("tiny-2")])
        assert {pod.name: pod.ip for pod in runtime.pods()}["tiny-2"] == gone.ip
        await until(all_ready(runtime, 2))


async def test_a_pod_that_ignores_sigterm_is_killed_after_its_grace(tmp_path):
    async with running(tmp_path) as runtime:
        runtime.want([spec(ignore_term="true")])
        await until(all_ready(runtime, 1))
        pid = runtime.pods()[0].pid
        runtime.want([])
        await until(lambda: not processes.alive(pid), seconds=LIMITS.leave_s + LIMITS.grace_s + 1.5)


async def test_a_hung_pod_leaves_routing_and_comes_back_or_is_replaced(tmp_path):
    hang = tmp_path / "hang"
    limits = replace(LIMITS, unready_after=1, restart_after=3)
    async with running(tmp_path, limits=limits) as runtime:
        runtime.want([spec(hang_file=str(hang))])
        await until(all_ready(runtime, 1))
        pid = runtime.pods()[0].pid
        hang.touch()
        await until(lambda: runtime.pods()[0].state == "unready")
        assert "not answered within" in runtime.pods()[0].reason
        await until(lambda: runtime.pods()[0].pid not in (0, pid))
        hang.unlink()
        await until(all_ready(runtime, 1))


async def test_a_restart_can_be_asked_for_and_of_known_pods_only(tmp_path):
    async with running(tmp_path) as runtime:
        runtime.want([spec()])
        await until(all_ready(runtime, 1))
        pid = runtime.pods()[0].pid
        runtime.restart("tiny-0")
        await until(lambda: runtime.pods()[0].pid not in (0, pid))
        with pytest.raises(NotFound):
            runtime.restart("nobody")
        await until(all_ready(runtime, 1))


async def _abandon(runtime: PodRuntime) -> None:
    """What `kill -9` leaves: processes and the file, nobody who watches."""
    for timer in runtime._timers.values():
        timer.cancel()
    for stop in runtime.host.watches.values():
        stop()
    runtime._pods.clear()
    if runtime._write_handle is not None:
        runtime._write_handle.cancel()
    for child in runtime.host.children.values():
        child.returncode = 0  # or Popen warns that we left it alone, which is the point


async def test_pods_of_a_killed_runtime_are_adopted_without_a_moment_of_not_ready(tmp_path):
    specs = (spec("tiny-0"), spec("tiny-1"), spec("tiny-2"))
    async with Supervisor("first") as tasks:
        async with running(tmp_path) as helper:
            options = helper.options
        first = PodRuntime(options, tasks)
        first.want(specs)
        await until(lambda: [pod.ready for pod in in_file(tmp_path).values()] == [True] * 3)
        before = {pod.name: pod.pid for pod in first.pods()}
        await _abandon(first)
    changed = (spec("tiny-0"), spec("tiny-1", say="new"))
    async with running(tmp_path, adopt=changed, space=options.space) as second:
        assert all(pod.ready for pod in second.pods())
        assert {pod.name: pod.pid for pod in second.pods()} == before
        second.want(changed)
        await until(lambda: {pod.name for pod in second.pods()} == {"tiny-0", "tiny-1"})
        await until(lambda: second.pods()[1].pid not in (0, before["tiny-1"]))
        await until(all_ready(second, 2))
        assert second.pods()[0].pid == before["tiny-0"]
        os.kill(before["tiny-0"], signal.SIGKILL)  # adopted ones are watched like our own
        await until(lambda: not second.pods()[0].ready)
        await until(all_ready(second, 2))


async def test_the_processes_of_an_adopted_pod_stay_together(tmp_path, caplog):
    many = spec(worker="yes")
    async with Supervisor("first") as tasks:
        async with running(tmp_path) as helper:
            options = helper.options
        first = PodRuntime(options, tasks)
        first.want([many])
        await until(lambda: [pod.ready for pod in in_file(tmp_path).values()] == [True])
        leader = first.pods()[0].pid
        await until(lambda: processes.children(leader))
        (worker,) = processes.children(leader)
        await _abandon(first)
    async with running(tmp_path, adopt=(many,), space=options.space) as second:
        assert second.pods()[0].pid == leader
        assert "no record names" not in caplog.text
        assert processes.alive(worker)
        second.want([])
        await until(lambda: not processes.alive(worker))


async def test_a_process_that_only_has_the_number_of_a_pod_is_not_adopted(tmp_path):
    async with running(tmp_path) as helper:
        space = helper.options.space
    stranger = Pod(name="tiny-0", ip=space.at(0).ip, state="ready", ready=True, pid=os.getpid(), started_at=12345.0)
    record.write(tmp_path / "pods.json", [stranger])
    async with running(tmp_path, adopt=(spec(),), space=space) as runtime:
        assert runtime.pods() == []


async def test_a_pod_that_no_record_names_is_ended_by_the_next_runtime(tmp_path):
    async with running(tmp_path) as helper:
        options = helper.options
    async with Supervisor("first") as tasks:
        first = PodRuntime(options, tasks)
        first.want([spec()])
        await until(all_ready(first, 1))
        pid = first.pods()[0].pid
        await _abandon(first)
    (tmp_path / "pods.json").unlink()
    async with running(tmp_path, adopt=(spec(),), space=options.space):
        await until(lambda: not processes.alive(pid))


async def test_pods_end_when_the_stack_that_owns_them_is_gone(tmp_path, monkeypatch):
    pipe = life.LifePipe()
    monkeypatch.setenv(life.LIFE_FD, str(pipe.read_fd))
    async with running(tmp_path) as runtime:
        runtime.want([spec()])
        await until(all_ready(runtime, 1))
        pid = runtime.pods()[0].pid
        os.close(pipe._write_fd)
        await until(lambda: runtime.pods()[0].pid != pid)
        runtime.want([])
    pipe.close()


async def test_a_full_disk_is_counted_and_the_file_is_written_when_there_is_room(tmp_path, monkeypatch):
    from backend.core.errors import DiskFull

    def full(*_: object) -> None:
        raise DiskFull("No room left.")

    async with running(tmp_path) as runtime:
        with monkeypatch.context() as disk:
            disk.setattr(record, "write", full)
            runtime.want([spec()])
            await until(all_ready(runtime, 1))
            await until(lambda: runtime.write_failures > 0)
        assert in_file(tmp_path) == {}
        await until(lambda: in_file(tmp_path).get("tiny-0") is not None and in_file(tmp_path)["tiny-0"].ready)


def test_a_log_is_cut_at_its_size_and_its_writer_goes_on(tmp_path):
    file = podlogs.path(tmp_path, "tiny-0")
    file.parent.mkdir()
    with open(file, "ab", buffering=0) as log:
        log.write(b"x" * 1000 + b"\nlast line\n")
        assert podlogs.cut(file, 5000) is False
        assert podlogs.cut(file, 500) is True
        log.write(b"after\n")
    assert file.read_text() == "after\n"
    assert podlogs.tail(file.with_name("tiny-0.log.1"), 1) == "last line"


@pytest.mark.parametrize(("lines", "expected"), [(0, ""), (1, "c"), (2, "b\nc"), (99, "a\nb\nc")])
def test_a_logs_tail(tmp_path, lines, expected):
    (tmp_path / "a.log").write_text("a\nb\nc\n")
    assert podlogs.tail(tmp_path / "a.log", lines) == expected
