"""A container as a program: environment, options, probes, grace."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.localkube.kubelet import template
from backend.localkube.kubelet.images import Images
from backend.localkube.runtime.model import Probe
from tests.fakes.objects import pod

IMAGES = Images.read()
STORED = {
    ("configmaps", "c"): {"data": {"KEY": "from-map", "OTHER": "x"}},
    ("secrets", "s"): {"data": {"TOKEN": base64.b64encode(b"hidden").decode()}},
}
CONTEXT = template.Context("local", "127.0.0.1", "127.9.9.1", lambda resource, name: STORED.get((resource, name)))


def made(**more):
    obj = pod(**more)
    obj["metadata"]["uid"] = "u-1"
    container = obj["spec"]["containers"][0]
    return template.spec(obj, container, IMAGES.find(container["image"]), CONTEXT)


def field_ref(path):
    return {"fieldRef": {"fieldPath": path}}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ([{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(A)"}], {"A": "1", "B": "1-1"}),
        ([{"name": "B", "value": "$(A)"}, {"name": "A", "value": "1"}], {"B": "$(A)", "A": "1"}),
        ([{"name": "A", "value": "1"}, {"name": "B", "value": "$$(A) $$"}], {"A": "1", "B": "$(A) $"}),
        ([{"name": "A"}], {"A": ""}),
        ([{"name": "IP", "valueFrom": field_ref("status.podIP")}, {"name": "URL", "value": "tcp://$(IP):5557"}],
         {"IP": "127.9.9.1", "URL": "tcp://127.9.9.1:5557"}),
        ([{"name": "N", "valueFrom": field_ref("metadata.name")}, {"name": "NS", "valueFrom": field_ref("metadata.namespace")}],
         {"N": "vllm-0", "NS": "default"}),
        ([{"name": "R", "valueFrom": field_ref("metadata.labels['role-name']")}], {"R": "prefill"}),
        ([{"name": "X", "valueFrom": field_ref("metadata.annotations['none']")}], {"X": ""}),
        ([{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "KEY"}}}], {"K": "from-map"}),
        ([{"name": "T", "valueFrom": {"secretKeyRef": {"name": "s", "key": "TOKEN"}}}], {"T": "hidden"}),
        ([{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "KEY", "optional": True}}}], {}),
    ],
    ids=["reference", "later_stays", "escaped", "empty", "pod_ip", "name", "label", "no_annotation", "map", "secret", "optional"],
)  # fmt: skip
def test_variables_are_resolved_in_their_order(env, expected):
    assert made(env=env, labels={"role-name": "prefill"}).env == expected


def test_whole_maps_come_first_with_their_prefix():
    env = made(envFrom=[{"prefix": "C_", "configMapRef": {"name": "c"}}], env=[{"name": "A", "value": "$(C_KEY)"}]).env
    assert env == {"C_KEY": "from-map", "C_OTHER": "x", "A": "from-map"}


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ({"configMapKeyRef": {"name": "none", "key": "K"}}, 'configmap "none" not found'),
        ({"configMapKeyRef": {"name": "c", "key": "NONE"}}, "couldn't find key NONE in configmap c"),
        ({"secretKeyRef": {"name": "none", "key": "K"}}, 'secret "none" not found'),
        ({"resourceFieldRef": {"resource": "limits.cpu"}}, "resourceFieldRef is not known"),
        (field_ref("spec.nothing"), "spec.nothing"),
    ],
    ids=["no_map", "no_key", "no_secret", "resource", "no_field"],
)
def test_what_cannot_be_resolved_is_said(source, complaint):
    with pytest.raises(template.Unresolved, match=complaint):
        made(env=[{"name": "A", "valueFrom": source}])


@given(st.text(alphabet="ab$()AB", max_size=30))
def test_text_without_known_variables_only_loses_doubled_dollars(text):
    assert template.expand(text, {}) == text.replace("$$", "$")


def test_variables_that_would_break_the_simulator_stay_in_the_image():
    env = [{"name": name, "value": "/sgl-workspace"} for name in ("PYTHONPATH", "PATH", "WORKBENCH_POD", "PYTHONHASHSEED")]
    assert made(env=env).env == {"PYTHONHASHSEED": "/sgl-workspace"}


def test_a_shell_script_is_read_not_run():
    script = (
        "set -e  # comment\npython3 -m vllm.entrypoints.openai.api_server \\\n --model ${MODEL} --port $PORT --block-size '16' && rm -rf /"
    )
    told = made(command=["/bin/bash", "-c"], args=[script], env=[{"name": "MODEL", "value": "m"}, {"name": "PORT", "value": "9000"}])
    assert (told.model, told.port, told.args) == ("m", 9000, {"block-size": "16"})
    assert told.command[:3] == ["{python}", "-m", "backend.simulate.engine"]


def test_a_script_that_no_shell_would_take_is_said():
    with pytest.raises(template.Unresolved, match="cannot be read"):
        made(command=["sh", "-c", "echo 'open"])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, 0),
        ({"ports": [{"containerPort": 8080}]}, 8080),
        ({"ports": [{"containerPort": 8080}], "args": ["--port", "9000"]}, 9000),
        ({"ports": [{"containerPort": 5557}, {"containerPort": 8080, "name": "http"}]}, 8080),
        ({"labels": {"model.aibrix.ai/port": "8100"}, "ports": [{"containerPort": 5557}]}, 8100),
        ({"labels": {"model.aibrix.ai/port": "http"}}, 0),
    ],
    ids=["nothing", "container_port", "option_wins", "port_by_name", "label_before_ports", "no_number"],
)
def test_the_port_is_what_the_pod_says(more, expected):
    assert made(**more).port == expected


@pytest.mark.parametrize(
    ("more", "role"),
    [
        ({"labels": {"role-name": "prefill"}}, "prefill"),
        ({"labels": {"role-name": "worker"}}, ""),
        ({"labels": {"role-name": "prefill"}, "args": ["--role", "decode"]}, "decode"),
    ],
    ids=["label", "other_label", "option_wins"],
)
def test_the_role_is_that_of_the_option_or_the_label(more, role):
    assert made(**more).role == role


def test_probes_are_kubernetes_with_their_defaults():
    probes = made(
        ports=[{"containerPort": 8000, "name": "http"}, {"containerPort": 9000, "name": "admin"}],
        readinessProbe={"httpGet": {"port": "http", "path": "/ready"}, "periodSeconds": 2, "successThreshold": 2},
        livenessProbe={"httpGet": {"port": "admin"}, "initialDelaySeconds": 5, "failureThreshold": 7, "timeoutSeconds": 3},
        startupProbe={"tcpSocket": {"port": 8000}},
    ).probes
    assert probes.readiness == Probe(path="/ready", port=0, period_s=2, successes=2)
    assert probes.liveness == Probe(path="/", port=9000, initial_delay_s=5, failures=7, timeout_s=3)
    assert probes.startup == Probe(path=None, port=0)


def test_without_probes_an_engine_is_asked_for_its_health():
    probes = made().probes
    assert (probes.readiness.path, probes.startup, probes.liveness) == ("/health", None, None)


@pytest.mark.parametrize(
    ("hook", "seconds", "notes"),
    [
        ({"sleep": {"seconds": 7}}, 7.0, 0),
        ({"exec": {"command": ["sh", "-c", "sleep 15"]}}, 15.0, 0),
        ({"httpGet": {"path": "/drain", "port": 8000}}, None, 1),
    ],
    ids=["sleep", "exec_sleep", "http"],
)
def test_a_sleep_before_the_end_is_honoured_and_the_rest_is_told_of(hook, seconds, notes):
    told = made(lifecycle={"preStop": hook}, terminationGracePeriodSeconds=60)
    assert (told.leave_s, told.grace_s) == (seconds, 60.0)
    assert len(list(template.unsupported({"name": "engine", "lifecycle": {"preStop": hook}}))) == notes


def test_an_unknown_probe_is_told_of_and_replaced():
    container = {"name": "engine", "readinessProbe": {"exec": {"command": ["true"]}}}
    assert "asked instead" in next(template.unsupported(container))
    assert made(readinessProbe=container["readinessProbe"]).probes.readiness == template.READINESS


def test_names_of_programs_tell_pods_of_one_name_apart():
    first, second = (replace_uid(pod(), uid) for uid in ("u-1", "u-2"))
    assert template.container_key(first, "engine") == "default_vllm-0_u-1_engine"
    assert template.pod_key(first) != template.pod_key(second)
    long = replace_uid(pod("n" * 253), "1" * 36)
    assert len(template.container_key(long, "c" * 63)) + len(".log.1") <= 255


def replace_uid(obj, uid):
    return {**obj, "metadata": {**obj["metadata"], "uid": uid}}


def test_a_context_without_a_cluster_has_no_maps():
    assert replace(CONTEXT).look_up("configmaps", "nothing") is None
    assert template.Context("n", "h", "p").look_up("configmaps", "c") is None
