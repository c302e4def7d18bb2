"""What the built-in kinds ask for beyond their schema: defaults that depend on other fields, checks, and what may not change.

Everything here is pure. `complete` gets an object of its own and may change it; `check` and `check_change` only look.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

from backend.localkube.api import crds
from backend.localkube.api.schema import QUANTITY
from backend.localkube.api.status import DUPLICATE, FORBIDDEN, INVALID, REQUIRED, Cause, Json

_FACTORS = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18} | {
    f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", 1)
}
_TOLERATED = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_POD_CHANGE = (
    "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)
CRDS = "customresourcedefinitions.apiextensions.k8s.io"


def quantity(text: str | float) -> float:
    """The number behind `500m`, `1Gi`, `2`."""
    match = QUANTITY.fullmatch(str(text))
    suffix = (match.group(3) or "") if match else ""
    if suffix in _FACTORS:
        return float(str(text)[: -len(suffix)]) * _FACTORS[suffix]
    return float(text)


def complete(key: str, value: Json) -> None:
    """Fill what depends on other fields of a new object or of a new state."""
    if key == "pods":
        _complete_pod(value["spec"], admitted=True)
    elif key in ("deployments.apps", "replicasets.apps"):
        spec = value["spec"]
        if "spec" in spec.get("template", {}):
            _complete_pod(spec["template"]["spec"], admitted=False)
        strategy = spec.get("strategy", {})
        if strategy.get("type") == "RollingUpdate":
            strategy.setdefault("rollingUpdate", {"maxUnavailable": "25%", "maxSurge": "25%"})
    elif key == "secrets":
        added = {name: base64.b64encode(text.encode()).decode() for name, text in value.pop("stringData", {}).items()}
        if added:
            value["data"] = {**value.get("data", {}), **added}
    elif key == "services":
        for port in value["spec"].get("ports", ()):
            port.setdefault("targetPort", port.get("port"))


def complete_new(key: str, value: Json) -> None:
    """What only a new object gets. Runs after `complete`; its uid is set."""
    metadata = value["metadata"]
    if key == "pods":
        value["status"] = {"phase": "Pending", "qosClass": _quality(value["spec"])}
    elif key == "namespaces":
        metadata["labels"] = {**metadata.get("labels", {}), "kubernetes.io/metadata.name": metadata.get("name", "")}
        value["spec"] = {**value.get("spec", {}), "finalizers": ["kubernetes"]}
        value["status"] = {"phase": "Active"}
    elif key == "services":
        _complete_service(value["spec"], metadata["uid"])
        value["status"] = {"loadBalancer": {}}


def _complete_pod(spec: Json, *, admitted: bool) -> None:
    for container in (*spec.get("containers", ()), *spec.get("initContainers", ())):
        image = container.get("image", "")
        tag = image.rpartition("/")[2].partition(":")[2]
        container.setdefault("imagePullPolicy", "Always" if tag in ("", "latest") and "@" not in image else "IfNotPresent")
        if limits := container.get("resources", {}).get("limits"):
            container["resources"]["requests"] = {**limits, **container["resources"].get("requests", {})}
    for volume in spec.get("volumes", ()):
        if len(volume) == 1:
            volume["emptyDir"] = {}
    if not admitted:
        return
    spec.setdefault("priority", 0)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    if "serviceAccountName" in spec:
        spec["serviceAccount"] = spec["serviceAccountName"]
    tolerations = spec.setdefault("tolerations", [])
    known = {toleration.get("key") for toleration in tolerations}
    tolerations += [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300} for key in _TOLERATED if key not in known
    ]


def _quality(spec: Json) -> str:
    """The quality-of-service class from requests and limits of cpu and memory."""
    resources = [container.get("resources", {}) for container in (*spec["containers"], *spec.get("initContainers", ()))]
    if not any(part.get(side) for part in resources for side in ("limits", "requests")):
        return "BestEffort"
    guaranteed = all(
        name in part.get("limits", {}) and quantity(part["limits"][name]) == quantity(part.get("requests", {}).get(name, -1))
        for part in resources
        for name in ("cpu", "memory")
    )
    return "Guaranteed" if guaranteed else "Burstable"


def _complete_service(spec: Json, uid: str) -> None:
    """A cluster address, from the uid. Nothing routes it on a laptop; clients only want to see one."""
    number = int(uid[:4], 16)
    if spec.get("type") != "ExternalName":
        spec.setdefault("clusterIP", f"10.96.{number >> 8}.{max(1, number & 255)}")
        spec.setdefault("clusterIPs", [spec["clusterIP"]])
        spec.setdefault("ipFamilies", ["IPv4"])
        spec.setdefault("ipFamilyPolicy", "SingleStack")


def check(key: str, value: Json) -> list[Cause]:
    """What is wrong with an object whose types are right."""
    spec = value.get("spec", {})
    if key == "pods":
        return _check_pod(spec, "spec")
    if key in ("deployments.apps", "replicasets.apps"):
        return _check_workload(spec)
    if key == "leases.coordination.k8s.io" and spec.get("leaseDurationSeconds", 1) <= 0:
        message = f"Invalid value: {spec['leaseDurationSeconds']}: must be greater than 0"
        return [Cause(INVALID, "spec.leaseDurationSeconds", message)]
    if key == "events" and value["involvedObject"].get("namespace", "default") != value["metadata"].get("namespace"):
        message = f'Invalid value: "{value["involvedObject"].get("namespace")}": does not match event.namespace'
        return [Cause(INVALID, "involvedObject.namespace", message)]
    return crds.problems(value) if key == CRDS else []


def _check_pod(spec: Json, path: str) -> list[Cause]:
    causes = []
    if not spec.get("containers"):
        causes.append(Cause(REQUIRED, f"{path}.containers", "Required value"))
    seen = set()
    for part in ("containers", "initContainers"):
        for index, container in enumerate(spec.get(part, ())):
            name = container.get("name")
            if name in seen:
                causes.append(Cause(DUPLICATE, f"{path}.{part}[{index}].name", f'Duplicate value: "{name}"'))
            seen.add(name)
            causes += _check_resources(container.get("resources", {}), f"{path}.{part}[{index}].resources")
    return causes


def _check_resources(resources: Json, path: str) -> list[Cause]:
    limits = resources.get("limits", {})
    return [
        Cause(INVALID, f"{path}.requests", f'Invalid value: "{wanted}": must be less than or equal to {name} limit of {limits[name]}')
        for name, wanted in resources.get("requests", {}).items()
        if name in limits and quantity(wanted) > quantity(limits[name])
    ]


def _check_workload(spec: Json) -> list[Cause]:
    template = spec.get("template", {})
    causes = _check_pod(template.get("spec", {}), "spec.template.spec") if template else []
    wanted = spec["selector"].get("matchLabels", {})
    labels = template.get("metadata", {}).get("labels", {})
    if template and any(labels.get(name) != text for name, text in wanted.items()):
        message = f"Invalid value: {labels}: `selector` does not match template `labels`"
        causes.append(Cause(INVALID, "spec.template.metadata.labels", message))
    strategy = spec.get("strategy", {})
    if strategy.get("type") == "Recreate" and "rollingUpdate" in strategy:
        message = "Forbidden: may not be specified when strategy `type` is 'Recreate'"
        causes.append(Cause(FORBIDDEN, "spec.strategy.rollingUpdate", message))
    if spec.get("replicas", 0) < 0:
        causes.append(Cause(INVALID, "spec.replicas", f"Invalid value: {spec['replicas']}: must be greater than or equal to 0"))
    return causes


def check_change(key: str, new: Json, old: Json) -> list[Cause]:
    """What may not change from `old` to `new`."""
    if key == "pods":
        return _pod_change(new["spec"], old["spec"])
    if key == "deployments.apps":
        return _fixed(new["spec"], old["spec"], ("selector",), "spec.")
    if key == "services" and old["spec"].get("clusterIP") != new["spec"].get("clusterIP"):
        message = f"Invalid value: {[new['spec'].get('clusterIP')]}: may not change once set"
        return [Cause(INVALID, "spec.clusterIPs[0]", message)]
    if key in ("configmaps", "secrets"):
        causes = _fixed(new, old, ("type",)) if key == "secrets" else []
        if old.get("immutable"):
            message = "Forbidden: field is immutable when `immutable` is set"
            parts = [part for part in ("data", "binaryData", "immutable") if new.get(part) != old.get(part)]
            causes += [Cause(FORBIDDEN, part, message) for part in parts]
        return causes
    return _fixed(new, old, ("data",)) if key == "controllerrevisions.apps" else []


def _fixed(new: Json, old: Json, fields: Iterable[str], path: str = "") -> list[Cause]:
    message = "Invalid value: field is immutable"
    return [Cause(INVALID, path + field, message) for field in fields if new.get(field) != old.get(field)]


def _pod_change(new: Json, old: Json) -> list[Cause]:
    if new is old or new == old:
        return []
    if len(new["containers"]) != len(old["containers"]):
        return [Cause(FORBIDDEN, "spec.containers", "Forbidden: pod updates may not add or remove containers")]
    before, after = _without_mutable(old), _without_mutable(new)
    kept = [toleration for toleration in old.get("tolerations", ()) if toleration in new.get("tolerations", ())]
    if before == after and len(kept) == len(old.get("tolerations", ())):
        return []
    return [Cause(FORBIDDEN, "spec", _POD_CHANGE)]


def _without_mutable(spec: Json) -> Json:
    """A pod's spec without what may change."""
    rest = {name: part for name, part in spec.items() if name not in ("activeDeadlineSeconds", "tolerations")}
    for part in ("containers", "initContainers"):
        if part in rest:
            rest[part] = [{name: item for name, item in container.items() if name != "image"} for container in rest[part]]
    return rest
