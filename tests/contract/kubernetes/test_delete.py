"""Deleting: answers, grace, finalizers, preconditions, collections, garbage collection."""

from __future__ import annotations

import pytest

from tests.contract.kubernetes.kubecontract.client import Api, Json, expect, refused
from tests.contract.kubernetes.kubecontract.objects import (
    CONFIGMAPS,
    NAMESPACES,
    PODS,
    REPLICASETS,
    WIDGETS,
    Resource,
    absent_node,
    configmap,
    owner,
    pod,
    template,
    widget,
)
from tests.contract.kubernetes.kubecontract.waiting import eventually

FINALIZER = "contract.dev/hold"


def gone(api: Api, path: str) -> bool:
    return api.get(path).status_code == 404


@pytest.mark.parametrize(
    ("resource", "body", "details"),
    [
        (CONFIGMAPS, configmap("x"), {"name": "x", "kind": "configmaps"}),
        (WIDGETS, widget("x"), {"name": "x", "group": "contract.dev", "kind": "widgets"}),
    ],
    ids=["configmap", "widget"],
)
def test_delete_answers_a_status(api: Api, ns: str, widgets_crd: Json, resource: Resource, body: Json, details: Json) -> None:
    """Item 65: an object which is gone at once is answered with a Success status that carries its uid."""
    uid = expect(api.post(resource.at(ns), body), 201)["metadata"]["uid"]
    status = expect(api.delete(resource.at(ns, "x")))
    assert (status["kind"], status["status"], status["details"]) == ("Status", "Success", {**details, "uid": uid})
    refused(api.get(resource.at(ns, "x")), 404)
    refused(api.delete(resource.at(ns, "x")), 404, "NotFound")


def test_delete_of_a_bound_pod(api: Api, ns: str) -> None:
    """Item 65: a bound pod gets a deadline, its node's agent then deletes it with grace 0."""
    stored = expect(api.post(PODS.at(ns), pod("p", nodeName=absent_node(ns))), 201)
    with api.watch(PODS.at(ns), resourceVersion=stored["metadata"]["resourceVersion"]) as watch:
        answer = expect(api.delete(PODS.at(ns, "p")))
        assert (answer["kind"], answer["metadata"]["deletionGracePeriodSeconds"]) == ("Pod", 30)
        assert answer["metadata"]["deletionTimestamp"] > answer["metadata"]["creationTimestamp"]
        assert answer["metadata"]["generation"] == 2
        expect(api.get(PODS.at(ns, "p")))
        expect(api.delete(PODS.at(ns, "p"), gracePeriodSeconds=0))
        events = watch.take(3)
    assert [event["type"] for event in events] == ["MODIFIED", "MODIFIED", "DELETED"]
    graces = [event["object"]["metadata"]["deletionGracePeriodSeconds"] for event in events]
    assert graces == [30, 0, 0], "the grace is written down before the object goes"
    assert gone(api, PODS.at(ns, "p"))


def test_grace_may_only_shrink(api: Api, ns: str) -> None:
    """Item 65: a second delete can shorten the grace, not lengthen it."""
    expect(api.post(PODS.at(ns), pod("p", nodeName=absent_node(ns))), 201)
    first = expect(api.delete(PODS.at(ns, "p"), {"gracePeriodSeconds": 20}))["metadata"]
    longer = expect(api.delete(PODS.at(ns, "p"), {"gracePeriodSeconds": 50}))["metadata"]
    shorter = expect(api.delete(PODS.at(ns, "p"), {"gracePeriodSeconds": 5}))["metadata"]
    assert [item["deletionGracePeriodSeconds"] for item in (first, longer, shorter)] == [20, 20, 5]
    assert shorter["deletionTimestamp"] < first["deletionTimestamp"] == longer["deletionTimestamp"]


def test_delete_of_an_unbound_pod(api: Api, ns: str) -> None:
    """Item 65: a pod without a node is gone at once; the answer is the pod."""
    expect(api.post(PODS.at(ns), pod("p")), 201)
    answer = expect(api.delete(PODS.at(ns, "p")))
    assert (answer["kind"], answer["metadata"]["deletionGracePeriodSeconds"]) == ("Pod", 0)
    assert gone(api, PODS.at(ns, "p"))


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_delete_of_a_finished_pod(api: Api, ns: str, phase: str) -> None:
    """Item 65: a finished pod is gone at once though it has a node."""
    expect(api.post(PODS.at(ns), pod("p", nodeName=absent_node(ns))), 201)
    expect(api.merge(PODS.at(ns, "p", "status"), {"status": {"phase": phase}}))
    expect(api.delete(PODS.at(ns, "p")))
    assert gone(api, PODS.at(ns, "p"))


def test_delete_without_grace(api: Api, ns: str) -> None:
    """Item 66: grace 0 in the options removes a bound pod at once."""
    expect(api.post(PODS.at(ns), pod("p", nodeName=absent_node(ns))), 201)
    expect(api.delete(PODS.at(ns, "p"), {"gracePeriodSeconds": 0}))
    assert gone(api, PODS.at(ns, "p"))


def test_negative_grace(api: Api, ns: str) -> None:
    """Item 66: a negative grace counts as one second."""
    expect(api.post(PODS.at(ns), pod("p", nodeName=absent_node(ns))), 201)
    answer = expect(api.delete(PODS.at(ns, "p"), {"gracePeriodSeconds": -5}))
    assert answer["metadata"]["deletionGracePeriodSeconds"] == 1


def test_finalizer(api: Api, ns: str) -> None:
    """Item 67: a finalizer holds the object; removing the last one lets it go."""
    path = CONFIGMAPS.at(ns, "x")
    stored = expect(api.post(CONFIGMAPS.at(ns), configmap("x", finalizers=[FINALIZER])), 201)
    with api.watch(CONFIGMAPS.at(ns), resourceVersion=stored["metadata"]["resourceVersion"]) as watch:
        first = expect(api.delete(path))
        assert (first["kind"], first["metadata"]["deletionGracePeriodSeconds"]) == ("ConfigMap", 0)
        second = expect(api.delete(path))
        assert second["metadata"]["deletionTimestamp"] == first["metadata"]["deletionTimestamp"]
        assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        assert expect(api.get(path))["metadata"]["deletionTimestamp"] == first["metadata"]["deletionTimestamp"]
        answer = expect(api.merge(path, {"metadata": {"finalizers": None}}))
        assert answer["metadata"]["name"] == "x"
        modified, deleted = watch.until("MODIFIED", "x"), watch.next()
    assert gone(api, path)
    assert (modified["type"], deleted["type"]) == ("MODIFIED", "DELETED")
    assert deleted["object"]["metadata"]["finalizers"] == [FINALIZER], "the last stored state, with a new version"
    assert int(deleted["object"]["metadata"]["resourceVersion"]) > int(second["metadata"]["resourceVersion"])


def test_finalizer_of_a_custom_resource(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 67: the deletion of a custom resource counts as a change of generation; its spec may still change."""
    path = WIDGETS.at(ns, "w")
    expect(api.post(WIDGETS.at(ns), widget("w", metadata={"finalizers": [FINALIZER]})), 201)
    assert expect(api.delete(path))["metadata"]["generation"] == 2
    assert expect(api.merge(path, {"spec": {"size": "large"}}))["spec"]["size"] == "large"
    expect(api.json_patch(path, [{"op": "remove", "path": "/metadata/finalizers/0"}]))
    assert gone(api, path)


def test_new_finalizer_while_deleting(api: Api, ns: str) -> None:
    """Item 68: no new finalizers once the deletion has begun."""
    path = CONFIGMAPS.at(ns, "x")
    expect(api.post(CONFIGMAPS.at(ns), configmap("x", finalizers=[FINALIZER])), 201)
    expect(api.delete(path))
    answer = api.merge(path, {"metadata": {"finalizers": [FINALIZER, "contract.dev/more"]}})
    refused(answer, 422, "Invalid", causes=[("FieldValueForbidden", "metadata.finalizers")])
    expect(api.merge(path, {"metadata": {"finalizers": []}}))


def test_unqualified_finalizer(api: Api, ns: str) -> None:
    """Item 67: a finalizer's name needs a domain, apart from the few standard ones."""
    answer = api.post(CONFIGMAPS.at(ns), configmap("x", finalizers=["hold it"]))
    assert "metadata.finalizers" in str(refused(answer, 422, "Invalid")["details"]["causes"])


def test_preconditions(api: Api, ns: str) -> None:
    """Item 69: uid and resourceVersion of the options must fit."""
    metadata = expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)["metadata"]
    path = CONFIGMAPS.at(ns, "x")
    wrong = "11111111-2222-3333-4444-555555555555"
    status = refused(api.delete(path, {"preconditions": {"uid": wrong}}), 409, "Conflict")
    assert f"the UID in the precondition ({wrong}) does not match the UID in record ({metadata['uid']})" in status["message"]
    status = refused(api.delete(path, {"preconditions": {"resourceVersion": "1"}}), 409, "Conflict")
    assert "the ResourceVersion in the precondition (1) does not match" in status["message"]
    right = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
    expect(api.delete(path, {"preconditions": right}))
    assert gone(api, path)


def test_delete_dry_run(api: Api, ns: str) -> None:
    """Item 25: a dry run of a delete deletes nothing."""
    expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)
    expect(api.delete(CONFIGMAPS.at(ns, "x"), dryRun="All"))
    expect(api.get(CONFIGMAPS.at(ns, "x")))


def test_delete_collection(api: Api, ns: str) -> None:
    """Item 70: a collection is deleted by selector; the answer lists what was deleted."""
    for name, label in [("a", "yes"), ("b", "yes"), ("c", "no")]:
        expect(api.post(CONFIGMAPS.at(ns), configmap(name, labels={"go": label})), 201)
    answer = expect(api.delete(CONFIGMAPS.at(ns), labelSelector="go=yes"))
    assert answer["kind"] == "ConfigMapList"
    assert sorted(item["metadata"]["name"] for item in answer["items"]) == ["a", "b"]
    left = {item["metadata"]["name"] for item in expect(api.get(CONFIGMAPS.at(ns)))["items"]}
    assert "c" in left
    assert not {"a", "b"} & left


def test_delete_collection_of_custom_resources(api: Api, ns: str, widgets_crd: Json) -> None:
    """Item 70: likewise for custom resources; with a finalizer they stay, marked."""
    expect(api.post(WIDGETS.at(ns), widget("a", metadata={"finalizers": [FINALIZER]})), 201)
    expect(api.post(WIDGETS.at(ns), widget("b")), 201)
    answer = expect(api.delete(WIDGETS.at(ns)))
    assert answer["kind"] == "WidgetList"
    left = expect(api.get(WIDGETS.at(ns)))["items"]
    assert [(item["metadata"]["name"], "deletionTimestamp" in item["metadata"]) for item in left] == [("a", True)]
    expect(api.merge(WIDGETS.at(ns, "a"), {"metadata": {"finalizers": []}}))


def test_delete_collection_by_fields(api: Api, ns: str) -> None:
    """Item 70: field selectors work too."""
    for name in ("a", "b"):
        expect(api.post(CONFIGMAPS.at(ns), configmap(name)), 201)
    expect(api.delete(CONFIGMAPS.at(ns), fieldSelector="metadata.name=a"))
    assert gone(api, CONFIGMAPS.at(ns, "a"))
    expect(api.get(CONFIGMAPS.at(ns, "b")))


@pytest.mark.parametrize(("policy", "finalizer"), [("Orphan", "orphan"), ("Foreground", "foregroundDeletion")])
def test_propagation_policy(api: Api, ns: str, policy: str, finalizer: str) -> None:
    """Item 71: Orphan and Foreground show as finalizers which the garbage collector takes off."""
    expect(api.post(CONFIGMAPS.at(ns), configmap("x", finalizers=[FINALIZER])), 201)
    answer = expect(api.delete(CONFIGMAPS.at(ns, "x"), {"propagationPolicy": policy}))
    assert set(answer["metadata"]["finalizers"]) == {FINALIZER, finalizer}
    expect(api.merge(CONFIGMAPS.at(ns, "x"), {"metadata": {"finalizers": None}}))


def test_unknown_propagation_policy(api: Api, ns: str) -> None:
    """Item 71: another policy is 422."""
    expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)
    answer = api.delete(CONFIGMAPS.at(ns, "x"), {"propagationPolicy": "Maybe"})
    refused(answer, 422, "Invalid", causes=[("FieldValueNotSupported", "propagationPolicy")])


def replicaset(api: Api, ns: str) -> Json:
    labels = {"app": "owner"}
    spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template(labels)}
    return expect(api.post(REPLICASETS.at(ns), REPLICASETS.body("owner", spec=spec)), 201)


@pytest.mark.kcm
def test_background_deletion(api: Api, ns: str) -> None:
    """Item 72: dependents of a deleted owner go, and those of a uid that never was go too."""
    parent = replicaset(api, ns)
    stray = {**owner(parent), "uid": "11111111-2222-3333-4444-555555555555"}
    expect(api.post(CONFIGMAPS.at(ns), configmap("child", ownerReferences=[owner(parent)])), 201)
    expect(api.post(CONFIGMAPS.at(ns), configmap("stray", ownerReferences=[stray])), 201)
    expect(api.post(CONFIGMAPS.at(ns), configmap("free")), 201)
    expect(api.delete(REPLICASETS.at(ns, "owner"), {"propagationPolicy": "Background"}))
    for name in ("child", "stray"):
        eventually(lambda name=name: gone(api, CONFIGMAPS.at(ns, name)), what=f"removal of {name}")
    expect(api.get(CONFIGMAPS.at(ns, "free")))


@pytest.mark.kcm
def test_second_owner_keeps_the_dependent(api: Api, ns: str) -> None:
    """Item 72: with another living owner only the reference goes."""
    parent = replicaset(api, ns)
    other = expect(api.post(CONFIGMAPS.at(ns), configmap("other")), 201)
    body = configmap("child", ownerReferences=[owner(parent), owner(other)])
    expect(api.post(CONFIGMAPS.at(ns), body), 201)
    expect(api.delete(REPLICASETS.at(ns, "owner"), {"propagationPolicy": "Background"}))

    def owners() -> list[str]:
        found = expect(api.get(CONFIGMAPS.at(ns, "child")))["metadata"].get("ownerReferences", [])
        return [reference["name"] for reference in found]

    eventually(lambda: owners() == ["other"], what="removal of the reference")


@pytest.mark.kcm
def test_foreground_deletion(api: Api, ns: str) -> None:
    """Item 72: under Foreground the owner waits for its blocking dependents."""
    parent = replicaset(api, ns)
    reference = owner(parent, blockOwnerDeletion=True, controller=True)
    body = configmap("child", ownerReferences=[reference], finalizers=[FINALIZER])
    expect(api.post(CONFIGMAPS.at(ns), body), 201)
    answer = expect(api.delete(REPLICASETS.at(ns, "owner"), {"propagationPolicy": "Foreground"}))
    assert answer["metadata"]["finalizers"] == ["foregroundDeletion"]
    child = CONFIGMAPS.at(ns, "child")
    eventually(lambda: "deletionTimestamp" in expect(api.get(child))["metadata"], what="deletion of the child")
    expect(api.get(REPLICASETS.at(ns, "owner")))
    expect(api.merge(child, {"metadata": {"finalizers": None}}))
    eventually(lambda: gone(api, REPLICASETS.at(ns, "owner")), what="removal of the owner")


@pytest.mark.kcm
def test_orphaning(api: Api, ns: str) -> None:
    """Item 71: under Orphan the dependents stay and lose the reference."""
    parent = replicaset(api, ns)
    expect(api.post(CONFIGMAPS.at(ns), configmap("child", ownerReferences=[owner(parent)])), 201)
    expect(api.delete(REPLICASETS.at(ns, "owner"), {"propagationPolicy": "Orphan"}))
    eventually(lambda: gone(api, REPLICASETS.at(ns, "owner")), what="removal of the owner")
    assert not expect(api.get(CONFIGMAPS.at(ns, "child")))["metadata"].get("ownerReferences")


@pytest.mark.kcm
@pytest.mark.slow
def test_namespace_deletion(api: Api, ns: str) -> None:
    """Item 73: a deleted namespace is Terminating, then empty, then gone (a few seconds)."""
    expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)
    expect(api.post(PODS.at(ns), pod("p")), 201)
    answer = expect(api.delete(NAMESPACES.at(name=ns)))
    assert (answer["kind"], answer["status"]["phase"]) == ("Namespace", "Terminating")
    eventually(lambda: gone(api, NAMESPACES.at(name=ns)), timeout=30, what="removal of the namespace")
    assert expect(api.get(CONFIGMAPS.at(ns)))["items"] == []


def test_namespace_finalize(api: Api, ns: str) -> None:
    """Item 73: emptying spec.finalizers through /finalize is what lets a namespace go."""
    stored = expect(api.delete(NAMESPACES.at(name=ns)))
    stored = expect(api.get(NAMESPACES.at(name=ns)))
    stored["spec"]["finalizers"] = []
    expect(api.put(NAMESPACES.at(name=ns, sub="finalize"), stored))
    assert gone(api, NAMESPACES.at(name=ns))


def test_same_name_is_another_object(api: Api, ns: str) -> None:
    """Item 74: a recreated object has a new uid and a greater version."""
    first = expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)["metadata"]
    expect(api.delete(CONFIGMAPS.at(ns, "x")))
    second = expect(api.post(CONFIGMAPS.at(ns), configmap("x")), 201)["metadata"]
    assert first["uid"] != second["uid"]
    assert int(second["resourceVersion"]) > int(first["resourceVersion"])
