"""Which kinds of objects there are, and under which paths an API server keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from backend.core.errors import UsageError

Object = dict[str, Any]
"""An object as the server tells it. What an informer hands out is shared: read it, never change it."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind in one version. `plural` is the word of the path, `kind` the word inside the objects."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def full_name(self) -> str:
        """`rolesets.orchestration.aibrix.ai`: as permissions, CRDs and error messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def root(self) -> str:
        """Where discovery describes the group and version."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str = "") -> str:
        """The URL path of the collection, of one object or of a subresource. Without `namespace`: all namespaces.

        Raises UsageError for a place that cannot be, such as an object of a namespaced kind without its namespace.
        """
        if namespace and not self.namespaced:
            raise UsageError(f"{self.kind} {name or ''} does not live in a namespace, but {namespace!r} was given.")
        if self.namespaced and name and not namespace:
            raise UsageError(f"{self.kind} {name} lives in a namespace, and none was given.")
        if subresource and not name:
            raise UsageError(f"The subresource {subresource!r} belongs to one {self.kind}, and no name was given.")
        parts = [self.root]
        if namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(quote(subresource, safe="/"))
        return "/".join(parts)


STORM_GROUP = "orchestration.aibrix.ai"

PODS = Resource("", "v1", "pods", "Pod")
SERVICES = Resource("", "v1", "services", "Service")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
EVENTS = Resource("", "v1", "events", "Event")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
CONTROLLER_REVISIONS = Resource("apps", "v1", "controllerrevisions", "ControllerRevision")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
CUSTOM_RESOURCE_DEFINITIONS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
STORM_SERVICES = Resource(STORM_GROUP, "v1alpha1", "stormservices", "StormService")
ROLE_SETS = Resource(STORM_GROUP, "v1alpha1", "rolesets", "RoleSet")
POD_SETS = Resource(STORM_GROUP, "v1alpha1", "podsets", "PodSet")

Key = tuple[str, str]
"""Namespace ("" for kinds without one) and name."""


def key_of(obj: Mapping[str, Any]) -> Key:
    metadata = obj.get("metadata") or {}
    return metadata.get("namespace", ""), metadata.get("name", "")


def version_of(obj: Mapping[str, Any]) -> str:
    """The resource version: an opaque word that differs after every change."""
    version: str = (obj.get("metadata") or {}).get("resourceVersion", "")
    return version


def uid_of(obj: Mapping[str, Any]) -> str:
    """What tells an object from a later one of the same name."""
    uid: str = (obj.get("metadata") or {}).get("uid", "")
    return uid
