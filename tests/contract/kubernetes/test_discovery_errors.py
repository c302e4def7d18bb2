"""Discovery documents and the shape of errors."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.contract.kubernetes.kubecontract.client import PROTOBUF, Api, Json, expect, refused
from tests.contract.kubernetes.kubecontract.objects import CONFIGMAPS, PODS, WIDGETS, Resource, configmap, widget
from tests.contract.kubernetes.kubecontract.waiting import eventually

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"


def test_version(api: Api) -> None:
    """Item 1: /version names major, minor and gitVersion."""
    version = expect(api.get("/version"))
    assert version["major"] == "1"
    assert re.fullmatch(r"\d+\+?", version["minor"])
    assert re.match(r"v1\.\d+\.\d+", version["gitVersion"])


@pytest.mark.parametrize("path", ["/readyz", "/livez", "/healthz"], ids=["readyz", "livez", "healthz"])
def test_health(api: Api, path: str) -> None:
    """Item 2: health answers are the plain text `ok`."""
    answer = api.get(path)
    assert (answer.status_code, answer.text) == (200, "ok")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_legacy_versions(api: Api) -> None:
    """Item 3: /api lists the core version as APIVersions."""
    versions = expect(api.get("/api"))
    assert (versions["kind"], versions["versions"]) == ("APIVersions", ["v1"])


def test_groups(api: Api, widgets_crd: Json) -> None:
    """Item 3: /apis lists every group with its preferred version, CRD groups included."""
    groups = expect(api.get("/apis"))
    assert (groups["kind"], groups["apiVersion"]) == ("APIGroupList", "v1")
    by_name = {group["name"]: group for group in groups["groups"]}
    for name, version in [("apps", "v1"), ("batch", "v1"), ("coordination.k8s.io", "v1"), ("contract.dev", "v1")]:
        assert by_name[name]["preferredVersion"] == {"groupVersion": f"{name}/{version}", "version": version}
        assert by_name[name]["preferredVersion"] in by_name[name]["versions"]


def test_one_group(api: Api) -> None:
    """Item 3: /apis/GROUP is an APIGroup."""
    group = expect(api.get("/apis/apps"))
    assert (group["kind"], group["apiVersion"], group["name"]) == ("APIGroup", "v1", "apps")


def test_core_resources(api: Api) -> None:
    """Item 4: /api/v1 lists kinds and subresources with verbs and short names."""
    document = expect(api.get("/api/v1"))
    assert (document["kind"], document["groupVersion"]) == ("APIResourceList", "v1")
    resources = {entry["name"]: entry for entry in document["resources"]}
    assert {"pods/status", "pods/log", "pods/eviction", "pods/binding", "namespaces/finalize"} <= set(resources)
    pods = resources["pods"]
    assert (pods["kind"], pods["namespaced"], pods["singularName"]) == ("Pod", True, "pod")
    assert pods["shortNames"] == ["po"]
    assert pods["categories"] == ["all"]
    assert set(pods["verbs"]) == {
        "create", "delete", "deletecollection", "get", "list", "patch", "update", "watch",
    }  # fmt: skip
    assert resources["nodes"]["namespaced"] is False
    assert resources["pods/eviction"]["group"] == "policy"


def test_apps_resources(api: Api) -> None:
    """Item 4: a named group writes groupVersion in full; scale is an autoscaling/v1 Scale."""
    document = expect(api.get("/apis/apps/v1"))
    assert document["groupVersion"] == "apps/v1"
    scale = next(entry for entry in document["resources"] if entry["name"] == "deployments/scale")
    assert (scale["group"], scale["version"], scale["kind"]) == ("autoscaling", "v1", "Scale")
    assert set(scale["verbs"]) == {"get", "patch", "update"}


def test_crd_resources(api: Api, widgets_crd: Json) -> None:
    """Item 4: a CRD shows up like any other resource, with its subresources."""
    document = expect(api.get("/apis/contract.dev/v1"))
    resources = {entry["name"]: entry for entry in document["resources"]}
    assert set(resources) == {"widgets", "widgets/status", "widgets/scale"}
    assert resources["widgets"]["shortNames"] == ["wdg"]
    assert resources["widgets/scale"]["kind"] == "Scale"


@pytest.mark.parametrize("path", ["/api", "/apis"], ids=["api", "apis"])
def test_aggregated_discovery(api: Api, path: str) -> None:
    """Item 5: with the aggregated Accept header Content-Type says which of the two forms came."""
    answer = api.get(path, accept=AGGREGATED)
    document = expect(answer)
    if "as=APIGroupDiscoveryList" in answer.headers["content-type"].replace(" ", ""):
        assert (document["kind"], document["apiVersion"]) == ("APIGroupDiscoveryList", "apidiscovery.k8s.io/v2")
        version = document["items"][0]["versions"][0]
        assert {"version", "resources", "freshness"} <= set(version)
    else:
        assert document["kind"] in ("APIVersions", "APIGroupList")


def test_openapi_v3(api: Api) -> None:
    """Item 6: the index leads to a document per group version whose PATCH knows fieldValidation."""
    index = expect(api.get("/openapi/v3"))["paths"]
    url = index["apis/apps/v1"]["serverRelativeURL"]
    assert re.fullmatch(r"/openapi/v3/apis/apps/v1\?hash=[0-9A-F]+", url)
    document = expect(api.get(url))
    patch = document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    assert patch["x-kubernetes-group-version-kind"] == {"group": "apps", "version": "v1", "kind": "Deployment"}
    assert {"dryRun", "fieldManager", "fieldValidation", "force"} <= {item["name"] for item in patch["parameters"]}
    assert "application/apply-patch+yaml" in patch["requestBody"]["content"]


def test_openapi_v3_core(api: Api) -> None:
    """Item 6: the core version's document is called api/v1."""
    index = expect(api.get("/openapi/v3"))["paths"]
    document = expect(api.get(index["api/v1"]["serverRelativeURL"]))
    assert "io.k8s.api.core.v1.Pod" in document["components"]["schemas"]


def test_openapi_v3_of_a_crd(api: Api, widgets_crd: Json) -> None:
    """Item 6: a CRD gets a document too, with the merge keys of its schema."""
    eventually(lambda: "apis/contract.dev/v1" in api.get("/openapi/v3").json()["paths"])
    index = expect(api.get("/openapi/v3"))["paths"]
    document = expect(api.get(index["apis/contract.dev/v1"]["serverRelativeURL"]))
    schema = document["components"]["schemas"]["dev.contract.v1.Widget"]
    assert schema["x-kubernetes-group-version-kind"] == [{"group": "contract.dev", "kind": "Widget", "version": "v1"}]
    assert schema["properties"]["spec"]["properties"]["ports"]["x-kubernetes-list-map-keys"] == ["name"]


def test_unknown_group(api: Api) -> None:
    """Item 7: an unknown group is a plain 404, not a Status."""
    answer = api.get("/apis/nope.dev/v1/things")
    assert (answer.status_code, answer.text) == (404, "404 page not found\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_unknown_resource_of_a_known_group(api: Api, ns: str) -> None:
    """Item 7: an unknown resource of a known group is a Status without a name."""
    status = refused(api.get(f"/apis/apps/v1/namespaces/{ns}/things"), 404, "NotFound")
    assert status["message"] == "the server could not find the requested resource"


def test_unknown_resource_of_a_crd_group(api: Api, widgets_crd: Json) -> None:
    """Item 7: an unknown resource of a CRD group is a plain 404."""
    answer = api.get("/apis/contract.dev/v1/things")
    assert (answer.status_code, answer.text) == (404, "404 page not found\n")


def test_missing_pod(api: Api, ns: str) -> None:
    """Item 8: a missing object is a Status with the resource in details.kind."""
    status = refused(api.get(PODS.at(ns, "x")), 404, "NotFound", message='pods "x" not found')
    assert status["details"] == {"name": "x", "kind": "pods"}
    assert status["metadata"] == {}


def test_missing_custom_resource(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 8: for a named group the message and the details carry the group."""
    status = refused(api.get(WIDGETS.at(ns, "x")), 404, "NotFound", message='widgets.contract.dev "x" not found')
    assert status["details"] == {"name": "x", "group": "contract.dev", "kind": "widgets"}


def test_protobuf_is_refused_for_custom_resources(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 9: custom resources know JSON and YAML only; a server may also hang up on protobuf, as 1.37 does."""
    try:
        answer = api.call("POST", WIDGETS.at(ns), content=b"k8s\x00\x0a", content_type=PROTOBUF)
    except httpx.RemoteProtocolError:
        pass
    else:
        refused(answer, 415, "UnsupportedMediaType")
    assert expect(api.get(WIDGETS.at(ns)))["items"] == []


@pytest.mark.parametrize("resource", [CONFIGMAPS, WIDGETS], ids=["configmaps", "widgets"])
def test_unknown_content_type(api: Api, ns: str, widgets_crd: Json, resource: Resource) -> None:
    """Item 9: an unknown media type is 415 with the list of the known ones."""
    answer = api.call("POST", resource.at(ns), content=b"{}", content_type="text/csv")
    refused(answer, 415, "UnsupportedMediaType", contains="the body of the request was in an unknown format")


def test_unacceptable_answer_type(api: Api, ns: str) -> None:
    """Item 9: an Accept header without any known type is 406."""
    refused(api.get(CONFIGMAPS.at(ns), accept="text/csv"), 406, "NotAcceptable")


def test_yaml_body(api: Api, ns: str) -> None:
    """Item 9: YAML bodies are accepted on POST."""
    text = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: yaml}\ndata: {a: b}\n"
    answer = api.call("POST", CONFIGMAPS.at(ns), content=text, content_type="application/yaml")
    assert expect(answer, 201)["data"] == {"a": "b"}


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_collection_refuses_single_object_verbs(api: Api, ns: str, method: str) -> None:
    """Item 10: PUT or PATCH on a collection is 405."""
    answer = api.call(method, CONFIGMAPS.at(ns), configmap("x"))
    refused(answer, 405, "MethodNotAllowed", message="the server does not allow this method on the requested resource")


def test_post_on_an_object(api: Api, ns: str) -> None:
    """Item 10: POST on an object is 405."""
    refused(api.post(CONFIGMAPS.at(ns, "x"), configmap("x")), 405, "MethodNotAllowed")


def test_too_large_body(api: Api, ns: str) -> None:
    """Item 11: a body over 3 MiB is 413."""
    body = configmap("x", {"key": "v" * (3 * 1024 * 1024)})
    refused(api.post(CONFIGMAPS.at(ns), body), 413, "RequestEntityTooLarge", contains="limit is 3145728")


def test_broken_json(api: Api, ns: str) -> None:
    """Item 12: a body which is not JSON is 400."""
    refused(api.call("POST", CONFIGMAPS.at(ns), content=b'{"kind": '), 400, "BadRequest")


def test_empty_body(api: Api, ns: str) -> None:
    """Item 12: a POST without a body is 400 as well."""
    refused(api.call("POST", CONFIGMAPS.at(ns), content=b""), 400, "BadRequest")


def test_wrong_type_of_a_field(api: Api, ns: str) -> None:
    """Item 12: a value of the wrong JSON type in a built-in kind is 400, naming the field."""
    body = CONFIGMAPS.body("x", data={"a": 1})
    refused(api.post(CONFIGMAPS.at(ns), body), 400, "BadRequest", contains="ConfigMap.data")


def test_wrong_kind_in_the_body(api: Api, ns: str) -> None:
    """Item 12: a body of another kind than the path's is 400."""
    refused(api.post(PODS.at(ns), configmap("x")), 400, "BadRequest", contains="cannot be handled as a Pod")


def test_wrong_version_in_a_custom_resource(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 12: likewise for a custom resource of another version."""
    body = {**widget("x"), "apiVersion": "contract.dev/v2"}
    refused(api.post(WIDGETS.at(ns), body), 400, "BadRequest", contains="does not match the expected API version")


def test_yaml_one_booleans(api: Api, ns: str) -> None:
    """Item 12: YAML bodies follow YAML 1.1, so a bare `y` is a boolean and no name."""
    text = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: y}\n"
    answer = api.call("POST", CONFIGMAPS.at(ns), content=text, content_type="application/yaml")
    refused(answer, 400, "BadRequest", contains="metadata.name of type string")


def test_content_type_of_answers(api: Api, ns: str) -> None:
    """Item 8: answers, errors included, are application/json."""
    assert api.get(PODS.at(ns)).headers["content-type"] == "application/json"
    assert api.get(PODS.at(ns, "x")).headers["content-type"] == "application/json"
