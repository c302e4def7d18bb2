"""Creating objects: identity, names, validation, dry run, field validation."""

from __future__ import annotations

import re

import pytest

from tests.contract.kubernetes.kubecontract.client import Api, Json, expect, refused
from tests.contract.kubernetes.kubecontract.objects import (
    CONFIGMAPS,
    DEPLOYMENTS,
    NAMESPACES,
    PODS,
    SECRETS,
    SERVICES,
    WIDGETS,
    configmap,
    container,
    deployment,
    pod,
    random_name,
    widget,
)

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
GENERATED = re.compile(r"g-[bcdfghjklmnpqrstvwxz2456789]{5}")


def test_pod_gets_its_identity(api: Api, ns: str) -> None:
    """Item 13: POST answers 201 with uid, resourceVersion, creationTimestamp and the namespace of the URL."""
    stored = expect(api.post(PODS.at(ns), pod("p")), 201)
    metadata = stored["metadata"]
    assert UUID.fullmatch(metadata["uid"])
    assert int(metadata["resourceVersion"]) > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", metadata["creationTimestamp"])
    assert metadata["namespace"] == ns
    assert (stored["kind"], stored["apiVersion"]) == ("Pod", "v1")
    assert expect(api.get(PODS.at(ns, "p"))) == stored


def test_pod_defaults(api: Api, ns: str) -> None:
    """Item 13: the stored pod carries the defaults of its spec; admission plugins add a few more."""
    by_plugins = ("containers", "tolerations", "serviceAccount", "serviceAccountName")
    spec = expect(api.post(PODS.at(ns), pod("p")), 201)["spec"]
    assert {key: spec[key] for key in spec if key not in by_plugins} == {
        "automountServiceAccountToken": False,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "securityContext": {},
        "schedulerName": "default-scheduler",
        "priority": 0,
        "enableServiceLinks": True,
        "preemptionPolicy": "PreemptLowerPriority",
    }
    assert spec["containers"][0] == {
        "name": "main",
        "image": "example/app:1",
        "resources": {},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
    }


def test_probe_and_port_defaults(api: Api, ns: str) -> None:
    """Item 13: defaults go into nested parts: probes, ports, volumes, latest tag."""
    main = container(
        image="example/app",
        ports=[{"containerPort": 8000}],
        readinessProbe={"httpGet": {"port": 8000}},
        resources={"limits": {"cpu": "500m", "memory": "1Gi"}},
    )
    body = pod("p", containers=[main], volumes=[{"name": "tmp"}, {"name": "cm", "configMap": {"name": "c"}}])
    spec = expect(api.post(PODS.at(ns), body), 201)["spec"]
    stored = spec["containers"][0]
    assert stored["imagePullPolicy"] == "Always"
    assert stored["ports"] == [{"containerPort": 8000, "protocol": "TCP"}]
    assert stored["readinessProbe"] == {
        "httpGet": {"path": "/", "port": 8000, "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
    assert stored["resources"]["requests"] == {"cpu": "500m", "memory": "1Gi"}
    assert spec["volumes"] == [
        {"name": "tmp", "emptyDir": {}},
        {"name": "cm", "configMap": {"name": "c", "defaultMode": 420}},
    ]


def test_deployment_defaults(api: Api, ns: str) -> None:
    """Item 13: a Deployment gets its strategy, history limit and deadline."""
    spec = expect(api.post(DEPLOYMENTS.at(ns), deployment("d")), 201)["spec"]
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"},
    }
    assert (spec["revisionHistoryLimit"], spec["progressDeadlineSeconds"]) == (10, 600)


def test_service_gets_an_address(api: Api, ns: str) -> None:
    """Item 13: a Service gets a cluster IP and port defaults; a headless one keeps `None`."""
    ports = [{"port": 80}]
    spec = expect(api.post(SERVICES.at(ns), SERVICES.body("s", spec={"ports": ports})), 201)["spec"]
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    assert (spec["type"], spec["sessionAffinity"], spec["internalTrafficPolicy"]) == ("ClusterIP", "None", "Cluster")
    assert spec["ports"] == [{"protocol": "TCP", "port": 80, "targetPort": 80}]
    headless = {"ports": ports, "clusterIP": "None"}
    spec = expect(api.post(SERVICES.at(ns), SERVICES.body("h", spec=headless)), 201)["spec"]
    assert (spec["clusterIP"], spec["clusterIPs"]) == ("None", ["None"])


def test_secret_string_data(api: Api, ns: str) -> None:
    """Item 13: stringData is write-only and lands base64-encoded in data; the type defaults to Opaque."""
    stored = expect(api.post(SECRETS.at(ns), SECRETS.body("s", stringData={"a": "b"})), 201)
    assert (stored["data"], stored["type"]) == ({"a": "Yg=="}, "Opaque")
    assert "stringData" not in stored


def test_namespace_gets_its_label_and_finalizer(api: Api, ns: str) -> None:
    """Item 13: a namespace carries its name as a label, the finalizer in its spec and phase Active."""
    stored = expect(api.get(NAMESPACES.at(name=ns)))
    assert stored["metadata"]["labels"] == {"kubernetes.io/metadata.name": ns}
    assert (stored["spec"], stored["status"]) == ({"finalizers": ["kubernetes"]}, {"phase": "Active"})


def test_server_fields_sent_by_the_client_are_replaced(api: Api, ns: str) -> None:
    """Item 13: uid, creationTimestamp, generation and deletionTimestamp of the body do not count."""
    sent = {
        "uid": "11111111-2222-3333-4444-555555555555",
        "creationTimestamp": "2001-01-01T00:00:00Z",
        "deletionTimestamp": "2001-01-01T00:00:00Z",
        "generation": 7,
        "selfLink": "/x",
    }
    metadata = expect(api.post(DEPLOYMENTS.at(ns), deployment("d") | {"metadata": {"name": "d", **sent}}), 201)["metadata"]
    assert metadata["uid"] != sent["uid"]
    assert metadata["creationTimestamp"] > "2020"
    assert metadata["generation"] == 1
    assert "deletionTimestamp" not in metadata


def test_same_name_again(api: Api, ns: str) -> None:
    """Item 14: a taken name is 409 AlreadyExists."""
    expect(api.post(PODS.at(ns), pod("x")), 201)
    status = refused(api.post(PODS.at(ns), pod("x")), 409, "AlreadyExists", message='pods "x" already exists')
    assert status["details"] == {"name": "x", "kind": "pods"}


def test_generate_name(api: Api, ns: str) -> None:
    """Item 15: generateName adds five characters without vowels and easily confused ones."""
    body = configmap(generateName="g-")
    first = expect(api.post(CONFIGMAPS.at(ns), body), 201)["metadata"]
    second = expect(api.post(CONFIGMAPS.at(ns), body), 201)["metadata"]
    assert GENERATED.fullmatch(first["name"])
    assert GENERATED.fullmatch(second["name"])
    assert first["name"] != second["name"]
    assert first["generateName"] == "g-"


def test_name_wins_over_generate_name(api: Api, ns: str) -> None:
    """Item 15: with both, the name is taken and generateName is kept."""
    metadata = expect(api.post(CONFIGMAPS.at(ns), configmap("x", generateName="g-")), 201)["metadata"]
    assert (metadata["name"], metadata["generateName"]) == ("x", "g-")


def test_long_generate_name_is_cut(api: Api, ns: str) -> None:
    """Item 15: the base is cut so that the whole name has 63 characters."""
    metadata = expect(api.post(CONFIGMAPS.at(ns), configmap(generateName="n" * 70)), 201)["metadata"]
    assert len(metadata["name"]) == 63
    assert metadata["name"].startswith("n" * 58)


def test_neither_name_nor_generate_name(api: Api, ns: str) -> None:
    """Item 15: without both it is 422 on metadata.name."""
    answer = api.post(CONFIGMAPS.at(ns), configmap())
    refused(
        answer,
        422,
        "Invalid",
        contains="name or generateName is required",
        causes=[("FieldValueRequired", "metadata.name")],
    )


def test_namespace_of_the_body_must_fit(api: Api, ns: str) -> None:
    """Item 16: another namespace in the body than in the URL is 400."""
    refused(
        api.post(CONFIGMAPS.at(ns), configmap("x", namespace="other")),
        400,
        "BadRequest",
        message="the namespace of the provided object does not match the namespace sent on the request",
    )


def test_unknown_namespace(api: Api) -> None:
    """Item 17: a missing namespace is 404 for the namespace, not for the object."""
    name = random_name("nowhere")
    status = refused(api.post(CONFIGMAPS.at(name), configmap("x")), 404, "NotFound")
    assert status["message"] == f'namespaces "{name}" not found'
    assert status["details"] == {"name": name, "kind": "namespaces"}


@pytest.mark.parametrize(
    "name",
    ["A_b", "-a", "a.", "ü", "a" * 254, "a/b", "a b"],
    ids=["upper", "dash", "dot", "umlaut", "long", "slash", "blank"],
)
def test_bad_names(api: Api, ns: str, name: str) -> None:
    """Item 18: a name that is no DNS subdomain is 422 on metadata.name."""
    answer = api.post(CONFIGMAPS.at(ns), configmap(name))
    refused(answer, 422, "Invalid", causes=[("FieldValueInvalid", "metadata.name")])


def test_bad_name_message(api: Api, ns: str) -> None:
    """Item 18: the message leads with kind and name and says field, type and value."""
    status = refused(api.post(PODS.at(ns), pod("A_b")), 422, "Invalid")
    assert status["message"].startswith('Pod "A_b" is invalid: metadata.name: Invalid value: "A_b": a lowercase RFC')
    assert (status["details"]["name"], status["details"]["kind"]) == ("A_b", "Pod")


@pytest.mark.parametrize(
    ("labels", "field"),
    [({"a": "v" * 64}, "metadata.labels"), ({"a b": "v"}, "metadata.labels"), ({"a": "v/v"}, "metadata.labels")],
    ids=["long", "key", "value"],
)
def test_bad_labels(api: Api, ns: str, labels: dict[str, str], field: str) -> None:
    """Item 19: label keys and values have their own grammar; 63 characters at most."""
    answer = api.post(CONFIGMAPS.at(ns), configmap("x", labels=labels))
    refused(answer, 422, "Invalid", causes=[("FieldValueInvalid", field)])


def test_too_many_annotations(api: Api, ns: str) -> None:
    """Item 20: annotations of more than 256 KiB in sum are 422."""
    annotations = {f"k{index}": "v" * 1024 for index in range(256)}
    answer = api.post(CONFIGMAPS.at(ns), configmap("x", annotations=annotations))
    refused(answer, 422, "Invalid", causes=[("FieldValueTooLong", "metadata.annotations")])


def test_resource_version_must_not_be_set(api: Api, ns: str) -> None:
    """Item 21: a resourceVersion in a POST is an error of the server and nothing is stored."""
    answer = api.post(CONFIGMAPS.at(ns), configmap("x", resourceVersion="5"))
    assert answer.status_code >= 400
    refused(answer, answer.status_code, contains="resourceVersion should not be set on objects to be created")
    refused(api.get(CONFIGMAPS.at(ns, "x")), 404)


def test_two_controllers(api: Api, ns: str) -> None:
    """Item 22: only one owner may be the controller."""
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "controller": True}
    owners = [{**reference, "name": name, "uid": name} for name in ("a", "b")]
    answer = api.post(CONFIGMAPS.at(ns), configmap("x", ownerReferences=owners))
    refused(answer, 422, "Invalid", causes=[("FieldValueInvalid", "metadata.ownerReferences")])


def test_incomplete_owner(api: Api, ns: str) -> None:
    """Item 22: an owner needs apiVersion, kind, name and uid."""
    answer = api.post(CONFIGMAPS.at(ns), configmap("x", ownerReferences=[{}]))
    fields = ("apiVersion", "kind", "name", "uid")
    causes = [("FieldValueInvalid", f"metadata.ownerReferences[0].{field}") for field in fields]
    status = refused(answer, 422, "Invalid")
    seen = {(cause["reason"], cause["field"]) for cause in status["details"]["causes"]}
    assert {field for _, field in causes} <= {field for _, field in seen}


def test_status_is_dropped_at_create(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 23: with a status subresource the status of a POST does not count."""
    stored = expect(api.post(WIDGETS.at(ns), {**widget("w"), "status": {"phase": "Ready"}}), 201)
    assert "status" not in stored


def test_pod_status_is_reset_at_create(api: Api, ns: str) -> None:
    """Item 23: a new pod is Pending, whatever was sent, with its quality-of-service class."""
    stored = expect(api.post(PODS.at(ns), {**pod("p"), "status": {"phase": "Running", "podIP": "1.2.3.4"}}), 201)
    assert stored["status"] == {"phase": "Pending", "qosClass": "BestEffort"}


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({}, "BestEffort"),
    ],
)
def test_quality_of_service(api: Api, ns: str, resources: Json, expected: str) -> None:
    """Item 23: status.qosClass follows from requests and limits."""
    stored = expect(api.post(PODS.at(ns), pod("p", containers=[container(resources=resources)])), 201)
    assert stored["status"]["qosClass"] == expected


def test_namespace_in_deletion(api: Api, ns: str) -> None:
    """Item 24: nothing new in a namespace which is going away."""
    expect(api.delete(NAMESPACES.at(name=ns)))
    status = refused(api.post(CONFIGMAPS.at(ns), configmap("x")), 403, "Forbidden")
    assert status["message"] == (
        f'configmaps "x" is forbidden: unable to create new content in namespace {ns} because it is being terminated'
    )
    assert [cause["reason"] for cause in status["details"]["causes"]] == ["NamespaceTerminating"]


def test_dry_run(api: Api, ns: str) -> None:
    """Item 25: dryRun=All answers like a create and stores nothing."""
    before = expect(api.get(CONFIGMAPS.at(ns)))["metadata"]["resourceVersion"]
    answer = expect(api.post(CONFIGMAPS.at(ns), configmap("x"), dryRun="All"), 201)
    assert UUID.fullmatch(answer["metadata"]["uid"])
    assert "resourceVersion" not in answer["metadata"]
    refused(api.get(CONFIGMAPS.at(ns, "x")), 404)
    after = expect(api.get(CONFIGMAPS.at(ns)))["metadata"]["resourceVersion"]
    assert int(after) >= int(before)


def test_dry_run_still_refuses(api: Api, ns: str) -> None:
    """Item 25: a dry run of a taken name is 409; another value than All is 422."""
    expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)
    refused(api.post(CONFIGMAPS.at(ns), configmap("x"), dryRun="All"), 409, "AlreadyExists")
    refused(api.post(CONFIGMAPS.at(ns), configmap("y"), dryRun="Some"), 422, "Invalid")


def test_unknown_field_strict(api: Api, ns: str) -> None:
    """Item 26: fieldValidation=Strict refuses an unknown field."""
    body = pod("p", nonsense=1)
    answer = api.post(PODS.at(ns), body, fieldValidation="Strict")
    refused(answer, 400, "BadRequest", contains='strict decoding error: unknown field "spec.nonsense"')


def test_unknown_field_warn(api: Api, ns: str) -> None:
    """Item 26: Warn (the default) drops the field and says so in a header."""
    for params in ({"fieldValidation": "Warn"}, {}):
        answer = api.post(PODS.at(ns), pod(f"p{len(params)}", nonsense=1), **params)
        assert "nonsense" not in expect(answer, 201)["spec"]
        assert answer.headers["warning"] == '299 - "unknown field \\"spec.nonsense\\""'


def test_unknown_field_ignore(api: Api, ns: str) -> None:
    """Item 26: Ignore drops the field silently."""
    answer = api.post(PODS.at(ns), pod("p", nonsense=1), fieldValidation="Ignore")
    assert "nonsense" not in expect(answer, 201)["spec"]
    assert "warning" not in answer.headers


def test_duplicate_field_strict(api: Api, ns: str) -> None:
    """Item 26: a JSON key which comes twice counts as a strict error as well."""
    content = b'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"a":"1","a":"2"}}'
    answer = api.call("POST", CONFIGMAPS.at(ns), content=content, params={"fieldValidation": "Strict"})
    refused(answer, 400, "BadRequest", contains='strict decoding error: duplicate field "data.a"')


def test_bad_field_validation_value(api: Api, ns: str) -> None:
    """Item 26: fieldValidation has three values."""
    refused(api.post(CONFIGMAPS.at(ns), configmap("x"), fieldValidation="Maybe"), 422, "Invalid")


def test_unknown_field_of_a_custom_resource(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 26: custom resources follow the same three modes; the field is pruned."""
    body = widget("w", nonsense=1)
    answer = api.post(WIDGETS.at(ns), body, fieldValidation="Strict")
    refused(answer, 400, "BadRequest", contains='strict decoding error: unknown field "spec.nonsense"')
    answer = api.post(WIDGETS.at(ns), body)
    assert "nonsense" not in expect(answer, 201)["spec"]
    assert answer.headers["warning"] == '299 - "unknown field \\"spec.nonsense\\""'
    answer = api.post(WIDGETS.at(ns), widget("v", nonsense=1), fieldValidation="Ignore")
    assert "nonsense" not in expect(answer, 201)["spec"]


def test_missing_required_fields(api: Api, ns: str) -> None:
    """Item 18: built-in kinds name every missing field."""
    answer = api.post(PODS.at(ns), PODS.body("p", spec={"containers": [{"name": "a"}]}))
    refused(answer, 422, "Invalid", causes=[("FieldValueRequired", "spec.containers[0].image")])
    answer = api.post(PODS.at(ns), PODS.body("p", spec={}))
    refused(answer, 422, "Invalid", causes=[("FieldValueRequired", "spec.containers")])


def test_duplicate_container_names(api: Api, ns: str) -> None:
    """Item 18: names of containers are unique in a pod."""
    answer = api.post(PODS.at(ns), pod("p", containers=[container("a"), container("a")]))
    refused(answer, 422, "Invalid", causes=[("FieldValueDuplicate", "spec.containers[1].name")])


def test_selector_must_match_the_template(api: Api, ns: str) -> None:
    """Item 18: a Deployment's selector must match its template's labels."""
    body = deployment("d")
    body["spec"]["selector"]["matchLabels"] = {"app": "other"}
    answer = api.post(DEPLOYMENTS.at(ns), body)
    refused(answer, 422, "Invalid", causes=[("FieldValueInvalid", "spec.template.metadata.labels")])


def test_bad_quantity(api: Api, ns: str) -> None:
    """Item 12: a quantity which cannot be parsed fails while decoding."""
    body = pod("p", containers=[container(resources={"limits": {"cpu": "lots"}})])
    refused(api.post(PODS.at(ns), body), 400, "BadRequest", contains="quantities must match the regular expression")


def test_requests_over_limits(api: Api, ns: str) -> None:
    """Item 18: requests may not exceed limits; extended resources must be equal."""
    resources = {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}
    answer = api.post(PODS.at(ns), pod("p", containers=[container(resources=resources)]))
    refused(answer, 422, "Invalid", causes=[("FieldValueInvalid", "spec.containers[0].resources.requests")])
