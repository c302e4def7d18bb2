"""Which stack a workbench belongs to."""

from __future__ import annotations

import pytest

import workbench
from backend import launch
from backend.api.endpoints import Endpoints
from backend.launch import background, ending, preflight
from workbench import _target, errors


def test_the_nearest_state_folder_upwards_is_taken(tmp_path, monkeypatch):
    monkeypatch.delenv("WORKBENCH_STATE", raising=False)
    (tmp_path / ".workbench").mkdir()
    (tmp_path / "notebooks" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "deep")
    assert _target.state_folder() == tmp_path / ".workbench"


def test_the_variable_wins_over_the_folder_and_the_argument_over_both(tmp_path, monkeypatch):
    (tmp_path / ".workbench").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_STATE", str(tmp_path / "other"))
    assert _target.state_folder() == tmp_path / "other"
    assert _target.state_folder(tmp_path / "third") == tmp_path / "third"


@pytest.fixture
def endpoints(fake, tmp_path):
    (tmp_path / "token").write_text(fake.token + "\n")
    return Endpoints(state=str(tmp_path), pid=1, control=fake.url, token_file=str(tmp_path / "token"))


def test_a_running_stack_is_used_and_not_ended(tmp_path, monkeypatch, endpoints):
    ended = []
    monkeypatch.setattr(launch, "find", lambda state: endpoints)
    monkeypatch.setattr(ending, "down", ended.append)
    with workbench.connect(tmp_path) as wb:
        assert wb.endpoints == endpoints
        assert f"state in {tmp_path}" in repr(wb)
    assert ended == []


def test_a_stack_that_connect_started_is_ended_by_close_once(tmp_path, monkeypatch, endpoints, capsys):
    ended = []
    monkeypatch.setattr(launch, "find", lambda state: None)
    monkeypatch.setattr(background, "detached", lambda state, options: endpoints)
    monkeypatch.setattr(ending, "down", ended.append)
    wb = workbench.connect(tmp_path)
    assert "close() ends it" in capsys.readouterr().out
    wb.close()
    wb.close()
    assert ended == [tmp_path]


def test_a_token_file_of_somebody_else_is_told(tmp_path, endpoints):
    (tmp_path / "token").unlink()
    with pytest.raises(errors.Unauthorized, match="cannot be read"):
        workbench.connect(endpoints)


def test_a_stack_started_beside_another_takes_the_next_free_ports(tmp_path, monkeypatch):
    taken = {18_801, 18_816}
    monkeypatch.setattr(preflight, "port_is_free", lambda host, port: port not in taken)
    assert _target.free_options(tmp_path).port_base == 18_820


def test_no_free_ports_at_all_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "port_is_free", lambda host, port: False)
    with pytest.raises(errors.PortInUse, match="--port-base"):
        _target.free_options(tmp_path)


def test_an_address_of_another_kind_is_refused():
    with pytest.raises(errors.UsageError, match="neither"):
        workbench.connect("ftp://somewhere")
