"""Paths and minimal bodies of the kinds which the suite uses."""

from __future__ import annotations

import copy
import secrets
from dataclasses import dataclass
from typing import Any

from tests.contract.kubernetes.kubecontract.client import Json


@dataclass(frozen=True)
class Resource:
    """A resource of the API: where its collection is and what its objects are called."""

    prefix: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return self.prefix.removeprefix("/apis/").removeprefix("/api/")

    def at(self, namespace: str | None = None, name: str | None = None, sub: str | None = None) -> str:
        """`at()` = the collection across namespaces, `at(ns)` = a namespace's, `at(ns, name, sub)` = one object's."""
        parts = [self.prefix]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, sub) if part is not None]
        return "/".join(parts)

    def body(self, name: str | None = None, **fields: Any) -> Json:
        """An object of this kind; `metadata` fields are merged over the name."""
        metadata = {"name": name} if name is not None else {}
        metadata.update(fields.pop("metadata", {}))
        return {"apiVersion": self.api_version, "kind": self.kind, "metadata": metadata, **fields}


NAMESPACES = Resource("/api/v1", "namespaces", "Namespace", namespaced=False)
NODES = Resource("/api/v1", "nodes", "Node", namespaced=False)
PODS = Resource("/api/v1", "pods", "Pod")
CONFIGMAPS = Resource("/api/v1", "configmaps", "ConfigMap")
SECRETS = Resource("/api/v1", "secrets", "Secret")
SERVICES = Resource("/api/v1", "services", "Service")
SERVICE_ACCOUNTS = Resource("/api/v1", "serviceaccounts", "ServiceAccount")
EVENTS = Resource("/api/v1", "events", "Event")
DEPLOYMENTS = Resource("/apis/apps/v1", "deployments", "Deployment")
REPLICASETS = Resource("/apis/apps/v1", "replicasets", "ReplicaSet")
STATEFULSETS = Resource("/apis/apps/v1", "statefulsets", "StatefulSet")
REVISIONS = Resource("/apis/apps/v1", "controllerrevisions", "ControllerRevision")
LEASES = Resource("/apis/coordination.k8s.io/v1", "leases", "Lease")
JOBS = Resource("/apis/batch/v1", "jobs", "Job")
BUDGETS = Resource("/apis/policy/v1", "poddisruptionbudgets", "PodDisruptionBudget")
CRDS = Resource("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions", "CustomResourceDefinition", False)
WIDGETS = Resource("/apis/contract.dev/v1", "widgets", "Widget")
MUTATING = Resource("/apis/admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", False)
VALIDATING = Resource("/apis/admissionregistration.k8s.io/v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", False)


def random_name(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(4)}"


def absent_node(namespace: str) -> str:
    """A node that does not exist, another for each test: the controllers spare new ones for 40 s."""
    return f"node-{namespace}"


def container(name: str = "main", **fields: Any) -> Json:
    return {"name": name, "image": "example/app:1", **fields}


def pod(name: str | None = None, *, metadata: Json | None = None, **spec: Any) -> Json:
    """A pod that mounts no token, so that its stored form is the same with and without service accounts."""
    spec.setdefault("containers", [container()])
    return PODS.body(name, metadata=metadata or {}, spec={"automountServiceAccountToken": False, **spec})


def configmap(name: str | None = None, data: dict[str, str] | None = None, **metadata: Any) -> Json:
    return CONFIGMAPS.body(name, metadata=metadata, data=data if data is not None else {"key": "value"})


def template(labels: dict[str, str]) -> Json:
    """A pod template for workloads."""
    return {"metadata": {"labels": labels}, "spec": {"containers": [container()]}}


def deployment(name: str, replicas: int = 2) -> Json:
    labels = {"app": name}
    return DEPLOYMENTS.body(name, spec={"replicas": replicas, "selector": {"matchLabels": labels}, "template": template(labels)})


def widget(name: str | None = None, *, metadata: Json | None = None, **spec: Any) -> Json:
    return WIDGETS.body(name, metadata=metadata or {}, spec={"size": "small", **spec})


def owner(item: Json, **fields: Any) -> Json:
    """An ownerReference to `item`."""
    return {
        "apiVersion": item["apiVersion"],
        "kind": item["kind"],
        "name": item["metadata"]["name"],
        "uid": item["metadata"]["uid"],
        **fields,
    }


def object_schema(properties: Json, **fields: Any) -> Json:
    return {"type": "object", "properties": properties, **fields}


WIDGET_SPEC: Json = object_schema(
    {
        "replicas": {"type": "integer", "minimum": 0, "default": 1},
        "size": {"type": "string", "enum": ["small", "medium", "large"]},
        "weight": {"type": "integer", "minimum": 1, "maximum": 100},
        "code": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 8},
        "limit": {"x-kubernetes-int-or-string": True},
        "note": {"type": "string", "nullable": True},
        "ports": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": object_schema(
                {"name": {"type": "string"}, "port": {"type": "integer"}, "kind": {"type": "string"}},
                required=["name"],
            ),
        },
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "parts": {"type": "array", "items": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
    required=["size"],
)

WIDGET_STATUS: Json = object_schema(
    {
        "replicas": {"type": "integer"},
        "selector": {"type": "string"},
        "phase": {"type": "string"},
        "conditions": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
            "items": object_schema({"type": {"type": "string"}, "status": {"type": "string"}}, required=["type", "status"]),
        },
    }
)


def crd(plural: str = "widgets", kind: str = "Widget", group: str = "contract.dev", *, spec: Json | None = None) -> Json:
    """A CRD with status, scale, printer columns and one selectable field; `spec` replaces the schema of .spec."""
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {
            "openAPIV3Schema": copy.deepcopy(object_schema({"spec": spec or WIDGET_SPEC, "status": WIDGET_STATUS})),
        },
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            {"name": "Size", "type": "string", "jsonPath": ".spec.size"},
            {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
            {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
    }
    if spec is None:
        version["selectableFields"] = [{"jsonPath": ".spec.size"}]
    names = {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List", "shortNames": []}
    if plural == "widgets":
        names["shortNames"] = ["wdg"]
    return CRDS.body(f"{plural}.{group}", spec={"group": group, "names": names, "scope": "Namespaced", "versions": [version]})
