"""Children as objects: RoleSets of a StormService, pods of a RoleSet, and the headless Service that gives pods their addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backend.api.fleet import HASHES_ANNOTATION

from . import names
from .actions import Object
from .merge import merge_diff
from .model import RoleSpec
from .revisions import Revision


def role_set(service: Object, revision: Revision, roles: Mapping[str, Revision], index: int) -> dict[str, Any]:
    """A new RoleSet of `revision`. Its finalizer stands from the start, which saves a request for each."""
    meta = service["metadata"]
    labels, annotations = _role_set_metadata(service, revision, roles)
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.ROLE_SET_KIND,
        "metadata": {
            "generateName": names.role_set_prefix(meta["name"]),
            "namespace": meta.get("namespace", ""),
            "labels": labels,
            "annotations": {**annotations, names.INDEX_ANNOTATION: str(index)},
            "finalizers": [names.ROLE_SET_FINALIZER],
            "ownerReferences": [names.owner_reference(names.STORM_SERVICE_KIND, service)],
        },
        "spec": revision.template.get("spec") or {},
    }


def role_set_update(
    service: Object, existing: Object, before: Revision | None, revision: Revision, roles: Mapping[str, Revision]
) -> dict[str, Any]:
    """The merge patch that gives a RoleSet the template of `revision`.

    Labels and annotations that users added stay; those of the template it had before go with it.
    """
    labels, annotations = _role_set_metadata(service, revision, roles)
    old = (before.template.get("metadata") or {}) if before else {}
    meta = existing["metadata"]
    stale_roles = {key: None for key in meta.get("annotations") or {} if key.startswith(names.ROLE_REVISION_LABEL)}
    return {
        "metadata": {
            "labels": {**_gone(old.get("labels"), labels), **labels},
            "annotations": {**stale_roles, **_gone(old.get("annotations"), annotations), **annotations},
        },
        "spec": merge_diff(existing.get("spec") or {}, revision.template.get("spec") or {}),
    }


def _gone(old: Mapping[str, str] | None, new: Mapping[str, str]) -> dict[str, None]:
    return {key: None for key in old or {} if key not in new}


def _role_set_metadata(service: Object, revision: Revision, roles: Mapping[str, Revision]) -> tuple[dict[str, str], dict[str, str]]:
    meta = revision.template.get("metadata") or {}
    labels = {
        **(meta.get("labels") or {}),
        names.SERVICE_LABEL: service["metadata"]["name"],
        names.REVISION_LABEL: revision.name,
    }
    annotations = {**(meta.get("annotations") or {}), names.REVISION_ANNOTATION: revision.name}
    for role, known in roles.items():
        annotations |= names.role_revision_annotations(role, known.number, known.name)
    return labels, annotations


def pod(owner: Object, role: RoleSpec, slot: int | None, roles: Sequence[RoleSpec] = ()) -> dict[str, Any]:
    """A pod of `role` for the RoleSet `owner`; with a slot it has a name, and with the name an address. `roles` are all of the
    RoleSet: routers pair pods by what each role runs in one revision, since a role that a revision leaves as it was belongs to both.
    """
    meta, template = owner["metadata"], role.template
    annotations, labels = meta.get("annotations") or {}, meta.get("labels") or {}
    service, index = labels.get(names.SERVICE_LABEL, ""), annotations.get(names.INDEX_ANNOTATION, "")
    metadata: dict[str, Any] = {
        "namespace": meta.get("namespace", ""),
        "labels": _pod_labels(meta, role),
        "annotations": {**((template.get("metadata") or {}).get("annotations") or {})},
        "ownerReferences": [names.owner_reference(names.ROLE_SET_KIND, owner)],
    }
    if index:
        metadata["annotations"][names.INDEX_ANNOTATION] = index
    if roles:
        metadata["annotations"][HASHES_ANNOTATION] = ",".join(sorted(f"{each.name}={each.template_hash}" for each in roles))
    spec = dict(template["spec"])
    if slot is None:
        metadata["generateName"] = names.pod_prefix(meta["name"], role.name)
    else:
        metadata["name"] = spec["hostname"] = names.slot_pod_name(meta["name"], role.name, role.template_hash, slot)
        metadata["labels"][names.SLOT_KEY] = metadata["annotations"][names.SLOT_KEY] = str(slot)
    if service:
        spec["subdomain"] = service
    built_in = names.environment(service, meta["name"], index, role.name, role.template_hash, slot)
    spec["containers"] = [_with_environment(container, built_in) for container in spec["containers"]]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _pod_labels(meta: Mapping[str, Any], role: RoleSpec) -> dict[str, str]:
    owner_labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
    labels = {
        **((role.template.get("metadata") or {}).get("labels") or {}),
        **{key: owner_labels[key] for key in names.INHERITED_LABELS if key in owner_labels},
        names.ROLE_SET_LABEL: meta["name"],
        names.ROLE_LABEL: role.name,
        names.TEMPLATE_HASH_LABEL: role.template_hash,
    }
    if names.SERVICE_LABEL in owner_labels:
        labels[names.SERVICE_LABEL] = owner_labels[names.SERVICE_LABEL]
    for key in (names.ROLE_REVISION_LABEL, names.ROLE_REVISION_NAME_LABEL):
        if value := annotations.get(f"{key}.{role.name}"):
            labels[key] = value
    return labels


def _with_environment(container: Mapping[str, Any], built_in: list[dict[str, str]]) -> dict[str, Any]:
    reserved = {entry["name"] for entry in built_in}
    own = [entry for entry in container.get("env") or () if entry.get("name") not in reserved]
    return {**container, "env": [*built_in, *own]}


def headless_spec(service_name: str) -> dict[str, Any]:
    """What makes pods find each other before they are ready."""
    return {
        "type": "ClusterIP",
        "clusterIP": "None",
        "selector": {names.SERVICE_LABEL: service_name},
        "publishNotReadyAddresses": True,
    }


def headless_service(service: Object) -> dict[str, Any]:
    meta = service["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": meta["name"],
            "namespace": meta.get("namespace", ""),
            "labels": dict(meta.get("labels") or {}),
            "ownerReferences": [names.owner_reference(names.STORM_SERVICE_KIND, service)],
        },
        "spec": headless_spec(meta["name"]),
    }
