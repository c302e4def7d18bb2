"""Server-side apply and managedFields."""

from __future__ import annotations

import pytest

from tests.contract.kubernetes.kubecontract.client import Api, Json, expect, refused
from tests.contract.kubernetes.kubecontract.objects import CONFIGMAPS, DEPLOYMENTS, WIDGETS, configmap, container, deployment, widget


def managers(stored: Json) -> set[tuple[str, str, str]]:
    """Who manages something: (manager, operation, subresource)."""
    return {(entry["manager"], entry["operation"], entry.get("subresource", "")) for entry in stored["metadata"].get("managedFields", [])}


def fields_of(stored: Json, manager: str) -> Json:
    """What a manager owns, as a fieldsV1 tree."""
    return next(entry for entry in stored["metadata"]["managedFields"] if entry["manager"] == manager)["fieldsV1"]


def conflicts(answer: Json) -> set[tuple[str, str]]:
    causes = answer["details"]["causes"]
    assert {cause["reason"] for cause in causes} == {"FieldManagerConflict"}
    return {(cause["field"], cause["message"]) for cause in causes}


def test_apply_creates_then_updates(api: Api, ns: str) -> None:
    """Item 57: apply of a missing object is 201, of an existing one 200; managedFields tells who owns what."""
    path = CONFIGMAPS.at(ns, "x")
    stored = expect(api.apply(path, configmap("x", {"a": "1"}), manager="one"), 201)
    entry = stored["metadata"]["managedFields"][0]
    assert {key: entry[key] for key in ("manager", "operation", "apiVersion", "fieldsType", "fieldsV1")} == {
        "manager": "one",
        "operation": "Apply",
        "apiVersion": "v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {"f:a": {}}},
    }
    assert entry["time"] == stored["metadata"]["creationTimestamp"]
    stored = expect(api.apply(path, configmap("x", {"a": "2", "b": "3"}), manager="one"))
    assert fields_of(stored, "one") == {"f:data": {"f:a": {}, "f:b": {}}}
    assert stored["data"] == {"a": "2", "b": "3"}


def test_apply_of_a_custom_resource(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 57: custom resources have apply too; list-map elements are owned by key."""
    body = widget("w", ports=[{"name": "web", "port": 80}], tags=["a"], parts=["p"])
    stored = expect(api.apply(WIDGETS.at(ns, "w"), body, manager="one"), 201)
    assert fields_of(stored, "one") == {
        "f:spec": {
            "f:size": {},
            "f:parts": {},
            "f:tags": {'v:"a"': {}},
            "f:ports": {'k:{"name":"web"}': {".": {}, "f:name": {}, "f:port": {}}},
        }
    }
    assert stored["metadata"]["generation"] == 1


def test_managed_fields_of_other_writes(api: Api, ns: str) -> None:
    """Item 57: POST, PUT and patches are recorded as Update, under fieldManager or else the user agent's first word."""
    stored = expect(api.post(CONFIGMAPS.at(ns), configmap("x"), fieldManager="creator"), 201)
    assert managers(stored) == {("creator", "Update", "")}
    stored = expect(api.merge(CONFIGMAPS.at(ns, "x"), {"data": {"b": "2"}}))
    assert managers(stored) == {("creator", "Update", ""), ("kubecontract", "Update", "")}
    assert fields_of(stored, "kubecontract") == {"f:data": {"f:b": {}}}
    assert fields_of(stored, "creator") == {"f:data": {".": {}, "f:key": {}}}


def test_managed_fields_of_status(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 57: writes to a subresource are an entry of their own."""
    expect(api.post(WIDGETS.at(ns), widget("w")), 201)
    stored = expect(api.merge(WIDGETS.at(ns, "w", "status"), {"status": {"phase": "Ready"}}))
    assert managers(stored) == {("kubecontract", "Update", ""), ("kubecontract", "Update", "status")}


def test_apply_to_status(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 57: apply to /status changes the status only."""
    expect(api.apply(WIDGETS.at(ns, "w"), widget("w")), 201)
    body = {**widget("w", size="large"), "status": {"phase": "Ready"}}
    stored = expect(api.apply(WIDGETS.at(ns, "w", "status"), body, manager="status"))
    assert (stored["spec"]["size"], stored["status"]) == ("small", {"phase": "Ready"})
    assert ("status", "Apply", "status") in managers(stored)


def test_apply_to_status_of_a_missing_object(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 57: apply to /status does not create."""
    body = {**widget("w"), "status": {"phase": "Ready"}}
    refused(api.apply(WIDGETS.at(ns, "w", "status"), body), 404, "NotFound")


def test_apply_without_manager(api: Api, ns: str) -> None:
    """Item 58: fieldManager is required for apply."""
    answer = api.apply(CONFIGMAPS.at(ns, "x"), configmap("x"), manager=None)
    refused(answer, 422, "Invalid", contains="fieldManager", causes=[("FieldValueRequired", "fieldManager")])


def test_apply_with_managed_fields(api: Api, ns: str) -> None:
    """Item 59: a body with managedFields is refused."""
    stored = expect(api.apply(CONFIGMAPS.at(ns, "x"), configmap("x")), 201)
    del stored["metadata"]["resourceVersion"]
    refused(api.apply(CONFIGMAPS.at(ns, "x"), stored), 400, "BadRequest", message="metadata.managedFields must be nil")


def test_apply_needs_kind_and_version(api: Api, ns: str) -> None:
    """Item 59: apply needs apiVersion and kind in the body."""
    answer = api.apply(CONFIGMAPS.at(ns, "x"), {"metadata": {"name": "x"}, "data": {}})
    assert answer.status_code == 400


def test_conflict_and_force(api: Api, ns: str) -> None:
    """Item 60: a value of another manager is a conflict; force takes the ownership."""
    path = DEPLOYMENTS.at(ns, "d")
    expect(api.apply(path, deployment("d", replicas=0), manager="one"), 201)
    body = DEPLOYMENTS.body("d", spec={"replicas": 1})
    status = refused(api.apply(path, body, manager="two"), 409, "Conflict")
    assert status["message"] == 'Apply failed with 1 conflict: conflict with "one": .spec.replicas'
    assert conflicts(status) == {(".spec.replicas", 'conflict with "one"')}
    stored = expect(api.apply(path, body, manager="two", force="true"))
    assert stored["spec"]["replicas"] == 1
    assert fields_of(stored, "two") == {"f:spec": {"f:replicas": {}}}
    assert "f:replicas" not in fields_of(stored, "one")["f:spec"]


def test_conflict_with_an_update(api: Api, ns: str) -> None:
    """Item 60: values set by PUT or patch conflict too; the message names verb, version and time."""
    path = CONFIGMAPS.at(ns, "x")
    expect(api.post(CONFIGMAPS.at(ns), configmap("x", {"a": "1", "b": "1"}), fieldManager="editor"), 201)
    status = refused(api.apply(path, configmap("x", {"a": "2", "b": "2"}), manager="two"), 409, "Conflict")
    assert status["message"].startswith('Apply failed with 2 conflicts: conflicts with "editor" using v1')
    assert {field for field, _ in conflicts(status)} == {".data.a", ".data.b"}


def test_update_never_conflicts(api: Api, ns: str) -> None:
    """Item 60: a PUT or patch takes ownership without asking."""
    path = CONFIGMAPS.at(ns, "x")
    expect(api.apply(path, configmap("x", {"a": "1", "b": "1"}), manager="one"), 201)
    stored = expect(api.merge(path, {"data": {"a": "2"}}, fieldManager="editor"))
    assert fields_of(stored, "one") == {"f:data": {"f:b": {}}}
    assert fields_of(stored, "editor") == {"f:data": {"f:a": {}}}


def test_left_out_field_is_removed(api: Api, ns: str) -> None:
    """Item 61: what its only owner leaves out goes; what someone else owns too stays."""
    path = CONFIGMAPS.at(ns, "x")
    expect(api.apply(path, configmap("x", {"a": "1", "b": "1", "c": "1"}), manager="one"), 201)
    expect(api.apply(path, configmap("x", {"b": "1"}), manager="two"))
    stored = expect(api.apply(path, configmap("x", {"c": "1"}), manager="one"))
    assert stored["data"] == {"b": "1", "c": "1"}
    assert fields_of(stored, "two") == {"f:data": {"f:b": {}}}


def test_left_out_default_comes_back(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 61: a removed field with a default gets the default again."""
    path = WIDGETS.at(ns, "w")
    expect(api.apply(path, widget("w", replicas=4)), 201)
    assert expect(api.apply(path, widget("w")))["spec"]["replicas"] == 1


def test_shared_values(api: Api, ns: str) -> None:
    """Item 62: equal values are shared without a conflict; then each of both conflicts with a change."""
    path = CONFIGMAPS.at(ns, "x")
    expect(api.apply(path, configmap("x", {"a": "1"}), manager="one"), 201)
    stored = expect(api.apply(path, configmap("x", {"a": "1"}), manager="two"))
    assert fields_of(stored, "one") == fields_of(stored, "two") == {"f:data": {"f:a": {}}}
    status = refused(api.apply(path, configmap("x", {"a": "2"}), manager="one"), 409, "Conflict")
    assert conflicts(status) == {(".data.a", 'conflict with "two"')}


def test_apply_merges_list_maps(api: Api, ns: str) -> None:
    """Item 63: containers of two managers are merged by name; new ones come at the end."""
    path = DEPLOYMENTS.at(ns, "d")
    expect(api.apply(path, deployment("d", replicas=0), manager="one"), 201)
    side = {"template": {"spec": {"containers": [container("side")]}}}
    stored = expect(api.apply(path, DEPLOYMENTS.body("d", spec=side), manager="two"))
    assert [item["name"] for item in stored["spec"]["template"]["spec"]["containers"]] == ["main", "side"]
    gone: Json = {"template": {"spec": {"containers": []}}}
    stored = expect(api.apply(path, DEPLOYMENTS.body("d", spec=gone), manager="two"))
    assert [item["name"] for item in stored["spec"]["template"]["spec"]["containers"]] == ["main"]


def test_apply_merges_list_maps_and_sets_of_a_crd(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 63: list-type map and set of a CRD merge, atomic lists are replaced after force."""
    path = WIDGETS.at(ns, "w")
    expect(api.apply(path, widget("w", ports=[{"name": "a", "port": 1}], tags=["a"], parts=["a"]), manager="one"), 201)
    more = {"ports": [{"name": "b", "port": 2}], "tags": ["b"]}
    stored = expect(api.apply(path, WIDGETS.body("w", spec=more), manager="two"))
    assert stored["spec"]["ports"] == [{"name": "a", "port": 1}, {"name": "b", "port": 2}]
    assert stored["spec"]["tags"] == ["a", "b"]
    atomic = WIDGETS.body("w", spec={"parts": ["b"]})
    status = refused(api.apply(path, atomic, manager="three"), 409, "Conflict")
    assert conflicts(status) == {(".spec.parts", 'conflict with "one"')}
    assert expect(api.apply(path, atomic, manager="three", force="true"))["spec"]["parts"] == ["b"]


def test_conflict_inside_a_list_map(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 60: the path of a conflict names the element by its key."""
    path = WIDGETS.at(ns, "w")
    expect(api.apply(path, widget("w", ports=[{"name": "a", "port": 1}]), manager="one"), 201)
    body = WIDGETS.body("w", spec={"ports": [{"name": "a", "port": 2}]})
    status = refused(api.apply(path, body, manager="two"), 409, "Conflict")
    assert conflicts(status) == {('.spec.ports[name="a"].port', 'conflict with "one"')}


def test_same_apply_again(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 64: an identical apply changes nothing, neither the version nor the time in managedFields."""
    path = WIDGETS.at(ns, "w")
    body = widget("w", ports=[{"name": "a", "port": 1}], metadata={"labels": {"a": "b"}})
    first = expect(api.apply(path, body), 201)
    assert expect(api.apply(path, body)) == first


def test_same_apply_of_a_configmap_again(api: Api, ns: str) -> None:
    """Item 64: likewise for a built-in kind."""
    path = CONFIGMAPS.at(ns, "x")
    first = expect(api.apply(path, configmap("x")), 201)
    assert expect(api.apply(path, configmap("x"))) == first


def test_clear_managed_fields(api: Api, ns: str) -> None:
    """Item 57: a list with one empty entry resets managedFields."""
    path = CONFIGMAPS.at(ns, "x")
    expect(api.apply(path, configmap("x")), 201)
    stored = expect(api.merge(path, {"metadata": {"managedFields": [{}]}}))
    assert not stored["metadata"].get("managedFields")


@pytest.mark.parametrize("body", [[], "text"], ids=["list", "text"])
def test_apply_of_no_object(api: Api, ns: str, body: object) -> None:
    """Item 59: apply needs an object."""
    refused(api.apply(CONFIGMAPS.at(ns, "x"), body), 400, "BadRequest")


def test_apply_with_unknown_field(api: Api, ns: str) -> None:
    """Item 26: apply refuses fields which the schema does not know, whatever fieldValidation says."""
    body = DEPLOYMENTS.body("d", spec={"nonsense": 1})
    answer = api.apply(DEPLOYMENTS.at(ns, "d"), body, fieldValidation="Ignore")
    assert answer.status_code >= 400
    refused(answer, answer.status_code, contains=".spec.nonsense: field not declared in schema")


def test_apply_with_a_version(api: Api, ns: str) -> None:
    """Item 52: a resourceVersion in an apply is a precondition as well."""
    path = CONFIGMAPS.at(ns, "x")
    first = expect(api.apply(path, configmap("x", {"a": "1"})), 201)["metadata"]["resourceVersion"]
    expect(api.apply(path, configmap("x", {"a": "2"})))
    refused(api.apply(path, configmap("x", {"a": "3"}, resourceVersion=first)), 409, "Conflict")


def test_apply_with_a_version_does_not_create(api: Api, ns: str) -> None:
    """Item 52: with a resourceVersion or uid an apply of a missing object does not create it."""
    answer = api.apply(CONFIGMAPS.at(ns, "x"), configmap("x", uid="11111111-2222-3333-4444-555555555555"))
    refused(answer, 409, "Conflict")


def test_apply_dry_run(api: Api, ns: str) -> None:
    """Item 25: apply with dryRun=All stores nothing."""
    expect(api.apply(CONFIGMAPS.at(ns, "x"), configmap("x"), dryRun="All"), 201)
    refused(api.get(CONFIGMAPS.at(ns, "x")), 404)


def test_duplicate_keys_in_apply(api: Api, ns: str) -> None:
    """Item 63: two elements with one key are refused."""
    env = [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]
    body = deployment("d", replicas=0)
    body["spec"]["template"]["spec"]["containers"] = [container(env=env)]
    answer = api.apply(DEPLOYMENTS.at(ns, "d"), body)
    assert answer.status_code >= 400
    refused(answer, answer.status_code, contains='duplicate entries for key [name="A"]')
