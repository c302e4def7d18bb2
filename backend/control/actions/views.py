"""StormServices and plans in the words of pages and tables. Pure."""

from __future__ import annotations

from backend.api.actions import ActionPlan, RoleView, ServiceView
from backend.control.actions import objects
from backend.control.actions.model import ClusterState


def service_view(state: ClusterState, *, operation: str = "") -> ServiceView:
    """A service that exists."""
    service = state.service or {}
    status = service.get("status") or {}
    wanted = objects.pods_wanted(service)
    roles = []
    for role in objects.roles(service):
        name = str(role.get("name"))
        pods = [pod for pod in state.pods if objects.role_of(pod) == name and objects.is_live(pod)]
        images = [str(one.get("image", "")) for one in objects.containers(role)]
        ready, updated = sum(map(objects.is_ready, pods)), sum(objects.runs(pod, role) for pod in pods)
        roles.append(RoleView(name=name, images=images, wanted=wanted[name], ready=ready, updated=updated))
    troubles = [f"pod {objects.metadata(pod).get('name')}: {why}" for pod in state.pods if (why := objects.trouble(pod))]
    return ServiceView(
        namespace=state.namespace,
        name=state.name,
        mode="pooled" if objects.is_pooled(service) else "replica",
        replicas=objects.replicas(service),
        roles=roles,
        ready=objects.is_ready(service),
        paused=bool(objects.spec(service).get("paused")),
        revision=str(status.get("currentRevision") or ""),
        update_revision=str(status.get("updateRevision") or ""),
        resource_version=str(objects.metadata(service).get("resourceVersion", "")),
        operation=operation,
        message=troubles[0] if troubles else "",
    )


def summary(plan: ActionPlan) -> str:
    """The change in one line."""
    asked = plan.parameters
    where = f" of {asked.role}" if asked.role else ""
    match plan.action:
        case "set-image":
            return f"set image{where} to {asked.image}"
        case "scale":
            return f"scale{where or ' RoleSets'} to {asked.replicas}"
        case "undo":
            return f"undo {asked.operation}"
        case other:
            return other
