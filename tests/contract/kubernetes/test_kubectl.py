"""A smoke test with kubectl: what a user's first commands need of a server."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.kubernetes.kubecontract.client import Api, Json, Target, expect
from tests.contract.kubernetes.kubecontract.kubectl import kubeconfig, kubectl_binary
from tests.contract.kubernetes.kubecontract.objects import CONFIGMAPS, DEPLOYMENTS, PODS, WIDGETS, configmap, deployment, pod, widget

pytestmark = pytest.mark.kubectl

Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kubectl")


@pytest.fixture
def kubectl(target: Target, cache: Path, ns: str) -> Kubectl:
    """Runs kubectl in the namespace of the test; the discovery cache is shared by all tests."""
    binary = kubectl_binary()
    assert binary is not None
    base = [binary, "--kubeconfig", str(kubeconfig(target, cache)), "--cache-dir", str(cache / "cache"), "-n", ns]

    def run(*arguments: str, stdin: Json | None = None, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        text = json.dumps(stdin) if stdin is not None else ""
        done = subprocess.run([*base, *arguments], input=text, capture_output=True, text=True, timeout=30, check=False)
        if code is not None:
            assert done.returncode == code, done.stderr
        return done

    return run


def test_get(api: Api, ns: str, kubectl: Kubectl) -> None:
    """Item 100: get prints the server's table."""
    expect(api.post(PODS.at(ns), pod("p")), 201)
    header, row = kubectl("get", "pods").stdout.splitlines()
    assert header.split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert row.split()[:4] == ["p", "0/1", "Pending", "0"]
    assert kubectl("get", "pods", "-o", "name").stdout == "pod/p\n"
    assert kubectl("get", "cm", "none", code=1).stderr == 'Error from server (NotFound): configmaps "none" not found\n'


def test_client_side_apply(kubectl: Kubectl) -> None:
    """Item 100: apply creates, changes, and sees that nothing changed."""
    assert kubectl("apply", "-f", "-", stdin=deployment("d", 0)).stdout == "deployment.apps/d created\n"
    assert kubectl("apply", "-f", "-", stdin=deployment("d", 0)).stdout == "deployment.apps/d unchanged\n"
    assert kubectl("apply", "-f", "-", stdin=deployment("d", 1)).stdout == "deployment.apps/d configured\n"


def test_client_side_apply_of_a_custom_resource(kubectl: Kubectl, widgets_crd: Json) -> None:
    """Item 100: apply of a custom resource goes through merge patches."""
    assert kubectl("apply", "-f", "-", stdin=widget("w")).stdout == "widget.contract.dev/w created\n"
    changed = kubectl("apply", "-f", "-", stdin=widget("w", size="large"))
    assert changed.stdout == "widget.contract.dev/w configured\n"


def test_server_side_apply(kubectl: Kubectl) -> None:
    """Item 100: apply --server-side."""
    done = kubectl("apply", "--server-side", "-f", "-", stdin=configmap("x"))
    assert done.stdout == "configmap/x serverside-applied\n"


def test_strict_validation(kubectl: Kubectl) -> None:
    """Item 100: an unknown field is refused by the server's strict validation."""
    body = pod("p")
    body["spec"]["nonsense"] = 1
    assert 'unknown field "spec.nonsense"' in kubectl("apply", "-f", "-", stdin=body, code=1).stderr


def test_diff(kubectl: Kubectl) -> None:
    """Item 100: diff exits with 0 without and with 1 with a difference."""
    kubectl("apply", "-f", "-", stdin=configmap("x", {"a": "1"}))
    kubectl("diff", "-f", "-", stdin=configmap("x", {"a": "1"}))
    assert '+  a: "2"' in kubectl("diff", "-f", "-", stdin=configmap("x", {"a": "2"}), code=1).stdout


def test_describe(api: Api, ns: str, kubectl: Kubectl) -> None:
    """Item 100: describe shows the object and its events."""
    expect(api.post(PODS.at(ns), pod("p")), 201)
    text = kubectl("describe", "pod", "p").stdout
    assert re.match(r"Name: +p\n", text)
    assert "Events:" in text


def test_scale(api: Api, ns: str, kubectl: Kubectl, widgets_crd: Json) -> None:
    """Item 100: scale works for built-in and custom resources."""
    expect(api.post(DEPLOYMENTS.at(ns), deployment("d", 0)), 201)
    expect(api.post(WIDGETS.at(ns), widget("w")), 201)
    assert kubectl("scale", "deployment/d", "--replicas=0").stdout == "deployment.apps/d scaled\n"
    assert kubectl("scale", "widget/w", "--replicas=4").stdout == "widget.contract.dev/w scaled\n"
    assert expect(api.get(WIDGETS.at(ns, "w")))["spec"]["replicas"] == 4


def test_wait(api: Api, ns: str, kubectl: Kubectl) -> None:
    """Item 100: wait sees a condition that is there and times out on one that is not."""
    expect(api.post(PODS.at(ns), pod("p")), 201)
    status = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    expect(api.merge(PODS.at(ns, "p", "status"), status))
    assert kubectl("wait", "--for=condition=Ready", "pod/p", "--timeout=5s").stdout == "pod/p condition met\n"
    kubectl("wait", "--for=condition=Never", "pod/p", "--timeout=1s", code=1)


def test_delete(api: Api, ns: str, kubectl: Kubectl) -> None:
    """Item 100: delete waits until the object is gone."""
    expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)
    assert kubectl("delete", "configmap", "x").stdout.startswith('configmap "x" deleted')
    assert api.get(CONFIGMAPS.at(ns, "x")).status_code == 404


def test_watch(api: Api, ns: str, kubectl: Kubectl) -> None:
    """Item 100: get -w prints what is there and what changes, until its timeout."""
    expect(api.post(PODS.at(ns), pod("p")), 201)
    lines = kubectl("get", "pods", "-w", "--request-timeout=1s", code=None).stdout.splitlines()
    assert lines[0].split()[0] == "NAME"
    assert lines[1].split()[0] == "p"


def test_label_annotate_and_patch(api: Api, ns: str, kubectl: Kubectl) -> None:
    """Item 100: label, annotate and patch in its three types."""
    expect(api.post(PODS.at(ns), pod("p")), 201)
    assert kubectl("label", "pod/p", "a=b").stdout == "pod/p labeled\n"
    assert kubectl("annotate", "pod/p", "a=b").stdout == "pod/p annotated\n"
    change = '{"spec":{"containers":[{"name":"main","image":"example/app:2"}]}}'
    assert kubectl("patch", "pod/p", "-p", change).stdout == "pod/p patched\n"
    assert expect(api.get(PODS.at(ns, "p")))["spec"]["containers"][0]["image"] == "example/app:2"


def test_explain(kubectl: Kubectl, widgets_crd: Json) -> None:
    """Item 100: explain reads the OpenAPI document."""
    assert "podIP" in kubectl("explain", "pod.status").stdout
    assert "ENUM" in kubectl("explain", "widget.spec").stdout.upper()


def test_api_resources(kubectl: Kubectl, widgets_crd: Json) -> None:
    """Item 100: api-resources lists kinds by discovery."""
    rows = [line.split() for line in kubectl("api-resources", "--api-group=contract.dev").stdout.splitlines()]
    assert rows[1] == ["widgets", "wdg", "contract.dev/v1", "true", "Widget"]


def test_create_and_typed_commands(api: Api, ns: str, kubectl: Kubectl) -> None:
    """Item 100: commands of the typed client; they send protobuf unless the server refuses it."""
    done = kubectl("create", "configmap", "x", "--from-literal=a=b", code=None)
    assert done.returncode == 0 or "415" in done.stderr or "unsupported" in done.stderr.lower()


def test_can_i(kubectl: Kubectl) -> None:
    """Item 100: auth can-i."""
    assert kubectl("auth", "can-i", "list", "pods").stdout == "yes\n"


def test_logs_without_a_node(api: Api, ns: str, kubectl: Kubectl) -> None:
    """Item 100: logs of a pod that has no node yet are empty."""
    expect(api.post(PODS.at(ns), pod("p")), 201)
    assert kubectl("logs", "p").stdout == ""


@pytest.mark.kcm
def test_rollout_status(api: Api, ns: str, kubectl: Kubectl) -> None:
    """Item 100: rollout status of a Deployment without replicas is done at once."""
    expect(api.post(DEPLOYMENTS.at(ns), deployment("d", 0)), 201)
    done = kubectl("rollout", "status", "deployment/d", "--timeout=10s")
    assert done.stdout.endswith('deployment "d" successfully rolled out\n')
