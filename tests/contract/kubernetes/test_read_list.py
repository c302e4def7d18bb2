"""Reading and listing: selectors, paging, resource versions, tables."""

from __future__ import annotations

import base64
import json
import os
import re
import time

import httpx
import pytest

from tests.contract.kubernetes.kubecontract.client import AS_METADATA, AS_METADATA_LIST, AS_TABLE, Api, Json, expect, refused
from tests.contract.kubernetes.kubecontract.objects import (
    CONFIGMAPS,
    DEPLOYMENTS,
    EVENTS,
    PODS,
    SECRETS,
    WIDGETS,
    Resource,
    absent_node,
    configmap,
    deployment,
    pod,
    widget,
)
from tests.contract.kubernetes.kubecontract.waiting import eventually


def names(listed: Json) -> list[str]:
    return [item["metadata"]["name"] for item in listed["items"]]


@pytest.fixture
def five(api: Api, ns: str) -> str:
    """A namespace with the configmaps c0..c4 beside whatever controllers put there."""
    for index in range(5):
        body = configmap(f"c{index}", labels={"kind": "five", "index": str(index)})
        expect(api.post(CONFIGMAPS.at(ns), body), 201)
    return ns


def test_list_of_a_builtin_kind(api: Api, ns: str) -> None:
    """Item 27: the list has kind and resourceVersion; its items have neither kind nor apiVersion."""
    expect(api.post(PODS.at(ns), pod("p")), 201)
    listed = expect(api.get(PODS.at(ns)))
    assert (listed["kind"], listed["apiVersion"]) == ("PodList", "v1")
    assert int(listed["metadata"]["resourceVersion"]) > 0
    assert not {"kind", "apiVersion"} & set(listed["items"][0])


def test_list_of_custom_resources(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 27: items of custom resources do carry kind and apiVersion."""
    expect(api.post(WIDGETS.at(ns), widget("w")), 201)
    listed = expect(api.get(WIDGETS.at(ns)))
    assert (listed["kind"], listed["apiVersion"]) == ("WidgetList", "contract.dev/v1")
    assert (listed["items"][0]["kind"], listed["items"][0]["apiVersion"]) == ("Widget", "contract.dev/v1")


@pytest.mark.parametrize("resource", [PODS, WIDGETS], ids=["pods", "widgets"])
def test_empty_list(api: Api, ns: str, widgets_crd: Json, resource: Resource) -> None:
    """Item 28: an empty list is 200 with an empty array."""
    assert expect(api.get(resource.at(ns)))["items"] == []


def test_list_of_an_unknown_namespace(api: Api) -> None:
    """Item 28: listing in a namespace which does not exist is an empty list as well."""
    assert expect(api.get(PODS.at("no-such-namespace")))["items"] == []


LABELLED = {"one": {"a": "b", "tier": "x"}, "two": {"a": "c", "tier": "y"}, "three": {"tier": "x"}}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("a=b", {"one"}),
        ("a==b", {"one"}),
        ("a!=b", {"two", "three"}),
        ("a in (b,c)", {"one", "two"}),
        ("a notin (b)", {"two", "three"}),
        ("a", {"one", "two"}),
        ("!a", {"three"}),
        ("a=b,tier=x", {"one"}),
        ("tier in (x),a!=b", {"three"}),
        ("", {"one", "two", "three"}),
    ],
    ids=["equal", "equal2", "unequal", "in", "notin", "exists", "absent", "two", "mixed", "empty"],
)
def test_label_selectors(api: Api, ns: str, selector: str, expected: set[str]) -> None:
    """Item 29: equality, sets and existence; != and notin also match objects without the label."""
    for name, labels in LABELLED.items():
        expect(api.post(SECRETS.at(ns), SECRETS.body(name, metadata={"labels": labels})), 201)
    assert set(names(expect(api.get(SECRETS.at(ns), labelSelector=selector)))) == expected


@pytest.mark.parametrize(
    "selector",
    ["a in b", "a=b=c", "a in (b", "!", "a=$"],
    ids=["no-brackets", "two-equals", "open", "nothing", "bad-value"],
)
def test_bad_label_selectors(api: Api, ns: str, selector: str) -> None:
    """Item 30: a selector which cannot be parsed is 400."""
    refused(api.get(SECRETS.at(ns), labelSelector=selector), 400, "BadRequest")


def test_pod_field_selectors(api: Api, ns: str) -> None:
    """Item 31: pods select by name, phase, node and more; != works and a comma joins."""
    expect(api.post(PODS.at(ns), pod("free", serviceAccountName="default")), 201)
    expect(api.post(PODS.at(ns), pod("bound", nodeName=absent_node(ns))), 201)
    expect(api.merge(PODS.at(ns, "bound", "status"), {"status": {"phase": "Running", "podIP": "10.1.1.1"}}))
    for selector, expected in [
        ("metadata.name=free", ["free"]),
        (f"metadata.namespace={ns}", ["bound", "free"]),
        ("status.phase=Pending", ["free"]),
        ("status.phase!=Pending", ["bound"]),
        (f"spec.nodeName={absent_node(ns)}", ["bound"]),
        ("spec.nodeName=", ["free"]),
        (f"spec.nodeName=={absent_node(ns)},status.phase=Running", ["bound"]),
        ("spec.restartPolicy=Never", []),
        ("spec.schedulerName=default-scheduler", ["bound", "free"]),
        ("spec.serviceAccountName=default,spec.nodeName=", ["free"]),
    ]:
        assert names(expect(api.get(PODS.at(ns), fieldSelector=selector))) == expected, selector


def test_event_field_selectors(api: Api, ns: str) -> None:
    """Item 31: events select by the object they are about."""
    for name, uid in [("e1", "u1"), ("e2", "u2")]:
        about = {"kind": "Pod", "namespace": ns, "name": name, "uid": uid}
        expect(api.post(EVENTS.at(ns), EVENTS.body(name, involvedObject=about, reason="R", type="Normal")), 201)
    assert names(expect(api.get(EVENTS.at(ns), fieldSelector="involvedObject.uid=u2"))) == ["e2"]
    query = "involvedObject.name=e1,involvedObject.kind=Pod,reason=R,type=Normal"
    assert names(expect(api.get(EVENTS.at(ns), fieldSelector=query))) == ["e1"]


@pytest.mark.parametrize(
    ("resource", "selector", "message"),
    [
        (PODS, "spec.foo=x", "field label not supported: spec.foo"),
        (WIDGETS, "spec.weight=1", "field label not supported: spec.weight"),
        (CONFIGMAPS, "data.a=x", '"data.a" is not a known field selector: only "metadata.name", "metadata.namespace"'),
    ],
    ids=["pods", "widgets", "configmaps"],
)
def test_unsupported_field_selectors(api: Api, ns: str, widgets_crd: Json, resource: Resource, selector: str, message: str) -> None:
    """Item 31: only listed fields can be selected by; kinds without own fields word it differently."""
    refused(api.get(resource.at(ns), fieldSelector=selector), 400, "BadRequest", contains=message)


def test_paging(api: Api, five: str) -> None:
    """Item 32: pages are a snapshot: writes in between do not show, the resourceVersion stays."""
    query = {"limit": 2, "fieldSelector": "metadata.name!=kube-root-ca.crt"}
    whole = expect(api.get(CONFIGMAPS.at(five), limit=2))
    assert whole["metadata"]["remainingItemCount"] in (3, 4)
    page = expect(api.get(CONFIGMAPS.at(five), **query))
    assert names(page) == ["c0", "c1"]
    assert "remainingItemCount" not in page["metadata"], "not counted with a selector"
    version = page["metadata"]["resourceVersion"]
    expect(api.delete(CONFIGMAPS.at(five, "c3")))
    expect(api.post(CONFIGMAPS.at(five), configmap("c2a")), 201)
    seen = names(page)
    while token := page["metadata"].get("continue"):
        page = expect(api.get(CONFIGMAPS.at(five), **query, **{"continue": token}))
        assert page["metadata"]["resourceVersion"] == version
        seen += names(page)
    assert seen == ["c0", "c1", "c2", "c3", "c4"]
    assert "c2a" in names(expect(api.get(CONFIGMAPS.at(five), fieldSelector="metadata.name=c2a")))


def test_paging_of_custom_resources(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 32: custom resources page the same way."""
    for index in range(5):
        expect(api.post(WIDGETS.at(ns), widget(f"w{index}")), 201)
    page = expect(api.get(WIDGETS.at(ns), limit=2))
    assert (names(page), page["metadata"]["remainingItemCount"]) == (["w0", "w1"], 3)
    page = expect(api.get(WIDGETS.at(ns), limit=2, **{"continue": page["metadata"]["continue"]}))
    assert (names(page), page["metadata"]["remainingItemCount"]) == (["w2", "w3"], 1)
    page = expect(api.get(WIDGETS.at(ns), limit=2, **{"continue": page["metadata"]["continue"]}))
    assert names(page) == ["w4"]
    assert page["metadata"].get("continue", "") == "", "custom resources write an empty token, built-ins none"
    assert "remainingItemCount" not in page["metadata"]


def test_limit_which_fits_exactly(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 32: no token when the limit takes everything."""
    for index in range(2):
        expect(api.post(WIDGETS.at(ns), widget(f"w{index}")), 201)
    assert not expect(api.get(WIDGETS.at(ns), limit=2))["metadata"].get("continue")


def test_continue_with_resource_version(api: Api, five: str) -> None:
    """Item 32: a token carries its own version, another beside it is 400."""
    token = expect(api.get(CONFIGMAPS.at(five), limit=2))["metadata"]["continue"]
    answer = api.get(CONFIGMAPS.at(five), limit=2, resourceVersion="1", **{"continue": token})
    assert answer.status_code in (400, 422)


def test_broken_continue_token(api: Api, ns: str) -> None:
    """Item 33: a token that is none is 400."""
    answer = api.get(CONFIGMAPS.at(ns), limit=2, **{"continue": "!!!"})
    refused(answer, 400, "BadRequest", contains="continue key is not valid")


@pytest.mark.compaction
def test_expired_continue_token(api: Api, five: str) -> None:
    """Item 33: a token older than the compaction is 410 Expired, with a token to go on inconsistently."""
    page = expect(api.get(CONFIGMAPS.at(five), limit=2))
    token = page["metadata"]["continue"]
    plain = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    plain["rv"] = 2
    old = base64.urlsafe_b64encode(json.dumps(plain, separators=(",", ":")).encode()).decode().rstrip("=")
    compact(int(page["metadata"]["resourceVersion"]) - 1)
    status = refused(api.get(CONFIGMAPS.at(five), limit=10, **{"continue": old}), 410, "Expired")
    again = status["metadata"]["continue"]
    rest = expect(api.get(CONFIGMAPS.at(five), limit=10, **{"continue": again}))
    assert [name for name in names(rest) if name.startswith("c")] == ["c2", "c3", "c4"]


def compact(revision: int) -> None:
    """Drop the history before `revision` in the store behind the server."""
    url = f"{os.environ['CONTRACT_ETCD']}/v3/kv/compaction"
    answer = httpx.post(url, json={"revision": str(revision), "physical": True}, trust_env=False)
    assert answer.status_code == 200 or "compacted" in answer.text, answer.text


def test_list_at_version_zero(api: Api, five: str) -> None:
    """Item 34: resourceVersion=0 takes any age, so at least it answers with a version."""
    listed = expect(api.get(CONFIGMAPS.at(five), resourceVersion="0"))
    assert int(listed["metadata"]["resourceVersion"]) > 0


def test_list_at_an_exact_version(api: Api, ns: str) -> None:
    """Item 34: resourceVersionMatch=Exact shows the past."""
    first = expect(api.post(CONFIGMAPS.at(ns), configmap("a")), 201)["metadata"]["resourceVersion"]
    expect(api.post(CONFIGMAPS.at(ns), configmap("b")), 201)
    old = expect(api.get(CONFIGMAPS.at(ns), resourceVersion=first, resourceVersionMatch="Exact"))
    assert old["metadata"]["resourceVersion"] == first
    assert "a" in names(old)
    assert "b" not in names(old)


def test_list_not_older_than(api: Api, ns: str) -> None:
    """Item 34: resourceVersionMatch=NotOlderThan shows one's own writes."""
    version = expect(api.post(CONFIGMAPS.at(ns), configmap("a")), 201)["metadata"]["resourceVersion"]
    listed = expect(api.get(CONFIGMAPS.at(ns), resourceVersion=version, resourceVersionMatch="NotOlderThan"))
    assert "a" in names(listed)
    assert int(listed["metadata"]["resourceVersion"]) >= int(version)


def test_match_without_version(api: Api, ns: str) -> None:
    """Item 34: resourceVersionMatch needs a resourceVersion; an unknown value is refused."""
    answer = api.get(CONFIGMAPS.at(ns), resourceVersionMatch="Exact")
    refused(answer, 422, "Invalid", causes=[("FieldValueForbidden", "resourceVersionMatch")])
    answer = api.get(CONFIGMAPS.at(ns), resourceVersion="5", resourceVersionMatch="Sometimes")
    refused(answer, 422, "Invalid", causes=[("FieldValueNotSupported", "resourceVersionMatch")])
    answer = api.get(CONFIGMAPS.at(ns), resourceVersion="0", resourceVersionMatch="Exact")
    refused(answer, 422, "Invalid", causes=[("FieldValueForbidden", "resourceVersionMatch")])


def test_broken_resource_version(api: Api, ns: str) -> None:
    """Item 34: a resourceVersion that is no number is 400."""
    answer = api.get(CONFIGMAPS.at(ns), resourceVersion="new")
    assert answer.status_code == 400 or answer.status_code == 422


@pytest.mark.slow
def test_version_of_the_future(api: Api, ns: str) -> None:
    """Item 35: a version far ahead is a timeout after about three seconds, with a cause which clients look for."""
    expect(api.post(CONFIGMAPS.at(ns), configmap("a")), 201)
    started = time.monotonic()
    status = refused(api.get(CONFIGMAPS.at(ns), resourceVersion="999999999"), 504, "Timeout")
    assert time.monotonic() - started < 10
    assert status["message"].startswith("Timeout: Too large resource version: 999999999, current: ")
    assert status["details"]["causes"] == [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
    assert status["details"]["retryAfterSeconds"] == 1


def test_get_at_version_zero(api: Api, ns: str) -> None:
    """Item 34: a GET with resourceVersion=0 may be served from a cache, but comes."""
    expect(api.post(CONFIGMAPS.at(ns), configmap("a")), 201)
    eventually(lambda: api.get(CONFIGMAPS.at(ns, "a"), resourceVersion="0").status_code == 200)


def test_table_of_pods(api: Api, ns: str) -> None:
    """Item 36: as a Table the first column is Name and each row carries the metadata of its object."""
    expect(api.post(PODS.at(ns), pod("p", nodeName=absent_node(ns))), 201)
    answer = api.get(PODS.at(ns), accept=AS_TABLE)
    table = expect(answer)
    assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    columns = [(column["name"], column["priority"]) for column in table["columnDefinitions"]]
    assert columns == [
        ("Name", 0), ("Ready", 0), ("Status", 0), ("Restarts", 0), ("Age", 0),
        ("IP", 1), ("Node", 1), ("Nominated Node", 1), ("Readiness Gates", 1),
    ]  # fmt: skip
    row = table["rows"][0]
    assert row["cells"][:4] == ["p", "0/1", "Pending", "0"]
    assert row["cells"][5:] == ["<none>", absent_node(ns), "<none>", "<none>"]
    assert row["object"]["kind"] == "PartialObjectMetadata"
    assert set(row["object"]) == {"kind", "apiVersion", "metadata"}
    assert int(table["metadata"]["resourceVersion"]) > 0


def test_table_of_one_object(api: Api, ns: str) -> None:
    """Item 36: a single object as a Table has one row."""
    expect(api.post(DEPLOYMENTS.at(ns), deployment("d")), 201)
    table = expect(api.get(DEPLOYMENTS.at(ns, "d"), accept=AS_TABLE))
    assert [column["name"] for column in table["columnDefinitions"]] == [
        "Name", "Ready", "Up-to-date", "Available", "Age", "Containers", "Images", "Selector",
    ]  # fmt: skip
    assert [row["cells"][0] for row in table["rows"]] == ["d"]
    assert table["rows"][0]["cells"][5:] == ["main", "example/app:1", "app=d"]


@pytest.mark.parametrize("include", ["None", "Metadata", "Object"])
def test_table_include_object(api: Api, ns: str, include: str) -> None:
    """Item 36: includeObject chooses what each row carries."""
    expect(api.post(PODS.at(ns), pod("p")), 201)
    row = expect(api.get(PODS.at(ns), accept=AS_TABLE, includeObject=include))["rows"][0]
    kinds = {"None": None, "Metadata": "PartialObjectMetadata", "Object": "Pod"}
    assert (row.get("object") or {}).get("kind") == kinds[include]


def test_table_of_custom_resources(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 36: the printer columns of the CRD come after Name; what is missing is null."""
    expect(api.post(WIDGETS.at(ns), widget("w", replicas=3)), 201)
    table = expect(api.get(WIDGETS.at(ns), accept=AS_TABLE))
    columns = [(column["name"], column["type"]) for column in table["columnDefinitions"]]
    assert columns == [
        ("Name", "string"), ("Size", "string"), ("Replicas", "integer"), ("Ready", "string"), ("Age", "date"),
    ]  # fmt: skip
    assert table["rows"][0]["cells"][:4] == ["w", "small", 3, None]
    assert re.fullmatch(r"\d+s", table["rows"][0]["cells"][4]), "an age, as of built-in kinds"
    status = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    expect(api.merge(WIDGETS.at(ns, "w", "status"), status))
    assert expect(api.get(WIDGETS.at(ns), accept=AS_TABLE))["rows"][0]["cells"][3] == "True"


def test_metadata_only_list(api: Api, ns: str) -> None:
    """Item 37: a PartialObjectMetadataList has neither spec nor status."""
    expect(api.post(PODS.at(ns), pod("p", metadata={"labels": {"a": "b"}})), 201)
    listed = expect(api.get(PODS.at(ns), accept=AS_METADATA_LIST))
    assert (listed["kind"], listed["apiVersion"]) == ("PartialObjectMetadataList", "meta.k8s.io/v1")
    item = listed["items"][0]
    assert item["metadata"]["labels"] == {"a": "b"}
    assert not {"spec", "status"} & set(item)


def test_metadata_only_object(api: Api, ns: str) -> None:
    """Item 37: likewise for one object."""
    expect(api.post(PODS.at(ns), pod("p")), 201)
    item = expect(api.get(PODS.at(ns, "p"), accept=AS_METADATA))
    assert (item["kind"], set(item)) == ("PartialObjectMetadata", {"kind", "apiVersion", "metadata"})


def test_order_across_namespaces(api: Api, ns: str, other_ns: str) -> None:
    """Item 38: the list across namespaces is ordered by namespace, then name."""
    for namespace in (ns, other_ns):
        for name in ("b", "a"):
            body = configmap(name, labels={"order": "yes"})
            expect(api.post(CONFIGMAPS.at(namespace), body), 201)
    listed = expect(api.get(CONFIGMAPS.at(), labelSelector="order=yes"))
    seen = [(item["metadata"]["namespace"], item["metadata"]["name"]) for item in listed["items"]]
    assert seen == sorted(seen)
    assert len([place for place in seen if place[0] in (ns, other_ns)]) == 4
