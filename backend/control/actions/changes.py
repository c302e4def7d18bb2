"""A StormService and a request in, the changed StormService out, or a refusal that names the field. Pure."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

from backend.api.actions import Manifest, Parameters, PlanRequest
from backend.control.actions import diff, objects
from backend.control.actions.model import Change, ClusterState
from backend.core.errors import InvalidRequest, NotFound, StaleState
from backend.storm.model import read_service
from backend.storm.names import SERVICE_NAME_LIMIT

ROLES = "spec.template.spec.roles"
MOST_REPLICAS = 10_000
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_IMAGE = re.compile(r"[a-zA-Z0-9][\w.\-/:@]*")
_NOT_OURS = ("status",)
_NOT_OURS_METADATA = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink")


def change(request: PlanRequest, state: ClusterState) -> Change:
    """The change that `request` means. Raises InvalidRequest (`param` is the field's path), NotFound, StaleState."""
    if request.action == "create":
        return _create(request, state)
    service = _existing(state)
    if request.action == "delete":
        return Change(service, None)
    if request.action == "undo":
        raise InvalidRequest("An undo is asked for at its operation.", param="action", fix="POST operations/ID/undo answers its plan.")
    after = copy.deepcopy(service)
    if request.action == "scale":
        notes = _scale(after, request.parameters)
    elif request.action == "set-image":
        notes = _set_image(after, request.parameters)
    else:
        notes = _pause(after, request.action == "pause")
    _check_new_problems(service, after)
    return changed(service, after, notes)


def changed(before: Manifest, after: Manifest, notes: Sequence[str] = ()) -> Change:
    """The change from one object to the other. Raises InvalidRequest where they are equal."""
    patch = diff.merge_patch(before, after)
    if not patch:
        raise InvalidRequest("This would change nothing: the service is so already.", param="parameters", fix="Ask for another value.")
    return Change(before, after, patch, tuple(notes))


def go_back(state: ClusterState, revision: str, replicas: int | None) -> Change:
    """Back to the template of an earlier ControllerRevision, and to `replicas` RoleSets where the operation had changed their number.

    An empty `revision` leaves the template. Raises StaleState when the revision is gone.
    """
    service = _existing(state)
    after = copy.deepcopy(service)
    if revision:
        after["spec"]["template"] = _template_of(state, revision)
    if replicas is not None:
        after["spec"]["replicas"] = replicas
    return changed(service, after)


def _template_of(state: ClusterState, revision: str) -> Manifest:
    kept = {objects.metadata(one).get("name", ""): one for one in state.revisions}
    if revision not in kept:
        limit = objects.spec(state.service or {}).get("revisionHistoryLimit", 10)
        raise StaleState(
            f"Revision {revision} of {state.namespace}/{state.name} is gone: {limit} are kept (spec.revisionHistoryLimit).",
            fix=f"Plan the change back by hand. Revisions that are left: {', '.join(sorted(kept)) or 'none'}.",
        )
    template = ((kept[revision].get("data") or {}).get("spec") or {}).get("template")
    if not isinstance(template, dict):
        raise StaleState(f"Revision {revision} holds no template at data.spec.template.", fix="Plan the change back by hand.")
    return {name: value for name, value in template.items() if name != "$patch"}


def _existing(state: ClusterState) -> Manifest:
    if state.service is None:
        raise NotFound(f"No StormService {state.namespace}/{state.name}.", fix="`workbench plan create -f FILE` makes one.")
    if objects.deleting(state.service):
        raise StaleState(f"{state.namespace}/{state.name} is being deleted.", fix="Wait until it is gone, then create it again.")
    return state.service


def _scale(after: Manifest, asked: Parameters) -> list[str]:
    wanted = asked.replicas
    if wanted is None or not 0 <= wanted <= MOST_REPLICAS:
        raise InvalidRequest(
            f"`replicas` is {wanted}.", param="parameters.replicas", fix=f"Pass a whole number from 0 to {MOST_REPLICAS:,}."
        )
    if not asked.role:
        after["spec"]["replicas"] = wanted
        return []
    _role(after, asked.role)["replicas"] = wanted
    if objects.is_pooled(after):
        return []
    return [
        "A role's size is part of the template: with updateStrategy RollingUpdate every RoleSet is replaced. "
        "InPlaceUpdate would only add or remove pods."
    ]


def _set_image(after: Manifest, asked: Parameters) -> list[str]:
    if not _IMAGE.fullmatch(asked.image):
        raise InvalidRequest(f"`image` is {asked.image!r}.", param="parameters.image", fix="Pass a name such as vllm:0.32.0.")
    for role in [_role(after, asked.role)] if asked.role else objects.roles(after):
        _container(role, asked.container)["image"] = asked.image
    return []


def _role(service: Manifest, name: str) -> Manifest:
    for role in objects.roles(service):
        if role.get("name") == name:
            return role
    known = ", ".join(str(role.get("name")) for role in objects.roles(service))
    raise InvalidRequest(f"No role {name!r} in {ROLES}.", param="parameters.role", fix=f"Roles: {known or 'none'}.")


def _container(role: Manifest, name: str) -> Manifest:
    path = f"{ROLES}[{role.get('name')}].template.spec.containers"
    found = objects.containers(role)
    fitting = [one for one in found if one.get("name") == name] if name else found
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(str(one.get("name")) for one in found) or "none"
    problem = f"No container {name!r}" if name else f"{len(found)} containers"
    raise InvalidRequest(f"{problem} in {path}.", param="parameters.container", fix=f"Name the container: {known}.")


def _pause(after: Manifest, wanted: bool) -> list[str]:
    if bool(objects.spec(after).get("paused")) == wanted:
        said = "paused already" if wanted else "not paused"
        raise InvalidRequest(f"The service is {said}.", param="spec.paused", fix="Nothing is to be done.")
    after["spec"]["paused"] = wanted
    return ["Nothing new begins; pods that are on their way come up or go."] if wanted else []


def _create(request: PlanRequest, state: ClusterState) -> Change:
    manifest = request.parameters.manifest
    if manifest is None:
        raise InvalidRequest("`manifest` is missing.", param="parameters.manifest", fix="Pass the StormService to create.")
    check(manifest)
    if state.service is not None:
        raise StaleState(f"{state.namespace}/{state.name} exists already.", fix="Plan a change of it, or choose another name.")
    after = {name: value for name, value in copy.deepcopy(manifest).items() if name not in _NOT_OURS}
    about = {name: value for name, value in objects.metadata(after).items() if name not in _NOT_OURS_METADATA}
    after["metadata"] = {**about, "name": state.name, "namespace": state.namespace}
    return Change(None, after)


def check(manifest: Manifest) -> None:
    """What would make a StormService useless without the API server refusing it. Raises InvalidRequest with the field's path."""
    for field, wanted in (("apiVersion", objects.API_VERSION), ("kind", objects.KIND)):
        if manifest.get(field) != wanted:
            _refuse(field, f"is {manifest.get(field)!r}", f"Write {field}: {wanted}.")
    name = _mapping(manifest, "metadata").get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > SERVICE_NAME_LIMIT:
        _refuse("metadata.name", f"is {name!r}", f"Use at most {SERVICE_NAME_LIMIT} of a-z, 0-9 and -; the ends not a -.")
    spec = _mapping(manifest, "spec")
    _mapping(_mapping(spec, "template", "spec."), "spec", "spec.template.")
    if not (_mapping(spec, "selector", "spec.").get("matchLabels")):
        _refuse("spec.selector.matchLabels", "is empty", "An empty selector matches every RoleSet; name at least one label.")
    _check_new_problems(None, manifest)


def _check_new_problems(before: Manifest | None, after: Manifest) -> None:
    """Refuse what the controller would refuse to obey; what was wrong before does not keep anybody from changing the rest."""
    old = {problem.path for problem in read_service(before).problems} if before is not None else set()
    for problem in read_service(after).problems:
        if problem.path not in old:
            raise InvalidRequest(f"{problem.path}: {problem.message}", param=problem.path, fix=f"Correct {problem.path}.")


def _mapping(holder: Manifest, name: str, path: str = "") -> Manifest:
    found = holder.get(name)
    if not isinstance(found, dict):
        _refuse(f"{path}{name}", "is missing" if found is None else f"is {found!r}, not an object", "See the sample StormService.")
        return {}
    return found


def _refuse(path: str, problem: str, fix: str) -> None:
    raise InvalidRequest(f"{path} {problem}.", param=path, fix=fix)
