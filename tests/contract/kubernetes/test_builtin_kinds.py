"""One minimal object of each common built-in kind: what is stored, and how it is printed.

These tests have no number of their own in the list; they belong to items 13 and 36. Their golden files hold the stored
objects with all defaults and the tables, and are the quickest way to see what a server has to fill in.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.contract.kubernetes.kubecontract.client import AS_TABLE, Api, Json, expect
from tests.contract.kubernetes.kubecontract.objects import (
    BUDGETS,
    CONFIGMAPS,
    DEPLOYMENTS,
    JOBS,
    LEASES,
    PODS,
    REPLICASETS,
    REVISIONS,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    STATEFULSETS,
    Resource,
    container,
    template,
)

LABELS = {"app": "x"}
WORKLOAD: Json = {"selector": {"matchLabels": LABELS}, "template": template(LABELS)}
JOB_TEMPLATE: Json = {"template": {"spec": {"containers": [container()], "restartPolicy": "Never"}}}
RBAC = "/apis/rbac.authorization.k8s.io/v1"
ROLE_REF = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}
SCALE_TARGET = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"}
SUBJECT = {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "someone"}


@dataclass(frozen=True)
class Case:
    """A kind, the fields of a minimal object, and the columns of its table with priority 0."""

    resource: Resource
    fields: Json
    columns: str


CASES = [
    Case(CONFIGMAPS, {"data": {"a": "b"}}, "Name Data Age"),
    Case(SECRETS, {"data": {"a": "Yg=="}}, "Name Type Data Age"),
    Case(SERVICE_ACCOUNTS, {}, "Name Age"),
    Case(SERVICES, {"spec": {"ports": [{"port": 80}]}}, "Name Type Cluster-IP External-IP Port(s) Age"),
    Case(PODS, {"spec": {"containers": [container()]}}, "Name Ready Status Restarts Age"),
    Case(DEPLOYMENTS, {"spec": {**WORKLOAD, "replicas": 0}}, "Name Ready Up-to-date Available Age"),
    Case(REPLICASETS, {"spec": {**WORKLOAD, "replicas": 0}}, "Name Desired Current Ready Age"),
    Case(STATEFULSETS, {"spec": {**WORKLOAD, "replicas": 0}}, "Name Ready Age"),
    Case(
        Resource("/apis/apps/v1", "daemonsets", "DaemonSet"),
        {"spec": WORKLOAD},
        "Name Desired Current Ready Up-to-date Available Node Selector Age",
    ),
    Case(REVISIONS, {"revision": 1, "data": {}}, "Name Controller Revision Age"),
    Case(JOBS, {"spec": {**JOB_TEMPLATE, "suspend": True}}, "Name Status Completions Duration Age"),
    Case(
        Resource("/apis/batch/v1", "cronjobs", "CronJob"),
        {"spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": JOB_TEMPLATE}}},
        "Name Schedule Timezone Suspend Active Last Schedule Age",
    ),
    Case(LEASES, {"spec": {"holderIdentity": "me"}}, "Name Holder Age"),
    Case(
        BUDGETS,
        {"spec": {"minAvailable": 1, "selector": {"matchLabels": LABELS}}},
        "Name Min Available Max Unavailable Allowed Disruptions Age",
    ),
    Case(
        Resource("/apis/autoscaling/v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"),
        {"spec": {"scaleTargetRef": SCALE_TARGET, "maxReplicas": 3}},
        "Name Reference Targets MinPods MaxPods Replicas Age",
    ),
    Case(
        Resource("/apis/networking.k8s.io/v1", "ingresses", "Ingress"),
        {"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}},
        "Name Class Hosts Address Ports Age",
    ),
    Case(
        Resource("/apis/networking.k8s.io/v1", "networkpolicies", "NetworkPolicy"),
        {"spec": {"podSelector": {}}},
        "Name Pod-Selector Age",
    ),
    Case(
        Resource("/apis/discovery.k8s.io/v1", "endpointslices", "EndpointSlice"),
        {"addressType": "IPv4", "endpoints": [{"addresses": ["10.1.1.1"]}], "ports": [{"port": 80}]},
        "Name AddressType Ports Endpoints Age",
    ),
    Case(
        Resource("/api/v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
        {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}},
        "Name Status Volume Capacity Access Modes StorageClass VolumeAttributesClass Age",
    ),
    Case(
        Resource("/api/v1", "resourcequotas", "ResourceQuota"),
        {"spec": {"hard": {"pods": "10"}}},
        "Name Request Limit Age",
    ),
    Case(
        Resource("/api/v1", "limitranges", "LimitRange"),
        {"spec": {"limits": [{"type": "Container", "default": {"cpu": "1"}}]}},
        "Name Created At",
    ),
    Case(
        Resource(RBAC, "roles", "Role"),
        {"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]},
        "Name Created At",
    ),
    Case(Resource(RBAC, "rolebindings", "RoleBinding"), {"roleRef": ROLE_REF, "subjects": [SUBJECT]}, "Name Role Age"),
]


@pytest.mark.parametrize("case", CASES, ids=[case.resource.plural for case in CASES])
def test_builtin_kind(api: Api, ns: str, case: Case) -> None:
    """Items 13 and 36: a minimal object is stored with its defaults and printed in the kind's columns."""
    resource = case.resource
    stored = expect(api.post(resource.at(ns), resource.body("x", **case.fields)), 201)
    assert (stored["kind"], stored["apiVersion"]) == (resource.kind, resource.api_version)
    listed = expect(api.get(resource.at(ns), fieldSelector="metadata.name=x"))
    assert listed["kind"] == f"{resource.kind}List"
    table = expect(api.get(resource.at(ns, "x"), accept=AS_TABLE))
    columns = [column["name"] for column in table["columnDefinitions"] if column["priority"] == 0]
    assert " ".join(columns) == case.columns
    assert table["rows"][0]["cells"][0] == "x"
