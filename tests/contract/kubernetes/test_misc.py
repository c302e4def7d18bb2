"""Leases, events, bindings, evictions, controller revisions, webhooks, logs, authentication and authorization."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.contract.kubernetes.kubecontract.client import Api, Json, expect, refused
from tests.contract.kubernetes.kubecontract.objects import (
    BUDGETS,
    CONFIGMAPS,
    EVENTS,
    LEASES,
    MUTATING,
    NODES,
    PODS,
    REVISIONS,
    VALIDATING,
    WIDGETS,
    Resource,
    absent_node,
    configmap,
    container,
    pod,
    random_name,
    widget,
)
from tests.contract.kubernetes.kubecontract.waiting import eventually
from tests.contract.kubernetes.kubecontract.webhook import Answer, WebhookServer, json_patch_answer

MICRO = "2026-01-02T03:04:05.678901Z"


def lease(holder: str) -> Json:
    return LEASES.body("l", spec={"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": MICRO})


def test_lease(api: Api, ns: str) -> None:
    """Item 92: microseconds survive; of two holders that write from one version one loses."""
    stored = expect(api.post(LEASES.at(ns), lease("one")), 201)
    assert stored["spec"]["renewTime"] == MICRO
    codes = []
    for holder in ("one", "two"):
        body = {**stored, "spec": lease(holder)["spec"]}
        codes.append(api.put(LEASES.at(ns, "l"), body | {"spec": body["spec"] | {"leaseTransitions": 1}}).status_code)
    assert codes == [200, 409]
    assert expect(api.get(LEASES.at(ns, "l")))["spec"]["holderIdentity"] == "one"


def test_bad_lease(api: Api, ns: str) -> None:
    """Item 92: a lease's duration must be positive."""
    body = lease("one")
    body["spec"]["leaseDurationSeconds"] = 0
    refused(api.post(LEASES.at(ns), body), 422, "Invalid", causes=[("FieldValueInvalid", "spec.leaseDurationSeconds")])


def test_lease_is_created_by_put(api: Api, ns: str) -> None:
    """Item 92: PUT of a missing lease creates it: 201."""
    answer = api.put(LEASES.at(ns, "l"), lease("one"))
    assert answer.status_code in (201, 404)
    if answer.status_code == 201:
        assert answer.json()["metadata"]["uid"]


def event(name: str, about: Json) -> Json:
    reference = {"kind": "Pod", "namespace": about["metadata"]["namespace"], "name": about["metadata"]["name"]}
    reference |= {"uid": about["metadata"]["uid"], "apiVersion": "v1"}
    times = {"firstTimestamp": "2026-01-02T03:04:05Z", "lastTimestamp": "2026-01-02T03:04:05Z"}
    fields = {"reason": "Tested", "message": "as told", "type": "Normal", "count": 1, "source": {"component": "test"}}
    return EVENTS.body(name, involvedObject=reference, **fields, **times)


def test_events(api: Api, ns: str) -> None:
    """Item 93: events are found by the uid they are about; their count is patched."""
    about = expect(api.post(PODS.at(ns), pod("p")), 201)
    stored = expect(api.post(EVENTS.at(ns), event("e", about)), 201)
    assert (stored["eventTime"], stored["reportingComponent"]) == (None, "")
    query = f"involvedObject.uid={about['metadata']['uid']}"
    assert len(expect(api.get(EVENTS.at(ns), fieldSelector=query))["items"]) == 1
    patch = {"count": 2, "lastTimestamp": "2026-01-02T03:05:05Z"}
    assert expect(api.strategic(EVENTS.at(ns, "e"), patch))["count"] == 2


def test_events_of_both_groups_are_the_same(api: Api, ns: str) -> None:
    """Item 93: events.k8s.io/v1 shows the same objects under other names."""
    about = expect(api.post(PODS.at(ns), pod("p")), 201)
    expect(api.post(EVENTS.at(ns), event("e", about)), 201)
    other = expect(api.get(f"/apis/events.k8s.io/v1/namespaces/{ns}/events/e"))
    assert (other["note"], other["deprecatedCount"], other["regarding"]["name"]) == ("as told", 1, "p")


def test_event_in_another_namespace(api: Api, ns: str) -> None:
    """Item 93: an event lives in the namespace of its object."""
    body = event("e", {"metadata": {"namespace": "other", "name": "p", "uid": "u"}})
    refused(api.post(EVENTS.at(ns), body), 422, "Invalid", causes=[("FieldValueInvalid", "involvedObject.namespace")])


def binding(name: str, node: str) -> Json:
    body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}}
    return body | {"target": {"apiVersion": "v1", "kind": "Node", "name": node}}


def test_binding(api: Api, ns: str) -> None:
    """Item 94: a binding sets the node and PodScheduled; a second one is 409."""
    expect(api.post(PODS.at(ns), pod("p")), 201)
    answer = expect(api.post(PODS.at(ns, "p", "binding"), binding("p", absent_node(ns))), 201)
    assert (answer["kind"], answer["status"]) == ("Status", "Success")
    stored = expect(api.get(PODS.at(ns, "p")))
    assert stored["spec"]["nodeName"] == absent_node(ns)
    conditions = {entry["type"]: entry["status"] for entry in stored["status"]["conditions"]}
    assert conditions["PodScheduled"] == "True"
    status = refused(api.post(PODS.at(ns, "p", "binding"), binding("p", "node-y")), 409, "Conflict")
    assert "pod p is already assigned to node" in status["message"]


def test_binding_by_the_old_path(api: Api, ns: str) -> None:
    """Item 94: POST bindings is the other way to bind."""
    expect(api.post(PODS.at(ns), pod("p")), 201)
    expect(api.post(f"/api/v1/namespaces/{ns}/bindings", binding("p", absent_node(ns))), 201)
    assert expect(api.get(PODS.at(ns, "p")))["spec"]["nodeName"] == absent_node(ns)


def test_binding_of_a_missing_pod(api: Api, ns: str) -> None:
    """Item 94: binding a missing pod is 404."""
    refused(api.post(PODS.at(ns, "p", "binding"), binding("p", absent_node(ns))), 404, "NotFound")


def running_pod(api: Api, ns: str, name: str) -> Json:
    """A pod which this test, in place of a node's agent, reports as running and ready."""
    expect(api.post(PODS.at(ns), pod(name, nodeName=absent_node(ns), metadata={"labels": {"app": "a"}})), 201)
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    return expect(api.merge(PODS.at(ns, name, "status"), {"status": status}))


def eviction(name: str, **options: object) -> Json:
    body: Json = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    return body | ({"deleteOptions": options} if options else {})


def test_eviction(api: Api, ns: str) -> None:
    """Item 95: an eviction is a graceful delete, answered with 201, and leaves a condition."""
    running_pod(api, ns, "p")
    answer = expect(api.post(PODS.at(ns, "p", "eviction"), eviction("p")), 201)
    assert (answer["kind"], answer["status"]) == ("Status", "Success")
    stored = expect(api.get(PODS.at(ns, "p")))
    assert "deletionTimestamp" in stored["metadata"]
    target = next(entry for entry in stored["status"]["conditions"] if entry["type"] == "DisruptionTarget")
    assert (target["status"], target["reason"]) == ("True", "EvictionByEvictionAPI")


def test_eviction_against_a_budget(api: Api, ns: str) -> None:
    """Item 95: a disruption budget that allows none makes it 429 with a cause."""
    running_pod(api, ns, "p")
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "a"}}}
    expect(api.post(BUDGETS.at(ns), BUDGETS.body("b", spec=spec)), 201)
    answer = api.post(PODS.at(ns, "p", "eviction"), eviction("p"))
    status = refused(answer, 429, "TooManyRequests")
    assert status["message"] == "Cannot evict pod as it would violate the pod's disruption budget."
    assert [cause["reason"] for cause in status["details"]["causes"]] == ["DisruptionBudget"]
    assert "deletionTimestamp" not in expect(api.get(PODS.at(ns, "p")))["metadata"]


@pytest.mark.kcm
def test_eviction_within_a_budget(api: Api, ns: str) -> None:
    """Item 95: the controller counts healthy pods: one of two may go, the second is refused."""
    for name in ("p", "q"):
        running_pod(api, ns, name)
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "a"}}}
    expect(api.post(BUDGETS.at(ns), BUDGETS.body("b", spec=spec)), 201)

    def counted() -> bool:
        status = expect(api.get(BUDGETS.at(ns, "b"))).get("status", {})
        return (status.get("observedGeneration"), status.get("disruptionsAllowed")) == (1, 1)

    eventually(counted, what="the count of healthy pods")
    expect(api.post(PODS.at(ns, "p", "eviction"), eviction("p")), 201)
    refused(api.post(PODS.at(ns, "q", "eviction"), eviction("q")), 429, "TooManyRequests")


def test_controller_revision(api: Api, ns: str) -> None:
    """Item 96: the data of a revision cannot change, its number and labels can.

    The data are compared as bytes: a body with blanks between its tokens can never be patched again.
    """
    stored = expect(api.post(REVISIONS.at(ns), REVISIONS.body("r", revision=1, data={"spec": {"a": 1}})), 201)
    assert stored["data"] == {"spec": {"a": 1}}
    answer = api.merge(REVISIONS.at(ns, "r"), {"data": {"spec": {"a": 2}}})
    refused(answer, 422, "Invalid", contains="field is immutable", causes=[("FieldValueInvalid", "data")])
    patch = {"revision": 2, "metadata": {"labels": {"a": "b"}}}
    assert expect(api.merge(REVISIONS.at(ns, "r"), patch))["revision"] == 2


@pytest.fixture(scope="session")
def hook_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebhookServer]:
    server = WebhookServer(tmp_path_factory.mktemp("webhook"))
    yield server
    server.close()


Register = Callable[..., WebhookServer]


@pytest.fixture
def register(admin: Api, ns: str, hook_server: WebhookServer) -> Iterator[Register]:
    """Registers a webhook for CREATE and UPDATE of configmaps and widgets in the namespace of the test."""
    created: list[str] = []

    def add(kind: Resource, answer: Answer, dead: bool = False, **fields: object) -> WebhookServer:
        name = random_name("hook")
        hook_server.answers[f"/{name}"] = answer
        hook_server.seen.clear()
        config = {"url": "https://127.0.0.1:1/dead"} if dead else hook_server.client_config(f"/{name}")
        rule = {"apiGroups": ["", "contract.dev"], "apiVersions": ["v1"], "resources": ["configmaps", "widgets"]}
        hook = {
            "name": f"{name}.contract.dev",
            "clientConfig": config,
            "rules": [{**rule, "operations": ["CREATE", "UPDATE"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": ns}},
            "objectSelector": {"matchExpressions": [{"key": "unhooked", "operator": "DoesNotExist"}]},
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 2,
            **fields,
        }
        expect(admin.post(kind.at(), kind.body(name, webhooks=[hook])), 201)
        created.append(kind.at(name=name))
        return hook_server

    yield add
    for path in created:
        admin.delete(path)


def hooked(api: Api, ns: str, works: Callable[[int, Json], bool]) -> None:
    """Wait until the server has noticed the configuration; dry runs do not leave anything behind."""

    def check() -> bool:
        answer = api.post(CONFIGMAPS.at(ns), configmap("probe"), dryRun="All")
        return works(answer.status_code, answer.json())

    eventually(check, what="the webhook")


@pytest.mark.webhook
def test_mutating_webhook(api: Api, ns: str, register: Register) -> None:
    """Item 97: the JSON patch of a mutating webhook is applied; the review holds what it should."""
    operations = [{"op": "add", "path": "/data/added", "value": "yes"}]
    server = register(MUTATING, lambda request: json_patch_answer(operations))
    hooked(api, ns, lambda code, body: "added" in body.get("data", {}))
    server.seen.clear()
    assert expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)["data"] == {"key": "value", "added": "yes"}
    review = server.seen[0]
    assert (review["kind"], review["apiVersion"]) == ("AdmissionReview", "admission.k8s.io/v1")
    request = review["request"]
    assert (request["operation"], request["namespace"], request["name"]) == ("CREATE", ns, "x")
    assert request["kind"] == {"group": "", "version": "v1", "kind": "ConfigMap"}
    assert request["resource"] == {"group": "", "version": "v1", "resource": "configmaps"}
    assert (request["oldObject"], request["dryRun"]) == (None, False)
    assert request["object"]["data"] == {"key": "value"}
    assert "username" in request["userInfo"]


@pytest.mark.webhook
def test_mutation_comes_before_validation(api: Api, ns: str, widgets_crd: Json, register: Register) -> None:
    """Item 97: what the webhook makes is validated: it can repair an object and it can break one."""
    operations = [{"op": "add", "path": "/spec/size", "value": "large"}]

    def answer(request: Json) -> Json:
        is_widget = request["kind"]["kind"] == "Widget"
        return json_patch_answer(operations if is_widget else [{"op": "add", "path": "/data/added", "value": "y"}])

    register(MUTATING, answer)
    hooked(api, ns, lambda code, body: "added" in body.get("data", {}))
    stored = expect(api.post(WIDGETS.at(ns), widget("w", size="huge")), 201)
    assert stored["spec"]["size"] == "large"
    operations[0]["value"] = "enormous"
    answer_code = api.post(WIDGETS.at(ns), widget("v"))
    refused(answer_code, 422, "Invalid", causes=[("FieldValueNotSupported", "spec.size")])


@pytest.mark.webhook
def test_validating_webhook(api: Api, ns: str, register: Register) -> None:
    """Item 97: a denial is 400 without a reason by default, or what the webhook says."""
    denial: Json = {"allowed": False}
    register(VALIDATING, lambda request: denial)
    hooked(api, ns, lambda code, body: code >= 400)
    status = refused(api.post(CONFIGMAPS.at(ns), configmap("x")), 400)
    assert "reason" not in status
    assert status["message"].startswith('admission webhook "hook-')
    assert status["message"].endswith('" denied the request without explanation')
    denial["status"] = {"message": "not today", "code": 418, "reason": "Teapot"}
    status = refused(api.post(CONFIGMAPS.at(ns), configmap("x")), 418, "Teapot")
    assert status["message"].endswith("denied the request: not today")
    denial.clear()
    denial.update(allowed=True, warnings=["mind the gap"])
    answer = api.post(CONFIGMAPS.at(ns), configmap("x"))
    expect(answer, 201)
    assert answer.headers["warning"] == '299 - "mind the gap"'


@pytest.mark.webhook
def test_webhook_at_update(api: Api, ns: str, register: Register) -> None:
    """Item 97: at an update the old object comes along; objects outside the selector are not asked about."""
    server = register(VALIDATING, lambda request: {"allowed": request["name"] != "probe"})
    hooked(api, ns, lambda code, body: code == 400)
    expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)
    server.seen.clear()
    expect(api.merge(CONFIGMAPS.at(ns, "x"), {"data": {"key": "new"}}))
    request = server.seen[0]["request"]
    assert request["operation"] == "UPDATE"
    assert (request["oldObject"]["data"], request["object"]["data"]) == ({"key": "value"}, {"key": "new"})
    server.seen.clear()
    expect(api.post(CONFIGMAPS.at(ns), configmap("y", labels={"unhooked": "yes"})), 201)
    assert server.seen == []


@pytest.mark.webhook
def test_dead_webhook(api: Api, ns: str, register: Register) -> None:
    """Item 97: a webhook that cannot be reached fails the request with 500 (failurePolicy Fail)."""
    register(VALIDATING, lambda request: {}, dead=True, failurePolicy="Fail")
    hooked(api, ns, lambda code, body: code == 500)
    refused(api.post(CONFIGMAPS.at(ns), configmap("x")), 500, "InternalError", contains="failed calling webhook")


@pytest.mark.webhook
def test_dead_webhook_ignored(api: Api, ns: str, register: Register) -> None:
    """Item 97: with failurePolicy Ignore the request passes."""
    register(VALIDATING, lambda request: {}, dead=True, failurePolicy="Ignore")
    register(VALIDATING, lambda request: {"allowed": request["name"] != "probe"})
    hooked(api, ns, lambda code, body: code == 400)
    expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)


def test_log_of_an_unbound_pod(api: Api, ns: str) -> None:
    """Item 98: a pod without a node answers 204; an unknown container and a missing pod are errors."""
    expect(api.post(PODS.at(ns), pod("p", containers=[container("a"), container("b")])), 201)
    answer = api.get(PODS.at(ns, "p", "log"), container="a")
    assert (answer.status_code, answer.text) in [(204, ""), (200, "")]
    refused(api.get(PODS.at(ns, "p", "log")), 400, "BadRequest", contains="a container name must be specified")
    answer = api.get(PODS.at(ns, "p", "log"), container="c")
    refused(answer, 400, "BadRequest", message="container c is not valid for pod p")
    refused(api.get(PODS.at(ns, "q", "log")), 404, "NotFound")


def test_log_of_a_bound_pod_without_its_node(api: Api, ns: str) -> None:
    """Item 98: a pod on a node that does not exist: an error of the server."""
    expect(api.post(PODS.at(ns), pod("p", nodeName=absent_node(ns))), 201)
    answer = api.get(PODS.at(ns, "p", "log"))
    assert answer.status_code in (404, 500)


@pytest.mark.parametrize("query", [{"tailLines": -1}, {"limitBytes": 0}, {"sinceSeconds": 0}], ids=["tail", "limit", "since"])
def test_bad_log_options(api: Api, ns: str, query: dict[str, int]) -> None:
    """Item 98: log options are validated."""
    expect(api.post(PODS.at(ns), pod("p")), 201)
    refused(api.get(PODS.at(ns, "p", "log"), **query), 422, "Invalid")


@pytest.mark.kubelet
def test_log_of_a_running_pod(api: Api, ns: str) -> None:
    """Item 98: with a node: tailLines, timestamps, and a follow that ends with the container."""
    image = os.environ.get("CONTRACT_IMAGE", "busybox:1.36")
    main = container(image=image, command=["sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done; sleep 1"])
    expect(api.post(PODS.at(ns), pod("p", containers=[main], restartPolicy="Never")), 201)
    path = PODS.at(ns, "p", "log")
    eventually(lambda: api.get(path).status_code == 200 and "line 5" in api.get(path).text, timeout=60)
    assert api.get(path, tailLines=2).text == "line 4\nline 5\n"
    assert api.get(path, follow="true").text.endswith("line 5\n")


@pytest.mark.parametrize("token", [None, "wrong"], ids=["none", "wrong"])
def test_authentication(ns: str, stranger: Callable[[str | None], Api], token: str | None) -> None:
    """Item 99: a wrong token is 401; without any token it is 401 or, for an anonymous user, 403."""
    answer = stranger(token).get(PODS.at(ns))
    if token is None:
        assert answer.status_code in (401, 403)
        assert answer.json()["kind"] == "Status"
    else:
        refused(answer, 401, "Unauthorized", message="Unauthorized")


@pytest.mark.rbac
def test_authorization(ns: str, nobody: Api) -> None:
    """Item 99: a user without rights is 403; the message says who may not do what where."""
    status = refused(nobody.get(PODS.at(ns)), 403, "Forbidden")
    assert status["message"] == (f'pods is forbidden: User "nobody" cannot list resource "pods" in API group "" in the namespace "{ns}"')
    status = refused(nobody.get(PODS.at(ns, "x")), 403, "Forbidden")
    assert status["message"].startswith('pods "x" is forbidden: User "nobody" cannot get resource "pods"')
    status = refused(nobody.get(NODES.at()), 403, "Forbidden")
    assert status["message"].endswith('cannot list resource "nodes" in API group "" at the cluster scope')


@pytest.mark.rbac
def test_discovery_needs_no_rights(nobody: Api) -> None:
    """Item 99: every logged-in user can read discovery, health and version."""
    for path in ("/api", "/apis", "/api/v1", "/version", "/readyz", "/openapi/v3"):
        assert nobody.get(path).status_code == 200, path


def test_access_review(api: Api, ns: str) -> None:
    """Item 99: a SelfSubjectAccessReview answers whether the caller may."""
    attributes = {"namespace": ns, "verb": "list", "resource": "pods"}
    kind = Resource("/apis/authorization.k8s.io/v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", False)
    answer = expect(api.post(kind.at(), kind.body(spec={"resourceAttributes": attributes})), 201)
    assert answer["status"]["allowed"] is True


def test_who_am_i(api: Api) -> None:
    """Item 99: a SelfSubjectReview tells the user name and groups."""
    kind = Resource("/apis/authentication.k8s.io/v1", "selfsubjectreviews", "SelfSubjectReview", False)
    status = expect(api.post(kind.at(), kind.body()), 201)["status"]
    assert "system:authenticated" in status["userInfo"]["groups"]


def test_node(api: Api) -> None:
    """Item 94: nodes are cluster-wide, can be cordoned, and report through /status."""
    name = random_name("node")
    try:
        stored = expect(api.post(NODES.at(), NODES.body(name)), 201)
        assert "namespace" not in stored["metadata"]
        taints = expect(api.strategic(NODES.at(name=name), {"spec": {"unschedulable": True}}))["spec"]
        assert taints["unschedulable"] is True
        status = {"capacity": {"cpu": "4", "example.dev/gpu": "8"}, "allocatable": {"cpu": "4", "example.dev/gpu": "8"}}
        stored = expect(api.merge(NODES.at(name=name, sub="status"), {"status": status}))
        assert stored["status"]["allocatable"]["example.dev/gpu"] == "8"
    finally:
        api.delete(NODES.at(name=name))
