"""The `workbench` command: exit codes, errors of one to three lines, JSON. Not here: `up` itself (tests/e2e)."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

from backend import launch
from backend.api.endpoints import Endpoints
from backend.launch import stack as launch_stack
from backend.launch.model import StackStatus
from backend.launch.options import Progress
from tests.fakes.completions import completions
from workbench import __main__ as command
from workbench import _dashboard
from workbench.commands import stack as stack_command

USAGE = [
    ("nothing", []),
    ("unknown_command", ["fly"]),
    ("unknown_option", ["status", "--colour"]),
    ("port_out_of_range", ["up", "--port-base", "99"]),
    ("no_workers", ["up", "--workers", "0"]),
    ("speed_of_nothing", ["replay", "t", "--speed", "0"]),
    ("probe_without_a_prompt", ["probe"]),
    ("probe_with_two_prompts", ["probe", "text", "--tokens", "1"]),
]


@pytest.mark.parametrize("argv", [case[1] for case in USAGE], ids=[case[0] for case in USAGE])
def test_wrong_usage_ends_with_two(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(argv)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


FAILED = [
    ("no_stack_status", ["status"], "No stack runs in"),
    ("no_stack_replay", ["replay", "conversation-sample"], "No stack runs in"),
    ("no_stack_explain", ["explain"], "No stack runs in"),
    ("no_stack_probe", ["probe", "x"], "No stack runs in"),
    ("no_such_trace", ["replay", "nothing-here", "--url", "http://127.0.0.1:9"], "conversation-sample"),
    ("nobody_at_url", ["explain", "--url", "http://127.0.0.1:9"], "Nobody answers"),
    ("nobody_at_gateway", ["replay", "conversation-sample", "--quiet", "--url", "http://127.0.0.1:9"], "Nobody answers"),
]


@pytest.mark.parametrize(("argv", "message"), [case[1:] for case in FAILED], ids=[case[0] for case in FAILED])
def test_a_failure_ends_with_one_and_says_why_in_few_lines(argv, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_STATE", str(tmp_path / "none"))
    assert command.main(argv) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert message in told.err
    assert len(told.err.strip().splitlines()) <= 3
    assert "Traceback" not in told.err


def test_wrong_tokens_are_wrong_usage(fake, capsys):
    assert command.main(["probe", "--tokens", "1,x", "--url", fake.url, "--token", fake.token]) == 2
    assert "whole numbers" in capsys.readouterr().err


def test_an_unexpected_error_shows_no_traceback_unless_asked(fake, capsys, monkeypatch):
    from workbench.commands import look

    def broken(*_):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(look, "explain", broken)
    argv = ["explain", "r1", "--url", fake.url, "--token", fake.token]
    assert command.main(argv) == 1
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("WORKBENCH_DEBUG", "1")
    command.main(argv)
    assert "Traceback" in capsys.readouterr().err


def test_explain_without_an_id_explains_the_newest(fake, capsys):
    assert command.main(["explain", "--json", "--url", fake.url, "--token", fake.token]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "r4"


def test_explain_prints_the_story(fake, capsys):
    assert command.main(["explain", "r1", "--url", fake.url, "--token", fake.token]) == 0
    assert "vllm-1 ← chosen" in capsys.readouterr().out


def test_probe_prints_pods_best_first(fake, capsys, tmp_path):
    assert command.main(["probe", "hello", "--url", fake.url, "--token", fake.token]) == 0
    assert capsys.readouterr().out.index("vllm-1") > 0
    (tmp_path / "m.json").write_text('[{"role": "user", "content": "x"}]')
    command.main(["probe", "--messages", str(tmp_path / "m.json"), "--json", "--url", fake.url, "--token", fake.token])
    assert json.loads(capsys.readouterr().out)["matches"][0] == {"pod": "vllm-1", "matched_tokens": 64, "share": 0.64}


def test_replay_prints_a_summary_and_fails_when_a_request_failed(capsys):
    with completions() as gateway:
        argv = ["replay", "conversation-sample", "--limit", "3", "--speed", "100", "--output-tokens", "2", "--url", gateway.url, "--json"]
        assert command.main(argv) == 0
        printed = json.loads(capsys.readouterr().out)
        assert (printed["summary"]["ok"], printed["prediction"]) == (3, None)
        gateway.behaviour = {4: "http_503"}
        assert command.main(argv) == 1


def test_replay_checks_predictions_when_it_knows_the_stack(fake, capsys, monkeypatch, tmp_path):
    (tmp_path / "token").write_text(fake.token)
    with completions() as gateway:
        endpoints = Endpoints(state=str(tmp_path), pid=1, control=fake.url, gateway=gateway.url, token_file=str(tmp_path / "token"))
        monkeypatch.setattr(launch, "find", lambda state: endpoints)
        for record in fake.decisions:
            record.at += 1e9
        assert command.main(["replay", "conversation-sample", "--limit", "5", "--speed", "100", "--output-tokens", "2"]) == 0
    assert "100.00% within one block of 5" in capsys.readouterr().out


def test_an_interrupted_replay_still_sums_up():
    with completions() as gateway:
        gateway.pause_s = 0.05
        argv = [sys.executable, "-m", "workbench", "replay", "conversation-sample", "--url", gateway.url, "--rate", "20"]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            while len(gateway.requests) < 5:
                assert process.poll() is None
                os.sched_yield()
            process.send_signal(2)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "requests of conversation-sample" in out


def test_up_hands_its_options_to_the_launcher(monkeypatch, tmp_path, capsys):
    given = []
    monkeypatch.setattr(launch_stack, "up", lambda options, display: given.append(options))
    argv = ["up", "--state", str(tmp_path), "--port-base", "21000", "--workers", "3", "--no-dashboard", "--no-traffic", "--exit-after", "5"]
    assert command.main(argv) == 0
    (options,) = given
    assert (options.state, options.port_base, options.workers, options.exit_after_s) == (tmp_path, 21000, 3, 5.0)
    assert (options.dashboard, options.traffic, options.fleet) == (False, False, None)


def test_links_name_what_there_is():
    endpoints = Endpoints(state="s", pid=1, control="http://c", gateway="http://g")
    assert stack_command.links(endpoints) == ["gateway    http://g", "control    http://c"]


def test_status_shows_no_password(monkeypatch, tmp_path, capsys):
    endpoints = Endpoints(state="s", pid=1, redis="redis://:hunter2@127.0.0.1:6379/0")
    monkeypatch.setattr(launch_stack, "status", lambda state: StackStatus(state="s", ready=True, endpoints=endpoints))
    for argv in (["status"], ["status", "--json"]):
        assert command.main([*argv, "--state", str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        assert "hunter2" not in shown
    assert json.loads(shown)["endpoints"]["redis"] == "redis://:***@127.0.0.1:6379/0"


def test_down_says_whether_there_was_a_stack(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(launch_stack, "down", lambda state: False)
    assert command.main(["down", "--state", str(tmp_path)]) == 0
    assert f"No stack ran in {tmp_path}" in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


START = [
    Progress("starting", "valkey", done=0, total=3),
    Progress("ready", "valkey", done=1, total=3),
    Progress("died", "control", "ended with exit code 1; starts again in 0.1 s", done=1, total=3),
    Progress("ready", "pods", "1 of 1", done=3, total=3),
    Progress("up", text="Ready after 2.0 s.", done=3, total=3),
]


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()], ids=["pipe", "terminal"])
def test_up_tells_what_happens_and_then_the_links(out, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(launch, "find", lambda state: Endpoints(state="s", pid=1, gateway="http://g"))
    display = stack_command.UpDisplay(tmp_path, out)
    for event in START:
        display(event)
    display.close()
    assert "control: died: ended with exit code 1" in out.getvalue()
    assert "Ready after 2.0 s." in out.getvalue()
    assert capsys.readouterr().out == "gateway    http://g\nCtrl-C ends the stack.\n"


def test_a_dashboard_that_gives_no_link_is_named_by_its_address(tmp_path):
    endpoints = Endpoints(state="s", pid=1, control="http://127.0.0.1:9", dashboard="http://127.0.0.1:9")
    assert _dashboard.login_link(endpoints) == "http://127.0.0.1:9"
    assert _dashboard.login_link(Endpoints(state="s", pid=1)) == ""


def test_report_writes_its_files_and_names_them(fake, capsys, tmp_path):
    argv = ["report", "daily", "--out", str(tmp_path / "out"), "--url", fake.url, "--token", fake.token]
    assert command.main(argv) == 0
    assert "daily.html" in capsys.readouterr().out
    assert command.main([*argv, "--json", "--since", "1763799999", "--until", "1763800100"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["facts"]["requests"] == 5
    assert {name.rpartition(".")[2] for name in printed["files"]} == {"html", "json", "parquet"}


@pytest.mark.parametrize(
    ("more", "code"),
    [(["--since", "yesterday"], 2), (["--since", "1h", "--until", "2h"], 2), (["--url", "http://127.0.0.1:1"], 1)],
    ids=["no_time", "empty_time", "nobody_there"],
)
def test_a_report_that_cannot_be_ends_with_its_code(fake, capsys, tmp_path, more, code):
    argv = ["report", "daily", "--out", str(tmp_path), "--url", fake.url, "--token", fake.token, *more]
    assert command.main(argv) == code
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_report_into_a_file_is_told(fake, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert command.main(["report", "daily", "--out", str(tmp_path / "file"), "--url", fake.url, "--token", fake.token]) == 1
    assert "--out" in capsys.readouterr().err
