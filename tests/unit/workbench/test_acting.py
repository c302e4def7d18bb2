"""Plans and operations in the hands of an operator: what they show, what they send, how they are waited for; and the commands."""

from __future__ import annotations

import json
import threading
from xml.etree import ElementTree

import pytest

import workbench
from backend.api.actions import PlanRequest
from workbench import __main__ as command
from workbench import services as services_module
from workbench.errors import InvalidRequest, NotFound, OperationFailed, UsageError
from workbench.services import read_manifest


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(services_module, "POLL_S", 0.01)


@pytest.fixture
def service(wb):
    return wb.service("qwen")


def test_looking_at_a_plan_asks_nobody(service, fake):
    plan = service.plan_upgrade(image="engine:2", role="decode", reason="CVE")
    asked = list(fake.asked)
    shown = repr(plan)
    html = plan._repr_mimebundle_()["text/html"]
    assert plan.steps.to_dicts() == [
        {"step": 1, "at_s": 0.0, "role": "decode", "pods_in": 1, "pods_out": 1, "ready": 1, "reason": "outdated"}
    ]
    assert plan.diff["after"].to_list() == ["2", '{"a":1}']
    assert fake.asked == asked
    for text in ("set-image default/qwen", "confirm with 'qwen'", "1 min 30 s", "1,234 cached tokens", "A note.", "spec.replicas"):
        assert text in shown
    ElementTree.fromstring(html)
    assert "spec.&lt;b&gt;" in html


def test_a_plan_is_asked_for_with_who_and_why(service, fake):
    service.plan_scale(3, role="decode", reason="load")
    asked: PlanRequest = fake.actions.planned[-1]
    assert (asked.action, asked.namespace, asked.service, asked.reason) == ("scale", "default", "qwen", "load")
    assert (asked.parameters.role, asked.parameters.replicas) == ("decode", 3)
    assert asked.by.source == "notebook"
    assert asked.by.user


def test_applying_waits_with_progress_and_one_plan_is_one_operation(service, fake, capsys):
    plan = service.plan_upgrade(image="engine:2")
    operation = plan.apply("qwen")
    assert operation.wait().state == "done"
    assert "set-image of qwen: 3 of 3" in capsys.readouterr().err
    assert operation.df()["steps_done"].to_list() == [3]
    plan.apply("qwen")
    keys = {one.key for one in fake.actions.applied}
    assert len(keys) == 1
    assert keys != {""}


def test_a_wrong_confirmation_is_refused_and_says_what_to_type(service):
    with pytest.raises(InvalidRequest, match="'qwen'"):
        service.plan_delete().apply("qwe")


@pytest.mark.parametrize("state", ["failed", "aborted"])
def test_a_bad_end_is_an_error_with_its_reason(service, fake, state):
    fake.actions.ends_as = state
    operation = service.plan_upgrade(image="engine:2").apply("qwen")
    with pytest.raises(OperationFailed, match="It ended so"):
        operation.wait(progress=False)
    assert operation.state == state


def test_an_abort_of_one_s_own_is_no_error(service, fake):
    operation = service.plan_upgrade(image="engine:2").apply("qwen")
    assert operation.abort("qwen", reason="slow").state == "aborting"
    assert operation.wait(progress=False).state == "aborted"
    verb, told = fake.actions.told[-1]
    assert (verb, told.confirm, told.reason) == ("abort", "qwen", "slow")


def test_pausing_a_service_needs_no_confirmation(service, fake):
    assert service.pause(reason="night").wait(progress=False).state == "done"
    assert fake.actions.planned[-1].action == "pause"


def test_an_undo_is_a_plan(service):
    operation = service.plan_upgrade(image="engine:2").apply("qwen").wait(progress=False)
    back = operation.undo()
    assert back.plan.action == "undo"
    assert back.apply("qwen").wait(progress=False).state == "done"


def test_a_timeout_and_an_interrupt_end_the_waiting_only(service, fake, capsys, monkeypatch):
    fake.actions.holds = True
    operation = service.plan_upgrade(image="engine:2").apply("qwen")
    with pytest.raises(TimeoutError):
        operation.wait(progress=False, timeout=0.1)
    loop = operation._loop

    class Interrupted:
        def run(self, coroutine, timeout=None):
            timer = threading.Timer(0.1, lambda: None)
            timer.start()
            try:
                loop.run(coroutine, 0.1)
            except TimeoutError:
                raise KeyboardInterrupt from None

    operation._loop = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        operation.wait(progress=False)
    assert "the operation goes on" in capsys.readouterr().err
    looks = fake.actions.looks
    assert fake.actions.told == []
    threading.Event().wait(0.1)
    assert fake.actions.looks <= looks + 1, "nobody looks any more"


def test_services_complete_their_names_and_show_their_roles(wb):
    assert wb.services._ipython_key_completions_() == []
    assert "decode 1/2" in repr(wb.services.table())
    assert wb.services._ipython_key_completions_() == ["default/qwen"]
    assert wb.services["default/qwen"].df()["pods_ready"].to_list() == [3]
    with pytest.raises(NotFound):
        wb.service("nobody")


def test_the_audit_and_operations_are_tables(wb, service):
    service.plan_pause().apply().wait(progress=False)
    assert wb.operations().df()["state"].to_list() == ["done"]
    page = wb.audit(limit=1)
    assert page.df()["user"].to_list() == ["alice"]
    assert page.next == "1-0"
    assert "&lt;why&gt;" in page._repr_mimebundle_()["text/html"]


async def test_an_operation_can_be_awaited(fake):
    async with workbench.connect(fake.url, token=fake.token, asynchronous=True) as wb:
        plan = await wb.services.plan("pause", "prod/qwen")
        assert fake.actions.planned[-1].namespace == "prod"
        assert (await (await plan.apply())).state == "done"


MANIFESTS = [
    ("missing", None, "cannot be read"),
    ("not_yaml", "a: [", "line"),
    ("two", "a: 1\n---\nb: 2\n", "2 documents"),
    ("a_list", "- a\n", "1 documents"),
    ("nothing", "", "0 documents"),
]


@pytest.mark.parametrize(("text", "message"), [case[1:] for case in MANIFESTS], ids=[case[0] for case in MANIFESTS])
def test_a_manifest_that_is_none_is_wrong_usage(tmp_path, text, message):
    file = tmp_path / "service.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_manifest(file)


class Terminal:
    """The command on the fake: exit code, what was printed."""

    def __init__(self, fake, capsys) -> None:
        self.fake, self.capsys = fake, capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        code = command.main([*words, "--url", self.fake.url, "--token", self.fake.token])
        told = self.capsys.readouterr()
        return code, told.out, told.err


@pytest.fixture
def terminal(fake, capsys):
    return Terminal(fake, capsys)


def test_plan_and_apply_from_a_terminal(terminal, fake):
    code, out, _ = terminal("plan", "set-image", "qwen", "--image", "engine:2")
    assert code == 0
    assert "workbench apply plan-1 --confirm qwen" in out
    code, out, _ = terminal("apply", "plan-1", "--confirm", "qwen", "--reason", "CVE", "--json")
    assert (code, json.loads(out)["state"]) == (0, "done")
    assert (fake.actions.applied[-1].reason, fake.actions.applied[-1].by.source) == ("CVE", "cli")


@pytest.mark.parametrize(
    ("words", "action"),
    [
        (["scale", "qwen", "--replicas", "2", "--role", "decode"], "scale"),
        (["delete", "qwen"], "delete"),
        (["pause", "qwen"], "pause"),
        (["resume", "qwen"], "resume"),
    ],
    ids=["scale", "delete", "pause", "resume"],
)
def test_every_kind_of_plan_prints_json(terminal, fake, words, action):
    code, out, _ = terminal("plan", *words, "--json")
    assert (code, json.loads(out)["action"]) == (0, action)


def test_a_file_is_planned_as_a_creation(terminal, fake, tmp_path):
    file = tmp_path / "service.yaml"
    file.write_text("metadata: {name: new, namespace: prod}\n")
    assert terminal("plan", "create", "-f", str(file))[0] == 0
    asked = fake.actions.planned[-1]
    assert (asked.action, asked.namespace, asked.parameters.manifest["metadata"]["name"]) == ("create", "prod", "new")


def test_without_a_terminal_a_confirmation_must_be_given(terminal, fake):
    terminal("plan", "delete", "qwen")
    code, _, err = terminal("apply", "plan-1")
    assert code == 2
    assert "--confirm qwen" in err
    assert fake.actions.applied == []


def test_on_a_terminal_it_is_asked_for(terminal, fake, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: "qwen\n", raising=False)
    terminal("plan", "delete", "qwen")
    code, _, err = terminal("apply", "plan-1")
    assert code == 0
    assert "Type qwen to go on" in err


def test_a_failed_operation_ends_with_one_and_still_prints_itself(terminal, fake):
    fake.actions.ends_as = "failed"
    code, out, err = terminal("scale", "qwen", "--replicas", "2", "--json")
    assert (code, json.loads(out)["state"]) == (1, "failed")
    assert "It ended so" in err


def test_operations_are_told_by_their_ids_and_services_by_their_names(terminal, fake):
    fake.actions.holds = True
    terminal("plan", "set-image", "qwen", "--image", "e:2")
    _, out, _ = terminal("apply", "plan-1", "--confirm", "qwen", "--no-wait", "--json")
    operation = json.loads(out)["id"]
    assert terminal("pause", operation)[0] == 0
    assert terminal("resume", operation, "--no-wait")[0] == 0
    assert terminal("abort", operation)[0] == 2
    assert terminal("abort", operation, "--confirm", "qwen", "--no-wait")[0] == 0
    assert [verb for verb, _ in fake.actions.told] == ["pause", "resume", "abort"]
    fake.actions.holds = False
    assert terminal("undo", operation, "--confirm", "qwen")[0] == 0
    assert terminal("pause", "qwen")[0] == 0
    assert fake.actions.planned[-1].action == "pause"


@pytest.mark.parametrize(
    "words",
    [["plan"], ["plan", "fly", "qwen"], ["plan", "create"], ["plan", "scale", "qwen", "--replicas", "-1"], ["apply"], ["scale", "qwen"]],
    ids=lambda words: "_".join(words),
)
def test_wrong_usage_ends_with_two(words, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 2


def test_an_unknown_plan_ends_with_one(terminal):
    code, _, err = terminal("apply", "plan-99")
    assert code == 1
    assert "No plan" in err
