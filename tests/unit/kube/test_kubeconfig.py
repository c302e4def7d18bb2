"""What is wrong with a kubeconfig is said with its file and field, and no secret of it is ever shown."""

from __future__ import annotations

import base64
import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes.config import incluster_config

from backend.core.errors import ConfigError
from backend.kube import access, kubeconfig
from backend.kube.access import from_service_account, loader
from tests.fakes.kubeapi import CERTIFICATE, KEY, write_kubeconfig

SECRET = "s3cr3t-t0k3n"


def encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def document(file: Path) -> dict[str, Any]:
    return json.loads(write_kubeconfig(file, "https://127.0.0.1:6443", token=SECRET).read_text())


def no_server(config: dict[str, Any]) -> None:
    del config["clusters"][0]["cluster"]["server"]


def strange_server(config: dict[str, Any]) -> None:
    config["clusters"][0]["cluster"]["server"] = "127.0.0.1"


def no_current(config: dict[str, Any]) -> None:
    del config["current-context"]


def other_context(config: dict[str, Any]) -> None:
    config["current-context"] = "gone"


def other_user(config: dict[str, Any]) -> None:
    config["contexts"][0]["context"]["user"] = "nobody"


def no_list(config: dict[str, Any]) -> None:
    config["users"] = {"name": "someone"}


def missing_authority(config: dict[str, Any]) -> None:
    config["clusters"][0]["cluster"]["certificate-authority"] = "absent.crt"


def half_a_pair(config: dict[str, Any]) -> None:
    config["users"][0]["user"]["client-certificate-data"] = "YQ=="


def no_base64(config: dict[str, Any]) -> None:
    config["clusters"][0]["cluster"]["certificate-authority-data"] = "a"


def no_certificate(config: dict[str, Any]) -> None:
    config["clusters"][0]["cluster"]["certificate-authority-data"] = "aGVsbG8="


def missing_plugin(config: dict[str, Any]) -> None:
    config["users"][0]["user"] = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-plugin"}}


def failing_plugin(config: dict[str, Any]) -> None:
    config["users"][0]["user"] = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "false"}}


@pytest.mark.parametrize(
    ("spoil", "field", "said"),
    [
        (no_server, "clusters[name=fake].cluster.server", "is required"),
        (strange_server, "clusters[name=fake].cluster.server", "must be an address"),
        (no_current, "current-context", "names no context"),
        (other_context, "contexts", "has no context 'gone'"),
        (other_user, "contexts[name=fake].context.user", "'nobody', which is not among the users"),
        (no_list, "users", "must be a list"),
        (missing_authority, "clusters[name=fake].cluster.certificate-authority", "not there or not readable"),
        (half_a_pair, "users[name=someone].user.client-key", "the other half"),
        (no_base64, "clusters[name=fake].cluster.certificate-authority-data", "is not base64"),
        (no_certificate, "certificate-authority", "is no certificate"),
        (missing_plugin, "users[name=someone].user.exec.command", "is not installed"),
        (failing_plugin, "users[].user.exec", "gave no credentials"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_what_is_wrong_is_named_by_file_and_field(tmp_path: Path, spoil: Callable[[dict[str, Any]], None], field: str, said: str) -> None:
    file = tmp_path / "config"
    config = document(file)
    spoil(config)
    file.write_text(json.dumps(config))
    with pytest.raises(ConfigError) as error:
        loader(file)(False)
    assert error.value.field == field
    assert error.value.file == str(file)
    assert said in str(error.value)
    assert SECRET not in str(error.value)


def test_a_file_that_is_not_yaml_is_named_with_its_line_and_without_its_text(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(f"users:\n- name: a\n  user: {{token: {SECRET}: [\n")
    with pytest.raises(ConfigError) as error:
        loader(file)(False)
    assert error.value.line >= 3
    assert SECRET not in str(error.value)


def test_no_file_no_pod_and_a_wrong_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    monkeypatch.delenv(access.SERVICE_HOST, raising=False)
    with pytest.raises(ConfigError, match="there is no kubeconfig, and this is no pod"):
        loader()
    with pytest.raises(ConfigError, match="no such kubeconfig file"):
        loader(tmp_path / "absent")
    monkeypatch.setenv(access.SERVICE_HOST, "10.0.0.1")
    assert loader() is from_service_account


def test_several_files_are_one_and_the_first_that_names_something_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_kubeconfig(tmp_path / "first", "http://127.0.0.1:1", token="first")
    second = document(tmp_path / "second")
    second["contexts"].append({"name": "other", "context": {"cluster": "fake", "user": "second"}})
    second["users"].append({"name": "second", "user": {"username": "a", "password": "b"}})
    (tmp_path / "second").write_text(json.dumps(second))
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join([str(first), str(tmp_path / "absent"), str(tmp_path / "second")]))
    current = loader()(False)
    assert (current.server, current.authorization, current.namespace) == ("http://127.0.0.1:1", "Bearer first", "fleet")
    other = loader(context="other")(False)
    assert (other.server, other.authorization) == ("http://127.0.0.1:1", "Basic YTpi")
    assert other.namespace == "default"


def test_a_credential_plugin_is_run_and_only_again_when_its_token_is_refused(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    plugin = tmp_path / "plugin"
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "from-plugin"}}
    plugin.write_text(f"#!/bin/sh\necho x >> {runs}\necho '{json.dumps(answer)}'\n")
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    user = {"exec": {"apiVersion": answer["apiVersion"], "command": str(plugin), "interactiveMode": "Never"}}
    load = loader(write_kubeconfig(tmp_path / "config", "http://127.0.0.1:1", **user))
    assert load(False).authorization == "Bearer from-plugin"
    assert load(False).authorization == "Bearer from-plugin"
    assert runs.read_text().count("x") == 1
    load(True)
    assert runs.read_text().count("x") == 2


def test_keys_that_stand_in_the_file_are_nowhere_on_disk_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = document(tmp_path / "config")
    config["clusters"][0]["cluster"]["certificate-authority-data"] = encoded(CERTIFICATE)
    config["users"][0]["user"] = {"client-certificate-data": encoded(CERTIFICATE), "client-key-data": encoded(KEY)}
    (tmp_path / "config").write_text(json.dumps(config))
    first, second = loader(tmp_path / "config")(False), loader(tmp_path / "config")(False)
    assert first.context is not None
    assert first.fingerprint == second.fingerprint != ""
    assert [file.name for file in tmp_path.iterdir()] == ["config"]


def test_a_pod_uses_its_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "namespace").write_text("prod")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(CERTIFICATE))
    monkeypatch.setattr(access, "NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setattr(kubeconfig, "DEFAULT", str(tmp_path / "absent"))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    load = loader()
    read = load(False)
    assert (read.server, read.authorization, read.namespace) == ("https://10.0.0.1:443", "Bearer first", "prod")
    (tmp_path / "token").write_text("second")
    assert load(False).authorization == "Bearer second"
    (tmp_path / "token").unlink()
    with pytest.raises(ConfigError, match="service account cannot be used"):
        load(False)


def test_impersonation_is_kept(tmp_path: Path) -> None:
    user = {"token": SECRET, "as": "auditor", "as-groups": ["a", "b"], "as-user-extra": {"reason": ["drill"]}}
    read = loader(write_kubeconfig(tmp_path / "config", "http://127.0.0.1:1", **user))(False)
    assert read.headers == (
        ("Impersonate-User", "auditor"),
        ("Impersonate-Group", "a"),
        ("Impersonate-Group", "b"),
        ("Impersonate-Extra-reason", "drill"),
    )
    assert SECRET not in repr(read)


def test_the_default_place_is_the_home_folder() -> None:
    assert kubeconfig.files_of(None, {}) in ((), (Path(kubeconfig.DEFAULT).expanduser(),))
