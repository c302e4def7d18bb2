"""Control as a process: how it starts, what it says when it cannot, how it ends. Not here: what it answers (test_control_api)."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.control import ControlProcess


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlProcess]:
    process = ControlProcess(tmp_path / "state")
    yield process
    process.kill()


def refused(config: Path) -> tuple[int, str]:
    """Exit code and what it says on standard error."""
    done = subprocess.run([sys.executable, "-m", "backend.control", "--config", str(config)], capture_output=True, text=True, timeout=30)
    said = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("20"))
    return done.returncode, said


def test_it_makes_a_token_for_its_owner_and_keeps_it(control):
    control.start()
    token = control.state / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text().strip()) >= 32
    first = token.read_text()
    assert control.get("/api/v1/fleet").status_code == 200
    assert control.stop() == 0
    control.start()
    assert token.read_text() == first
    assert sorted(path.name for path in control.state.iterdir()) == ["token"]


def test_it_ends_within_two_seconds_with_a_viewer_attached(control):
    control.start()
    token = (control.state / "token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.stream("GET", f"{control.url}/api/v1/stream", headers=headers, trust_env=False, timeout=10) as viewer:
        next(viewer.iter_bytes())
        began = time.monotonic()
        assert control.stop() == 0
        assert time.monotonic() - began < 2.0
    assert "Traceback" not in control.log.read_text()


def test_it_starts_without_any_other_part_and_says_what_is_missing(tmp_path):
    control = ControlProcess(tmp_path / "state", redis_url="redis://127.0.0.1:1/0", more=f'[fleet]\nfile = "{tmp_path / "pods.json"}"\n')
    try:
        control.start()
        deadline = time.monotonic() + 12
        wanted = {"fleet-file", "redis-away", "kvindex-away", "gateway-away"}
        while not wanted <= (seen := {one["id"] for one in control.get("/api/v1/findings").json()["items"]}):
            assert time.monotonic() < deadline, seen
            time.sleep(0.2)
        for finding in control.get("/api/v1/findings").json()["items"]:
            assert finding["cause"]
            assert finding["fix"]
            assert finding["since"] > 0
    finally:
        control.kill()


def test_a_taken_port_is_named(control):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", control.port))
        taken.listen()
        code, said = refused(control.config)
    assert code == 1
    assert f"127.0.0.1:{control.port} is taken" in said
    assert "Traceback" not in said


WRONG = [
    # id, lines added to the configuration, words of the message
    ("unknown_field", "[history]\nwrite_seconds = 3\n", "`history.write_seconds`"),
    ("not_a_number", '[history]\nwrite_rows = "many"\n', "`history.write_rows`"),
    ("pod_without_port", '[[pods]]\nname = "a"\naddress = "localhost"\nmodel = "m"\n', "pods[0].address"),
    ("not_toml", "[[[", "is not TOML"),
]


@pytest.mark.parametrize(("more", "words"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_wrong_configuration_is_named_with_its_field(tmp_path, more, words):
    code, said = refused(ControlProcess(tmp_path / "state", more=more).config)
    assert code == 2
    assert words in said
    assert len(said.splitlines()) <= 3


def test_a_stream_server_that_is_no_url_is_refused(tmp_path):
    code, said = refused(ControlProcess(tmp_path / "state", redis_url="localhost").config)
    assert code == 2
    assert "records.redis_url" in said


def test_an_empty_token_file_opens_nothing(control):
    control.state.mkdir()
    (control.state / "token").touch()
    code, said = refused(control.config)
    assert code == 2
    assert "token" in said


def test_a_state_folder_that_is_a_file_is_refused(control):
    control.state.write_text("")
    code, said = refused(control.config)
    assert code == 1
    assert str(control.state) in said
    assert "--state" in said


def test_it_stays_small_without_history(control):
    control.start()
    time.sleep(1.0)
    control.get("/api/v1/decisions")
    # Polars alone is 45 MB: it must not be loaded before there is something to write or to read.
    assert control.resident_bytes() < 90 * 2**20
