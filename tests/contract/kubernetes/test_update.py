"""PUT: optimistic concurrency, generation, the status subresource, immutable fields."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contract.kubernetes.kubecontract.client import Api, Json, expect, refused
from tests.contract.kubernetes.kubecontract.objects import (
    CONFIGMAPS,
    DEPLOYMENTS,
    PODS,
    SECRETS,
    SERVICES,
    WIDGETS,
    configmap,
    container,
    deployment,
    pod,
    widget,
)

MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def test_put_with_the_current_version(api: Api, ns: str) -> None:
    """Item 39: PUT keeps uid and creationTimestamp and makes a greater resourceVersion."""
    first = expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)
    sent = {**first, "data": {"key": "new"}}
    sent["metadata"] = {**first["metadata"], "creationTimestamp": "2001-01-01T00:00:00Z"}
    stored = expect(api.put(CONFIGMAPS.at(ns, "x"), sent))
    assert stored["data"] == {"key": "new"}
    for key in ("uid", "creationTimestamp"):
        assert stored["metadata"][key] == first["metadata"][key]
    assert int(stored["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])


def test_put_with_another_uid(api: Api, ns: str) -> None:
    """Item 39: another uid means another object: 409."""
    first = expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)
    first["metadata"]["uid"] = "11111111-2222-3333-4444-555555555555"
    status = refused(api.put(CONFIGMAPS.at(ns, "x"), first), 409, "Conflict")
    assert "Precondition failed: UID in precondition: 11111111-2222-3333-4444-555555555555" in status["message"]


def test_put_with_a_stale_version(api: Api, ns: str) -> None:
    """Item 40: a stale resourceVersion is 409 Conflict with the words clients retry on."""
    first = expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)
    expect(api.put(CONFIGMAPS.at(ns, "x"), {**first, "data": {"key": "two"}}))
    status = refused(api.put(CONFIGMAPS.at(ns, "x"), {**first, "data": {"key": "three"}}), 409, "Conflict")
    assert status["message"] == f'Operation cannot be fulfilled on configmaps "x": {MODIFIED}'
    assert status["details"] == {"name": "x", "kind": "configmaps"}


def test_put_of_a_stale_custom_resource(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 40: the resource carries its group for a custom resource."""
    first = expect(api.post(WIDGETS.at(ns), widget("x")), 201)
    expect(api.put(WIDGETS.at(ns, "x"), {**first, "spec": {"size": "large"}}))
    status = refused(api.put(WIDGETS.at(ns, "x"), first), 409, "Conflict")
    assert status["message"] == f'Operation cannot be fulfilled on widgets.contract.dev "x": {MODIFIED}'


def test_put_without_version(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 41: pods and configmaps may be replaced unconditionally, custom resources may not."""
    expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)
    assert expect(api.put(CONFIGMAPS.at(ns, "x"), configmap("x", {"a": "b"})))["data"] == {"a": "b"}
    stored = expect(api.post(PODS.at(ns), pod("p")), 201)
    del stored["metadata"]["resourceVersion"]
    expect(api.put(PODS.at(ns, "p"), stored))
    expect(api.post(WIDGETS.at(ns), widget("w")), 201)
    answer = api.put(WIDGETS.at(ns, "w"), widget("w", size="large"))
    status = refused(answer, 422, "Invalid", causes=[("FieldValueInvalid", "metadata.resourceVersion")])
    assert status["message"] == (
        'widgets.contract.dev "w" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update'
    )


def test_put_to_another_name(api: Api, ns: str) -> None:
    """Item 42: the name of the body must be the name of the URL."""
    expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)
    refused(
        api.put(CONFIGMAPS.at(ns, "x"), configmap("y")),
        400,
        "BadRequest",
        message="the name of the object (y) does not match the name on the URL (x)",
    )


def test_put_on_a_missing_object(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 42: PUT does not create: 404; only a few kinds (leases, events, services' endpoints) do."""
    refused(api.put(WIDGETS.at(ns, "w"), widget("w")), 404, "NotFound")
    refused(api.put(CONFIGMAPS.at(ns, "x"), configmap("x")), 404, "NotFound")


def test_nothing_changed(api: Api, ns: str) -> None:
    """Item 43: a PUT or PATCH that changes nothing keeps the version and makes no watch event."""
    first = expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)
    version = first["metadata"]["resourceVersion"]
    with api.watch(CONFIGMAPS.at(ns), resourceVersion=version) as watch:
        assert expect(api.put(CONFIGMAPS.at(ns, "x"), first))["metadata"]["resourceVersion"] == version
        same = {"data": {"key": "value"}}
        assert expect(api.merge(CONFIGMAPS.at(ns, "x"), same))["metadata"]["resourceVersion"] == version
        assert expect(api.strategic(CONFIGMAPS.at(ns, "x"), same))["metadata"]["resourceVersion"] == version
        last = expect(api.merge(CONFIGMAPS.at(ns, "x"), {"data": {"key": "new"}}))
        event = watch.until("MODIFIED", "x")
    assert event["object"]["metadata"]["resourceVersion"] == last["metadata"]["resourceVersion"]


def test_generation_of_a_custom_resource(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 44: generation counts changes of the spec, not those of metadata or status."""
    path = WIDGETS.at(ns, "w")
    assert expect(api.post(WIDGETS.at(ns), widget("w")), 201)["metadata"]["generation"] == 1
    assert expect(api.merge(path, {"metadata": {"labels": {"a": "b"}}}))["metadata"]["generation"] == 1
    assert expect(api.merge(f"{path}/status", {"status": {"phase": "Ready"}}))["metadata"]["generation"] == 1
    assert expect(api.merge(path, {"spec": {"size": "large"}}))["metadata"]["generation"] == 2
    assert expect(api.merge(path, {"spec": {"size": "large"}}))["metadata"]["generation"] == 2


def test_generation_of_builtin_kinds(api: Api, ns: str) -> None:
    """Item 44: Deployments count, pods count since 1.34, configmaps have no generation."""
    path = DEPLOYMENTS.at(ns, "d")
    assert expect(api.post(DEPLOYMENTS.at(ns), deployment("d")), 201)["metadata"]["generation"] == 1
    assert expect(api.merge(path, {"spec": {"replicas": 3}}))["metadata"]["generation"] == 2
    assert expect(api.merge(path, {"metadata": {"labels": {"a": "b"}}}))["metadata"]["generation"] == 2
    assert expect(api.post(PODS.at(ns), pod("p")), 201)["metadata"].get("generation") in (1, None)
    assert "generation" not in expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)["metadata"]


def test_main_endpoint_keeps_the_status(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 45: a PUT of the main endpoint does not touch the status."""
    expect(api.post(WIDGETS.at(ns), widget("w")), 201)
    stored = expect(api.merge(WIDGETS.at(ns, "w", "status"), {"status": {"phase": "Ready"}}))
    stored["status"] = {"phase": "Broken"}
    stored["spec"]["size"] = "large"
    answer = expect(api.put(WIDGETS.at(ns, "w"), stored))
    assert (answer["status"], answer["spec"]["size"]) == ({"phase": "Ready"}, "large")


def test_status_endpoint_keeps_the_spec(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 46: a PUT of /status keeps spec, labels and generation."""
    stored = expect(api.post(WIDGETS.at(ns), widget("w")), 201)
    stored["status"] = {"phase": "Ready"}
    stored["spec"]["size"] = "large"
    stored["metadata"]["labels"] = {"a": "b"}
    answer = expect(api.put(WIDGETS.at(ns, "w", "status"), stored))
    assert (answer["status"], answer["spec"]["size"]) == ({"phase": "Ready"}, "small")
    assert answer["metadata"]["generation"] == 1
    assert "labels" not in answer["metadata"]


def test_status_endpoint_of_a_deployment(api: Api, ns: str) -> None:
    """Item 46: built-in kinds do the same, though their labels can be changed through /status."""
    stored = expect(api.post(DEPLOYMENTS.at(ns), deployment("d", replicas=0)), 201)
    body = {"spec": {"replicas": 7}, "status": {"collisionCount": 3}}
    answer = expect(api.merge(DEPLOYMENTS.at(ns, "d", "status"), body))
    assert (answer["spec"]["replicas"], answer["status"]["collisionCount"]) == (0, 3)
    assert answer["metadata"]["generation"] == stored["metadata"]["generation"]


def test_get_status(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 46: GET of /status is the whole object."""
    stored = expect(api.post(WIDGETS.at(ns), widget("w")), 201)
    assert expect(api.get(WIDGETS.at(ns, "w", "status"))) == stored


def test_mutable_pod_fields(api: Api, ns: str) -> None:
    """Item 47: image, labels, activeDeadlineSeconds and further tolerations of a pod may change."""
    expect(api.post(PODS.at(ns), pod("p")), 201)
    path = PODS.at(ns, "p")
    stored = expect(api.strategic(path, {"spec": {"containers": [container(image="example/app:2")]}}))
    assert stored["spec"]["containers"][0]["image"] == "example/app:2"
    expect(api.strategic(path, {"metadata": {"labels": {"a": "b"}}}))
    expect(api.strategic(path, {"spec": {"activeDeadlineSeconds": 60}}))
    tolerations = [*stored["spec"]["tolerations"], {"key": "k", "operator": "Exists"}]
    expect(api.merge(path, {"spec": {"tolerations": tolerations}}))


@pytest.mark.parametrize(
    "change",
    [
        {"containers": [{"name": "main", "command": ["x"]}]},
        {"containers": [{"name": "second", "image": "i"}]},
        {"restartPolicy": "Never"},
        {"nodeName": "node-x"},
        {"hostNetwork": True},
    ],
    ids=["command", "container", "restartPolicy", "nodeName", "hostNetwork"],
)
def test_immutable_pod_fields(api: Api, ns: str, change: Json) -> None:
    """Item 47: all other fields of the spec are fixed."""
    expect(api.post(PODS.at(ns), pod("p")), 201)
    status = refused(api.strategic(PODS.at(ns, "p"), {"spec": change}), 422, "Invalid")
    assert {(cause["reason"], cause["field"]) for cause in status["details"]["causes"]} <= {
        ("FieldValueForbidden", "spec"),
        ("FieldValueForbidden", "spec.containers"),
    }
    if "containers" not in change or "command" in str(change):
        assert "pod updates may not change fields other than `spec.containers[*].image`" in status["message"]


def test_immutable_metadata(api: Api, ns: str) -> None:
    """Item 39: name, namespace and creationTimestamp sent by a patch: the first two are refused, the last ignored."""
    expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)
    path = CONFIGMAPS.at(ns, "x")
    refused(api.merge(path, {"metadata": {"name": "y"}}), 400, "BadRequest")
    refused(api.merge(path, {"metadata": {"namespace": "y"}}), 400, "BadRequest")
    stored = expect(api.merge(path, {"metadata": {"creationTimestamp": "2001-01-01T00:00:00Z"}}))
    assert stored["metadata"]["creationTimestamp"] > "2020"


def test_immutable_fields_of_other_kinds(api: Api, ns: str) -> None:
    """Item 47: a Deployment's selector, a Service's cluster IP and an immutable ConfigMap or Secret are fixed."""
    expect(api.post(DEPLOYMENTS.at(ns), deployment("d", replicas=0)), 201)
    labels = {"app": "d", "more": "m"}
    change = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}}}
    answer = api.merge(DEPLOYMENTS.at(ns, "d"), {"spec": change})
    refused(answer, 422, "Invalid", contains="field is immutable", causes=[("FieldValueInvalid", "spec.selector")])
    expect(api.post(SERVICES.at(ns), SERVICES.body("s", spec={"ports": [{"port": 1}]})), 201)
    answer = api.merge(SERVICES.at(ns, "s"), {"spec": {"clusterIP": "10.96.0.200", "clusterIPs": ["10.96.0.200"]}})
    refused(answer, 422, "Invalid", contains="may not change once set")
    expect(api.post(CONFIGMAPS.at(ns), {**configmap("x"), "immutable": True}), 201)
    answer = api.merge(CONFIGMAPS.at(ns, "x"), {"data": {"key": "new"}})
    refused(answer, 422, "Invalid", causes=[("FieldValueForbidden", "data")])
    expect(api.post(SECRETS.at(ns), SECRETS.body("t", type="a/b")), 201)
    refused(api.merge(SECRETS.at(ns, "t"), {"type": "c/d"}), 422, "Invalid", causes=[("FieldValueInvalid", "type")])


def test_put_without_namespace_in_the_body(api: Api, ns: str) -> None:
    """Item 42: the namespace may be left out of the body, a wrong one is 400."""
    expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)
    assert expect(api.put(CONFIGMAPS.at(ns, "x"), configmap("x")))["metadata"]["namespace"] == ns
    refused(api.put(CONFIGMAPS.at(ns, "x"), configmap("x", namespace="other")), 400, "BadRequest")


def test_two_parallel_puts(api: Api, ns: str) -> None:
    """Item 48: of two PUTs from one version exactly one wins."""
    first = expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)

    def write(value: str) -> int:
        return api.put(CONFIGMAPS.at(ns, "x"), {**first, "data": {"key": value}}).status_code

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(write, ["one", "two"])) == [200, 409]


def test_many_parallel_patches(api: Api, ns: str) -> None:
    """Item 49: patches without a version never conflict for the client; the server retries for them."""
    expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)

    def write(index: int) -> int:
        return api.merge(CONFIGMAPS.at(ns, "x"), {"metadata": {"labels": {f"l{index}": "v"}}}).status_code

    with ThreadPoolExecutor(20) as pool:
        codes = list(pool.map(write, range(20)))
    labels = expect(api.get(CONFIGMAPS.at(ns, "x")))["metadata"]["labels"]
    assert codes == [200] * 20
    assert labels == {f"l{index}": "v" for index in range(20)}
