"""Names, labels, annotations and environment variables that users, routers and dashboards know from AIBrix.

They are kept to the letter: a gateway pairs prefill and decode by `roleset-name`, users select by `role-name`, engines find their peers by
the environment variables.
"""

from __future__ import annotations

from typing import Any

API_VERSION = "orchestration.aibrix.ai/v1alpha1"
STORM_SERVICE_KIND, ROLE_SET_KIND = "StormService", "RoleSet"

STORM_SERVICES, ROLE_SETS, PODS = "stormservices", "rolesets", "pods"
SERVICES, CONTROLLER_REVISIONS = "services", "controllerrevisions"

SERVICE_FINALIZER = "orchestration.aibrix.ai/stormservice-finalizer"
ROLE_SET_FINALIZER = "orchestration.aibrix.ai/roleset-finalizer"

_PREFIX = "stormservice.orchestration.aibrix.ai/"
SERVICE_LABEL = "storm-service-name"
REVISION_LABEL = "storm-service-revision"
ROLE_SET_LABEL = "roleset-name"
ROLE_LABEL = "role-name"
TEMPLATE_HASH_LABEL = "role-template-hash"
SLOT_KEY = _PREFIX + "role-replica-index"
ROLE_REVISION_LABEL = _PREFIX + "role-revision"
ROLE_REVISION_NAME_LABEL = _PREFIX + "role-revision-name"
REVISION_ANNOTATION = _PREFIX + "revision"
INDEX_ANNOTATION = _PREFIX + "roleset-index"
REVISION_OWNER_LABEL = "name"
REVISION_HASH_LABEL = "controller.kubernetes.io/hash"
INHERITED_LABELS = ("name", "previous-owner")

LABEL_LIMIT = 63
GENERATE_LIMIT = 58
REVISION_PREFIX_LIMIT = 223
HASH_LENGTH = 6
SERVICE_NAME_LIMIT = LABEL_LIMIT - HASH_LENGTH - 1
"""A StormService's name: its revision names (name, dash, hash) must fit into a label."""


def shorten(name: str, *, keep_prefix: bool = False, generate: bool = False) -> str:
    """`name` cut to what Kubernetes accepts: 63 characters, or 58 where the API server appends five. Without `keep_prefix` the end, which
    holds what is unique, survives behind the first letter."""
    limit = GENERATE_LIMIT if generate else LABEL_LIMIT
    if len(name) < limit:
        return name
    return name[:limit] if keep_prefix else name[0] + name[-(limit - 1) :]


def role_set_prefix(service: str) -> str:
    return shorten(f"{service}-roleset-", keep_prefix=True, generate=True)


def pod_prefix(role_set: str, role: str) -> str:
    return shorten(f"{role_set}-{role}-", generate=True)


def slot_pod_name(role_set: str, role: str, template_hash: str, slot: int) -> str:
    """The hash in the name lets the old and the new pod of one slot stand side by side."""
    return shorten(f"{role_set}-{role}-{template_hash}-{slot}")


def revision_name(service: str, template_hash: str) -> str:
    return f"{service[:REVISION_PREFIX_LIMIT]}-{template_hash}"


def role_revision_annotations(role: str, number: int, name: str) -> dict[str, str]:
    return {f"{ROLE_REVISION_LABEL}.{role}": str(number), f"{ROLE_REVISION_NAME_LABEL}.{role}": name}


def owner_reference(kind: str, owner: Any) -> dict[str, Any]:
    """The controller reference that children carry to `owner`."""
    meta = owner["metadata"]
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": meta["name"],
        "uid": meta.get("uid", ""),
        "controller": True,
        "blockOwnerDeletion": True,
    }


def controller_uid(item: Any) -> str:
    """UID of the owner that controls `item`, or an empty string."""
    for reference in item["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return str(reference.get("uid", ""))
    return ""


def environment(service: str, role_set: str, index: str, role: str, template_hash: str, slot: int | None) -> list[dict[str, str]]:
    """Built-in variables in their fixed order; they stand before the user's, so that the user's may refer to them."""
    pairs = [
        ("STORM_SERVICE_NAME", service),
        ("ROLESET_NAME", role_set),
        ("ROLESET_INDEX", index),
        ("ROLE_NAME", role),
        ("ROLE_TEMPLATE_HASH", template_hash),
    ]
    if slot is not None:
        pairs.append(("ROLE_REPLICA_INDEX", str(slot)))
    return [{"name": name, "value": value} for name, value in pairs]
