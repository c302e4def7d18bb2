"""JSON patch, merge patch and strategic merge patch."""

from __future__ import annotations

import pytest

from tests.contract.kubernetes.kubecontract.client import Api, Json, expect, refused
from tests.contract.kubernetes.kubecontract.objects import (
    CONFIGMAPS,
    DEPLOYMENTS,
    PODS,
    WIDGETS,
    configmap,
    container,
    deployment,
    pod,
    widget,
)


@pytest.fixture
def config(api: Api, ns: str) -> str:
    """The path of a configmap {a: 1, b: 2}."""
    expect(api.post(CONFIGMAPS.at(ns), configmap("x", {"a": "1", "b": "2"})), 201)
    return CONFIGMAPS.at(ns, "x")


@pytest.fixture
def workload(api: Api, ns: str) -> str:
    """The path of a Deployment with two containers that have env and ports."""
    body = deployment("d", replicas=0)
    body["spec"]["template"]["spec"]["containers"] = [
        container(
            "main",
            env=[{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
            ports=[{"containerPort": 80, "name": "web"}, {"containerPort": 81, "name": "admin"}],
            args=["x", "y"],
        ),
        container("side"),
    ]
    expect(api.post(DEPLOYMENTS.at(ns), body), 201)
    return DEPLOYMENTS.at(ns, "d")


def pod_spec(stored: Json) -> Json:
    return stored["spec"]["template"]["spec"]


def by_name(stored: Json, name: str) -> Json:
    return next(item for item in pod_spec(stored)["containers"] if item["name"] == name)


def template_patch(**spec: object) -> Json:
    return {"spec": {"template": {"spec": spec}}}


def test_json_patch(api: Api, config: str) -> None:
    """Item 50: test, add, replace, remove, copy and move work in order."""
    operations = [
        {"op": "test", "path": "/data/a", "value": "1"},
        {"op": "add", "path": "/data/c", "value": "3"},
        {"op": "replace", "path": "/data/a", "value": "one"},
        {"op": "remove", "path": "/data/b"},
        {"op": "copy", "from": "/data/c", "path": "/data/d"},
        {"op": "move", "from": "/data/c", "path": "/data/e"},
    ]
    assert expect(api.json_patch(config, operations))["data"] == {"a": "one", "d": "3", "e": "3"}


def test_json_patch_of_lists(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 50: `-` appends, an index inserts, `~1` is a slash."""
    expect(api.post(WIDGETS.at(ns), widget("w", parts=["a", "b"], metadata={"labels": {"x/y": "z"}})), 201)
    operations = [
        {"op": "add", "path": "/spec/parts/-", "value": "c"},
        {"op": "add", "path": "/spec/parts/0", "value": "first"},
        {"op": "replace", "path": "/metadata/labels/x~1y", "value": "new"},
    ]
    stored = expect(api.json_patch(WIDGETS.at(ns, "w"), operations))
    assert stored["spec"]["parts"] == ["first", "a", "b", "c"]
    assert stored["metadata"]["labels"] == {"x/y": "new"}


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/data/a", "value": "other"},
        {"op": "remove", "path": "/data/missing"},
        {"op": "add", "path": "/nowhere/deep", "value": "x"},
    ],
    ids=["test", "remove", "add"],
)
def test_json_patch_that_does_not_fit(api: Api, config: str, operation: Json) -> None:
    """Item 50: a failed test or a path that is not there is 422, and nothing changes."""
    before = expect(api.get(config))
    refused(api.json_patch(config, [operation]), 422, "Invalid")
    assert expect(api.get(config)) == before


def test_json_patch_replaces_a_missing_key(api: Api, config: str) -> None:
    """Item 50: `replace` of a key that is not there adds it, against the letter of RFC 6902."""
    operation = {"op": "replace", "path": "/data/missing", "value": "x"}
    assert expect(api.json_patch(config, [operation]))["data"] == {"a": "1", "b": "2", "missing": "x"}


@pytest.mark.parametrize("body", [{"op": "add"}, "text", [1]], ids=["object", "text", "numbers"])
def test_json_patch_that_is_none(api: Api, config: str, body: object) -> None:
    """Item 50: a body which is no list of operations is 400."""
    refused(api.json_patch(config, body), 400, "BadRequest")


def test_json_patch_with_an_unknown_operation(api: Api, config: str) -> None:
    """Item 50: an unknown operation is 422 or 400."""
    answer = api.json_patch(config, [{"op": "shuffle", "path": "/data"}])
    assert answer.status_code in (400, 422)


def test_merge_patch(api: Api, config: str) -> None:
    """Item 51: null deletes, other values are merged."""
    assert expect(api.merge(config, {"data": {"a": None, "c": "3"}}))["data"] == {"b": "2", "c": "3"}


def test_merge_patch_replaces_lists(api: Api, workload: str) -> None:
    """Item 51: a merge patch replaces a list as a whole, even where a strategic patch would merge."""
    stored = expect(api.merge(workload, template_patch(containers=[container("only")])))
    assert [item["name"] for item in pod_spec(stored)["containers"]] == ["only"]


def test_merge_patch_of_a_custom_resource(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 51: null also removes a defaulted field, which is then defaulted again."""
    expect(api.post(WIDGETS.at(ns), widget("w", replicas=5, weight=7)), 201)
    stored = expect(api.merge(WIDGETS.at(ns, "w"), {"spec": {"replicas": None, "weight": None}}))
    assert stored["spec"] == {"replicas": 1, "size": "small"}


def test_merge_patch_that_is_none(api: Api, config: str) -> None:
    """Item 51: a merge patch must be an object."""
    refused(api.merge(config, ["a"]), 400, "BadRequest")


def test_merge_patch_with_a_stale_version(api: Api, config: str) -> None:
    """Item 52: a resourceVersion in the patch is a precondition."""
    first = expect(api.get(config))["metadata"]["resourceVersion"]
    expect(api.merge(config, {"data": {"a": "2"}}))
    answer = api.merge(config, {"metadata": {"resourceVersion": first}, "data": {"a": "3"}})
    refused(answer, 409, "Conflict", contains="the object has been modified")


def test_merge_patch_with_another_uid(api: Api, config: str) -> None:
    """Item 52: another uid in a patch is 422, unlike in a PUT."""
    uid = "11111111-2222-3333-4444-555555555555"
    answer = api.merge(config, {"metadata": {"uid": uid}, "data": {"a": "3"}})
    refused(answer, 422, "Invalid", causes=[("FieldValueInvalid", "metadata.uid")])


def test_strategic_containers(api: Api, workload: str) -> None:
    """Item 53: containers merge by name; the patched one comes first, the others stay."""
    patch = template_patch(containers=[{"name": "side", "image": "example/side:2"}])
    stored = expect(api.strategic(workload, patch))
    assert {item["name"]: item["image"] for item in pod_spec(stored)["containers"]} == {
        "main": "example/app:1",
        "side": "example/side:2",
    }
    assert [item["name"] for item in pod_spec(stored)["containers"]] == ["main", "side"]


def test_strategic_new_container(api: Api, workload: str) -> None:
    """Item 53: a new element goes in front of those which the patch does not name."""
    stored = expect(api.strategic(workload, template_patch(containers=[container("new")])))
    assert [item["name"] for item in pod_spec(stored)["containers"]] == ["new", "main", "side"]


def test_strategic_delete_from_a_list(api: Api, workload: str) -> None:
    """Item 53: `$patch: delete` removes the element of this key."""
    stored = expect(api.strategic(workload, template_patch(containers=[{"name": "side", "$patch": "delete"}])))
    assert [item["name"] for item in pod_spec(stored)["containers"]] == ["main"]


def test_strategic_order(api: Api, workload: str) -> None:
    """Item 53: `$setElementOrder` sorts the merged list."""
    order = {"$setElementOrder/containers": [{"name": "side"}, {"name": "main"}]}
    stored = expect(api.strategic(workload, template_patch(**order)))
    assert [item["name"] for item in pod_spec(stored)["containers"]] == ["side", "main"]


def test_strategic_order_must_name_what_is_patched(api: Api, workload: str) -> None:
    """Item 53: an order that leaves out an element of the patch is refused."""
    order = {"$setElementOrder/containers": [{"name": "main"}], "containers": [{"name": "side", "image": "i"}]}
    answer = api.strategic(workload, template_patch(**order))
    assert answer.status_code >= 400
    refused(answer, answer.status_code, contains="order in patch list")


def test_strategic_replace(api: Api, workload: str) -> None:
    """Item 53: `$patch: replace` replaces a list or an object as a whole."""
    stored = expect(api.strategic(workload, template_patch(containers=[container("only"), {"$patch": "replace"}])))
    assert [item["name"] for item in pod_spec(stored)["containers"]] == ["only"]
    labels = {"app": "d", "$patch": "replace"}
    expect(api.strategic(workload, {"metadata": {"labels": {"a": "b", "c": "d"}}}))
    assert expect(api.strategic(workload, {"metadata": {"labels": labels}}))["metadata"]["labels"] == {"app": "d"}


def test_strategic_retain_keys(api: Api, workload: str) -> None:
    """Item 53: `$retainKeys` drops the fields it does not name: the way from RollingUpdate to Recreate."""
    answer = api.strategic(workload, {"spec": {"strategy": {"type": "Recreate"}}})
    refused(answer, 422, "Invalid", causes=[("FieldValueForbidden", "spec.strategy.rollingUpdate")])
    patch = {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}
    assert expect(api.strategic(workload, patch))["spec"]["strategy"] == {"type": "Recreate"}


def test_strategic_environment(api: Api, workload: str) -> None:
    """Item 53: env merges by name."""
    env = [{"name": "B", "value": "two"}, {"name": "C", "value": "3"}]
    stored = expect(api.strategic(workload, template_patch(containers=[{"name": "main", "env": env}])))
    values = {item["name"]: item["value"] for item in by_name(stored, "main")["env"]}
    assert values == {"A": "1", "B": "two", "C": "3"}


def test_strategic_ports(api: Api, workload: str) -> None:
    """Item 53: ports merge by containerPort."""
    ports = [{"containerPort": 80, "name": "http"}, {"containerPort": 82}]
    stored = expect(api.strategic(workload, template_patch(containers=[{"name": "main", "ports": ports}])))
    seen = {item["containerPort"]: item.get("name") for item in by_name(stored, "main")["ports"]}
    assert seen == {80: "http", 81: "admin", 82: None}


def test_strategic_plain_lists(api: Api, workload: str) -> None:
    """Item 53: args and tolerations have no merge key and are replaced."""
    stored = expect(api.strategic(workload, template_patch(containers=[{"name": "main", "args": ["z"]}])))
    assert by_name(stored, "main")["args"] == ["z"]
    for key in ("a", "b"):
        stored = expect(api.strategic(workload, template_patch(tolerations=[{"key": key, "operator": "Exists"}])))
    assert [item["key"] for item in pod_spec(stored)["tolerations"]] == ["b"]


def test_strategic_finalizers(api: Api, config: str) -> None:
    """Item 53: finalizers are a list of primitives that merges; `$deleteFromPrimitiveList` takes out."""
    for name in ("a.dev/one", "a.dev/two"):
        stored = expect(api.strategic(config, {"metadata": {"finalizers": [name]}}))
    assert sorted(stored["metadata"]["finalizers"]) == ["a.dev/one", "a.dev/two"]
    patch = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a.dev/one"]}}
    assert expect(api.strategic(config, patch))["metadata"]["finalizers"] == ["a.dev/two"]
    assert "finalizers" not in expect(api.merge(config, {"metadata": {"finalizers": None}}))["metadata"]


def test_strategic_owners(api: Api, config: str) -> None:
    """Item 53: ownerReferences merge by uid."""
    for uid in ("u1", "u2", "u1"):
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": f"owner-{uid}", "uid": uid}
        stored = expect(api.strategic(config, {"metadata": {"ownerReferences": [reference]}}))
    assert sorted(item["uid"] for item in stored["metadata"]["ownerReferences"]) == ["u1", "u2"]


def test_strategic_conditions(api: Api, ns: str) -> None:
    """Item 53: status.conditions of a pod merge by type."""
    expect(api.post(PODS.at(ns), pod("p")), 201)
    for kind, value in [("Ready", "False"), ("Initialized", "True"), ("Ready", "True")]:
        patch = {"status": {"conditions": [{"type": kind, "status": value}]}}
        stored = expect(api.strategic(PODS.at(ns, "p", "status"), patch))
    seen = {item["type"]: item["status"] for item in stored["status"]["conditions"]}
    assert seen == {"Ready": "True", "Initialized": "True"}


def test_strategic_volumes(api: Api, workload: str) -> None:
    """Item 53: volumes merge by name and keep only the new source (retainKeys of the field)."""
    expect(api.strategic(workload, template_patch(volumes=[{"name": "v", "emptyDir": {}}])))
    patch = template_patch(volumes=[{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}])
    stored = expect(api.strategic(workload, patch))
    assert pod_spec(stored)["volumes"] == [{"name": "v", "hostPath": {"path": "/x", "type": ""}}]


def test_strategic_null(api: Api, workload: str) -> None:
    """Item 53: null deletes in a strategic patch as well."""
    stored = expect(api.strategic(workload, {"metadata": {"labels": {"a": "b"}}}))
    assert stored["metadata"]["labels"] == {"a": "b"}
    assert "labels" not in expect(api.strategic(workload, {"metadata": {"labels": {"a": None}}}))["metadata"]


def test_strategic_needs_the_merge_key(api: Api, workload: str) -> None:
    """Item 53: an element without its merge key is refused."""
    answer = api.strategic(workload, template_patch(containers=[{"image": "i"}]))
    assert answer.status_code >= 400
    refused(answer, answer.status_code, contains="does not contain declared merge key: name")


def test_strategic_of_a_custom_resource(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 54: custom resources do not know strategic patches: 415 with the list of those they know."""
    expect(api.post(WIDGETS.at(ns), widget("w")), 201)
    status = refused(api.strategic(WIDGETS.at(ns, "w"), {"spec": {"size": "large"}}), 415, "UnsupportedMediaType")
    for known in ("application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"):
        assert known in status["message"]


def test_unknown_patch_type(api: Api, config: str) -> None:
    """Item 54: plain JSON is no patch type."""
    refused(api.call("PATCH", config, {"data": {}}), 415, "UnsupportedMediaType")


@pytest.mark.parametrize("kind", ["merge", "strategic", "json_patch"])
def test_patch_of_a_missing_object(api: Api, ns: str, kind: str) -> None:
    """Item 55: a patch does not create."""
    body = [] if kind == "json_patch" else {"data": {"a": "b"}}
    refused(getattr(api, kind)(CONFIGMAPS.at(ns, "none"), body), 404, "NotFound")


def test_patch_to_an_invalid_object(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 56: a patch whose outcome is invalid is 422 and leaves the object as it was."""
    before = expect(api.post(WIDGETS.at(ns), widget("w")), 201)
    answer = api.merge(WIDGETS.at(ns, "w"), {"spec": {"size": "huge"}})
    refused(answer, 422, "Invalid", causes=[("FieldValueNotSupported", "spec.size")])
    assert expect(api.get(WIDGETS.at(ns, "w"))) == before


def test_patch_to_a_wrong_type(api: Api, config: str) -> None:
    """Item 56: a patch that puts a wrong JSON type into a built-in kind is 422 on the field `patch`."""
    answer = api.merge(config, {"data": {"a": 1}})
    refused(answer, 422, "Invalid", contains="ConfigMap.data", causes=[("FieldValueInvalid", "patch")])
    answer = api.json_patch(config, [{"op": "replace", "path": "/data/a", "value": 1}])
    refused(answer, 422, "Invalid", contains="ConfigMap.data", causes=[("FieldValueInvalid", "patch")])


def test_patch_dry_run(api: Api, config: str) -> None:
    """Item 25: a dry run of a patch answers the outcome and stores nothing."""
    before = expect(api.get(config))
    assert expect(api.merge(config, {"data": {"a": "9"}}, dryRun="All"))["data"]["a"] == "9"
    assert expect(api.get(config)) == before


def test_patch_unknown_field(api: Api, workload: str) -> None:
    """Item 26: field validation works for patches too; Strict is 422 on the field `patch` there."""
    answer = api.strategic(workload, {"spec": {"nonsense": 1}}, fieldValidation="Strict")
    message = 'strict decoding error: unknown field "spec.nonsense"'
    refused(answer, 422, "Invalid", contains=message, causes=[("FieldValueInvalid", "patch")])
    answer = api.strategic(workload, {"spec": {"nonsense": 1}}, fieldValidation="Warn")
    expect(answer)
    assert "spec.nonsense" in answer.headers["warning"]
