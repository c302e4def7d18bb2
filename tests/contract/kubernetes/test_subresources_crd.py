"""Scale, CustomResourceDefinitions and their schemas."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Iterator

import pytest

from tests.contract.kubernetes.kubecontract.client import AS_TABLE, Api, Json, expect, refused
from tests.contract.kubernetes.kubecontract.objects import (
    CRDS,
    DEPLOYMENTS,
    WIDGET_SPEC,
    WIDGETS,
    Resource,
    crd,
    deployment,
    object_schema,
    widget,
)
from tests.contract.kubernetes.kubecontract.waiting import eventually

STRING: Json = {"type": "string"}
NUMBER: Json = {"type": "integer"}
RULES = [
    {"rule": "self.low <= self.high", "message": "low must not exceed high"},
    {"rule": "self.high >= oldSelf.high", "message": "high must not shrink"},
]
SCHEMAS: dict[str, Json] = {
    "established": object_schema({"a": STRING}),
    "columns": object_schema({"size": STRING}),
    "default": object_schema({"color": STRING}),
    "ratcheting": object_schema({"color": STRING, "n": NUMBER}),
    "rules": object_schema({"low": NUMBER, "high": NUMBER}, **{"x-kubernetes-validations": RULES}),
    "deletion": object_schema({"a": STRING}),
    "versions": object_schema({"a": STRING}),
}
"""The schema of .spec for each test that needs a CRD of its own."""


@pytest.fixture(scope="module")
def gadgets_of(admin: Api) -> Iterator[Callable[[str], Resource]]:
    """CRDs called gadgets, each in a random group.

    All are made at once: a server holds back the first objects of a CRD for two seconds after it was established.
    """
    made: dict[str, Resource] = {}
    for name, spec in SCHEMAS.items():
        group = f"g{secrets.token_hex(4)}.contract.dev"
        expect(admin.post(CRDS.at(), crd("gadgets", "Gadget", group, spec=spec)), 201)
        made[name] = Resource(f"/apis/{group}/v1", "gadgets", "Gadget")

    def served(name: str) -> Resource:
        resource = made[name]
        eventually(lambda: admin.get(resource.at()).status_code == 200, what="service of the CRD")
        return resource

    yield served
    for resource in made.values():
        admin.delete(CRDS.at(name=crd_name(resource)))


def crd_name(resource: Resource) -> str:
    return f"{resource.plural}.{resource.api_version.split('/')[0]}"


def test_scale_of_a_custom_resource(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 86: /scale reads replicas and selector by the paths of the CRD."""
    stored = expect(api.post(WIDGETS.at(ns), widget("w", replicas=2)), 201)
    expect(api.merge(WIDGETS.at(ns, "w", "status"), {"status": {"replicas": 1, "selector": "app=w"}}))
    scale = expect(api.get(WIDGETS.at(ns, "w", "scale")))
    assert (scale["kind"], scale["apiVersion"]) == ("Scale", "autoscaling/v1")
    assert (scale["spec"], scale["status"]) == ({"replicas": 2}, {"replicas": 1, "selector": "app=w"})
    assert scale["metadata"]["uid"] == stored["metadata"]["uid"]
    assert set(scale["metadata"]) == {"name", "namespace", "uid", "resourceVersion", "creationTimestamp"}


def test_change_of_scale(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 86: PATCH and PUT of /scale change spec.replicas and the generation."""
    expect(api.post(WIDGETS.at(ns), widget("w")), 201)
    path = WIDGETS.at(ns, "w", "scale")
    assert expect(api.merge(path, {"spec": {"replicas": 5}}))["spec"]["replicas"] == 5
    stored = expect(api.get(WIDGETS.at(ns, "w")))
    assert (stored["spec"]["replicas"], stored["metadata"]["generation"]) == (5, 2)
    scale = expect(api.get(path))
    scale["spec"]["replicas"] = 6
    assert expect(api.put(path, scale))["spec"]["replicas"] == 6
    refused(api.put(path, scale), 409, "Conflict")


def test_negative_scale(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 86: a negative number of replicas is 422."""
    expect(api.post(WIDGETS.at(ns), widget("w")), 201)
    answer = api.merge(WIDGETS.at(ns, "w", "scale"), {"spec": {"replicas": -1}})
    status = refused(answer, 422, "Invalid")
    assert {cause["field"].lstrip(".") for cause in status["details"]["causes"]} == {"spec.replicas"}


def test_scale_of_a_deployment(api: Api, ns: str) -> None:
    """Item 86: Deployments have it too; the selector is text."""
    expect(api.post(DEPLOYMENTS.at(ns), deployment("d", replicas=0)), 201)
    scale = expect(api.merge(DEPLOYMENTS.at(ns, "d", "scale"), {"spec": {"replicas": 1}}))
    assert (scale["spec"]["replicas"], scale["status"]["selector"]) == (1, "app=d")
    assert expect(api.get(DEPLOYMENTS.at(ns, "d")))["metadata"]["generation"] == 2


def test_crd_becomes_established(api: Api, gadgets_of: Callable[[str], Resource]) -> None:
    """Item 87: a new CRD gets NamesAccepted and Established, and its resource is served."""
    gadgets = gadgets_of("established")

    def conditions() -> dict[str, str]:
        status = expect(api.get(CRDS.at(name=crd_name(gadgets))))["status"]
        return {entry["type"]: entry["status"] for entry in status.get("conditions", [])}

    eventually(lambda: conditions().get("Established") == "True", timeout=5, what="Established")
    assert conditions()["NamesAccepted"] == "True"
    status = expect(api.get(CRDS.at(name=crd_name(gadgets))))["status"]
    assert status["storedVersions"] == ["v1"]
    assert status["acceptedNames"]["kind"] == "Gadget"
    eventually(lambda: "gadgets" in api.get(gadgets.prefix).text, timeout=5, what="discovery")
    group = gadgets.api_version.split("/")[0]
    eventually(lambda: group in api.get("/apis").text, timeout=5, what="the group")


def test_names_of_a_crd(api: Api) -> None:
    """Item 87: the name of a CRD is PLURAL.GROUP."""
    body = crd("gadgets", "Gadget", "wrong.contract.dev")
    body["metadata"]["name"] = "gadgets.other.contract.dev"
    refused(api.post(CRDS.at(), body), 422, "Invalid", causes=[("FieldValueInvalid", "metadata.name")])


def test_printer_columns(api: Api, ns: str, gadgets_of: Callable[[str], Resource]) -> None:
    """Item 87: without printer columns a table has Name and Age."""
    gadgets = gadgets_of("columns")
    name = crd_name(gadgets)
    expect(api.json_patch(CRDS.at(name=name), [{"op": "remove", "path": "/spec/versions/0/additionalPrinterColumns"}]))

    def columns() -> list[str]:
        """Empty while the server prepares the changed resource (429)."""
        answer = api.get(gadgets.at(ns), accept=AS_TABLE)
        return [column["name"] for column in answer.json().get("columnDefinitions", [])]

    eventually(lambda: columns() == ["Name", "Age"], what="the columns")


@pytest.mark.parametrize(
    ("spec", "code", "reason", "field"),
    [
        ({"size": None}, 422, "FieldValueRequired", "spec.size"),
        ({"size": 3}, 422, "FieldValueTypeInvalid", "spec.size"),
        ({"size": "huge"}, 422, "FieldValueNotSupported", "spec.size"),
        ({"weight": 0}, 422, "FieldValueInvalid", "spec.weight"),
        ({"weight": 101}, 422, "FieldValueInvalid", "spec.weight"),
        ({"weight": 1.5}, 422, "FieldValueTypeInvalid", "spec.weight"),
        ({"code": "ABC"}, 422, "FieldValueInvalid", "spec.code"),
        ({"code": "a" * 9}, 422, "FieldValueTooLong", "spec.code"),
        ({"limit": True}, 422, "FieldValueTypeInvalid", "spec.limit"),
        ({"ports": [{"port": 1}]}, 422, "FieldValueRequired", "spec.ports[0].name"),
        ({"ports": [{"name": "a"}, {"name": "a"}]}, 422, "FieldValueDuplicate", "spec.ports[1]"),
        ({"tags": ["a", "a"]}, 422, "FieldValueDuplicate", "spec.tags[1]"),
        ({"parts": "a"}, 422, "FieldValueTypeInvalid", "spec.parts"),
    ],
    ids=lambda value: "" if isinstance(value, int | str) else "-".join(value) + f"-{str(next(iter(value.values())))[:6]}",
)
def test_schema_violations(api: Api, ns: str, widgets_crd: Json, spec: Json, code: int, reason: str, field: str) -> None:
    """Item 88: each violation is a cause with its reason and the path of the field."""
    body = widget("w", **spec)
    if spec.get("size", "") is None:
        del body["spec"]["size"]
    status = refused(api.post(WIDGETS.at(ns), body), code, "Invalid")
    assert (reason, field) in {(cause["reason"], cause["field"]) for cause in status["details"]["causes"]}
    assert status["message"].startswith('Widget.contract.dev "w" is invalid: ')
    assert status["details"]["kind"] == "Widget"


def test_several_violations(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 88: all violations are named at once and the message lists them in brackets."""
    status = refused(api.post(WIDGETS.at(ns), widget("w", size="huge", weight=0)), 422, "Invalid")
    assert {cause["field"] for cause in status["details"]["causes"]} == {"spec.size", "spec.weight"}
    assert status["message"].startswith('Widget.contract.dev "w" is invalid: [spec.')


def test_accepted_values(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 88: int-or-string takes both, nullable keeps null, free objects keep what they get, defaults are filled."""
    expect(api.post(WIDGETS.at(ns), widget("w", limit=1, note=None, free={"any": [1, {"x": None}]})), 201)
    spec = expect(api.get(WIDGETS.at(ns, "w")))["spec"]
    assert spec == {"limit": 1, "note": None, "free": {"any": [1, {"x": None}]}, "replicas": 1, "size": "small"}
    assert expect(api.post(WIDGETS.at(ns), widget("v", limit="25%")), 201)["spec"]["limit"] == "25%"
    assert expect(api.post(WIDGETS.at(ns), widget("u", weight=2.0)), 201)["spec"]["weight"] == 2


def test_null_where_it_is_not_allowed(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 88: null in a field that is not nullable counts as left out, so a default takes its place."""
    stored = expect(api.post(WIDGETS.at(ns), widget("w", replicas=None, weight=None, parts=None)), 201)
    assert stored["spec"] == {"size": "small", "replicas": 1}


def test_pruning(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 88: unknown fields are dropped at every depth and at the root."""
    body = {**widget("w", unknown=1, ports=[{"name": "a", "unknown": 1}]), "root": 1}
    stored = expect(api.post(WIDGETS.at(ns), body), 201)
    assert "root" not in stored
    assert stored["spec"] == {"size": "small", "replicas": 1, "ports": [{"name": "a"}]}


def test_default_for_old_objects(api: Api, ns: str, gadgets_of: Callable[[str], Resource]) -> None:
    """Item 88: a default added later shows on objects stored before, without a new version."""
    gadgets = gadgets_of("default")
    stored = expect(api.post(gadgets.at(ns), gadgets.body("g", spec={})), 201)
    path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/color/default"
    expect(api.json_patch(CRDS.at(name=crd_name(gadgets)), [{"op": "add", "path": path, "value": "red"}]))
    eventually(lambda: api.get(gadgets.at(ns, "g")).json().get("spec", {}).get("color") == "red", what="the new default")
    again = expect(api.get(gadgets.at(ns, "g")))
    assert again["metadata"]["resourceVersion"] == stored["metadata"]["resourceVersion"]


def test_ratcheting(api: Api, ns: str, gadgets_of: Callable[[str], Resource]) -> None:
    """Item 88: a value that became invalid by a tighter schema may stay while other fields change (1.30+)."""
    gadgets = gadgets_of("ratcheting")
    expect(api.post(gadgets.at(ns), gadgets.body("g", spec={"color": "red"})), 201)
    path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/color/enum"
    expect(api.json_patch(CRDS.at(name=crd_name(gadgets)), [{"op": "add", "path": path, "value": ["blue"]}]))
    fresh = gadgets.body("probe", spec={"color": "red"})
    eventually(lambda: api.post(gadgets.at(ns), fresh, dryRun="All").status_code == 422, what="the tighter schema")
    assert expect(api.merge(gadgets.at(ns, "g"), {"spec": {"n": 1}}))["spec"] == {"color": "red", "n": 1}
    refused(api.merge(gadgets.at(ns, "g"), {"spec": {"color": "green"}}), 422, "Invalid")


def test_cel_rules(api: Api, ns: str, gadgets_of: Callable[[str], Resource]) -> None:
    """Item 88: x-kubernetes-validations are checked, with oldSelf at updates; may be left out without CEL."""
    gadgets = gadgets_of("rules")
    answer = api.post(gadgets.at(ns), gadgets.body("g", spec={"low": 2, "high": 1}))
    status = refused(answer, 422, "Invalid", causes=[("FieldValueInvalid", "spec")])
    assert "low must not exceed high" in status["message"]
    expect(api.post(gadgets.at(ns), gadgets.body("g", spec={"low": 1, "high": 2})), 201)
    answer = api.merge(gadgets.at(ns, "g"), {"spec": {"high": 1}})
    refused(answer, 422, "Invalid", contains="high must not shrink")


def broken(change: Callable[[Json], None]) -> Json:
    """A CRD without selectable fields: 1.37 hangs up on a bad schema beside selectable fields."""
    body = crd("gadgets", "Gadget", "broken.contract.dev", spec=WIDGET_SPEC)
    change(body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"])
    return body


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda spec: spec["properties"].update(bad={}), "properties[spec].properties[bad].type"),
        (lambda spec: spec["properties"].update(bad={"type": "array"}), "properties[spec].properties[bad].items"),
        (
            lambda spec: spec["properties"]["replicas"].update(default="many"),
            "properties[spec].properties[replicas].default",
        ),
        (
            lambda spec: spec.update({"x-kubernetes-preserve-unknown-fields": False}),
            "properties[spec].x-kubernetes-preserve-unknown-fields",
        ),
    ],
    ids=["no-type", "no-items", "default", "preserve"],
)
def test_bad_schemas(api: Api, change: Callable[[Json], None], part: str) -> None:
    """Item 89: a schema that is not structural is 422, naming the place."""
    status = refused(api.post(CRDS.at(), broken(change)), 422, "Invalid")
    fields = {cause["field"] for cause in status["details"]["causes"]}
    assert any(field.endswith(part) for field in fields), fields


def test_no_storage_version(api: Api) -> None:
    """Item 89: exactly one version is the storage version."""
    body = crd("gadgets", "Gadget", "broken.contract.dev")
    body["spec"]["versions"][0]["storage"] = False
    answer = api.post(CRDS.at(), body)
    refused(answer, 422, "Invalid", contains="must have exactly one version marked as storage version")


def test_crd_deletion(api: Api, ns: str, gadgets_of: Callable[[str], Resource]) -> None:
    """Item 90: deleting a CRD deletes its objects first; watchers see that, then the endpoint is gone."""
    gadgets = gadgets_of("deletion")
    stored = expect(api.post(gadgets.at(ns), gadgets.body("g", spec={})), 201)
    path = CRDS.at(name=crd_name(gadgets))
    with api.watch(gadgets.at(ns), resourceVersion=stored["metadata"]["resourceVersion"]) as watch:
        answer = expect(api.delete(path))
        assert "deletionTimestamp" in answer["metadata"]
        assert answer["metadata"]["finalizers"] == ["customresourcecleanup.apiextensions.k8s.io"], "put there by DELETE"
        assert watch.next()["type"] == "DELETED"
    eventually(lambda: api.get(path).status_code == 404, what="removal of the CRD")
    eventually(lambda: api.get(gadgets.at(ns)).status_code == 404, what="removal of the endpoint")


def test_selectable_fields(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 91: selectableFields of a CRD can be selected by, also in a watch (1.32+)."""
    for name, size in [("a", "small"), ("b", "large")]:
        expect(api.post(WIDGETS.at(ns), widget(name, size=size)), 201)
    listed = expect(api.get(WIDGETS.at(ns), fieldSelector="spec.size=large"))
    assert [item["metadata"]["name"] for item in listed["items"]] == ["b"]
    query = {"fieldSelector": "spec.size=large", "resourceVersion": listed["metadata"]["resourceVersion"]}
    with api.watch(WIDGETS.at(ns), **query) as watch:
        expect(api.merge(WIDGETS.at(ns, "a"), {"spec": {"size": "large"}}))
        event = watch.next()
    assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "a")


def test_two_versions(api: Api, ns: str, gadgets_of: Callable[[str], Resource]) -> None:
    """Item 87: without a converter all versions show the same content under their own apiVersion."""
    gadgets = gadgets_of("versions")
    path = CRDS.at(name=crd_name(gadgets))
    second = copy.deepcopy(expect(api.get(path))["spec"]["versions"][0]) | {"name": "v2", "storage": False}
    expect(api.json_patch(path, [{"op": "add", "path": "/spec/versions/-", "value": second}]))
    newer = Resource(gadgets.prefix.replace("/v1", "/v2"), "gadgets", "Gadget")
    eventually(lambda: api.get(newer.at(ns)).status_code == 200, what="service of v2")
    expect(api.post(gadgets.at(ns), gadgets.body("g", spec={"a": "x"})), 201)
    stored = expect(api.get(newer.at(ns, "g")))
    assert (stored["apiVersion"], stored["spec"]) == (newer.api_version, {"a": "x"})
    group = gadgets.api_version.split("/")[0]
    eventually(lambda: len(api.get(f"/apis/{group}").json().get("versions", [])) == 2, what="two versions in discovery")
    assert expect(api.get(f"/apis/{group}"))["preferredVersion"]["version"] == "v2"
