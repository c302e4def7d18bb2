"""What the planner reads from Kubernetes objects.

The objects themselves stay the plain JSON they came as, so nothing unknown is ever lost; these types are views with the few fields that
decide. A specification that cannot be obeyed is a list of `Problem`s with field paths, all of them at once.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import msgspec

from .actions import Object, Problem
from .budgets import Budget, amount_problem, resolve
from .hashing import template_hash
from .names import LABEL_LIMIT, SERVICE_NAME_LIMIT
from .shapes import role_set_shape, service_shape

ROLLING, IN_PLACE = "RollingUpdate", "InPlaceUpdate"
SEQUENTIAL, PARALLEL, INTERLEAVE = "Sequential", "Parallel", "Interleave"
DEFAULT_HISTORY = 10

_LABEL_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


class RoleSpec(msgspec.Struct, frozen=True):
    """One role of a RoleSet; `template` is the pod template as written, `template_hash` its version."""

    name: str
    budget: Budget
    template: dict[str, Any]
    template_hash: str
    stateful: bool = False
    upgrade_order: int | None = None


class RoleSetSpec(msgspec.Struct, frozen=True):
    """The roles and how they are upgraded; with `problems` nothing else may be relied on."""

    roles: tuple[RoleSpec, ...] = ()
    strategy: str = SEQUENTIAL
    problems: tuple[Problem, ...] = ()
    ignored: tuple[Problem, ...] = ()
    """Fields that are accepted and have no effect; told, but in nobody's way."""


class ServiceSpec(msgspec.Struct, frozen=True):
    """A StormService's wishes; with `problems` nothing else may be relied on."""

    budget: Budget
    template: dict[str, Any]
    groups: RoleSetSpec
    in_place: bool = False
    paused: bool = False
    history: int = DEFAULT_HISTORY
    problems: tuple[Problem, ...] = ()


def read_service(service: Object) -> ServiceSpec:
    """The specification of a StormService object, or the reasons why it cannot be obeyed."""
    spec = service.get("spec") or {}
    if misfits := service_shape(spec):
        return ServiceSpec(Budget(0, 0, 0), {}, RoleSetSpec(), problems=tuple(misfits))
    template = spec.get("template") or {}
    problems = _name_problems(str(service["metadata"]["name"]))
    replicas = _count(spec, "replicas", "spec.replicas", 1, problems)
    history = _count(spec, "revisionHistoryLimit", "spec.revisionHistoryLimit", DEFAULT_HISTORY, problems)
    strategy = spec.get("updateStrategy") or {}
    kind = strategy.get("type") or ROLLING
    if kind not in (ROLLING, IN_PLACE):
        problems.append(Problem("spec.updateStrategy.type", f"{kind!r} is unknown; use {ROLLING} or {IN_PLACE}."))
    problems += _amount_problems(strategy, "spec.updateStrategy")
    problems += _selector_problems(spec.get("selector"), (template.get("metadata") or {}).get("labels") or {})
    groups = read_role_set(template.get("spec"))
    problems += [Problem(f"spec.template.{problem.path}", problem.message) for problem in groups.problems]
    if problems:
        return ServiceSpec(Budget(0, 0, 0), template, groups, problems=tuple(problems))
    budget = resolve(replicas, strategy.get("maxSurge"), strategy.get("maxUnavailable"))
    return ServiceSpec(budget, template, groups, kind == IN_PLACE, bool(spec.get("paused")), history)


def read_role_set(spec: Any) -> RoleSetSpec:
    """The specification of a RoleSet; equal ones (all groups of a service) are read once."""
    return _read_role_set(msgspec.json.encode(spec))


@lru_cache(maxsize=512)
def _read_role_set(encoded: bytes) -> RoleSetSpec:
    spec = msgspec.json.decode(encoded) or {}
    problems = role_set_shape(spec)
    if problems:
        return RoleSetSpec(problems=tuple(problems))
    strategy = spec.get("updateStrategy") or SEQUENTIAL
    if strategy not in (SEQUENTIAL, PARALLEL, INTERLEAVE):
        problems.append(Problem("spec.updateStrategy", f"{strategy!r} is unknown; use {SEQUENTIAL}, {PARALLEL} or {INTERLEAVE}."))
    entries = spec.get("roles") or []
    if not entries:
        problems.append(Problem("spec.roles", "at least one role is needed, or the service would be Ready with no pod."))
    roles = [_read_role(entry, f"spec.roles[{position}]", problems) for position, entry in enumerate(entries)]
    seen: set[str] = set()
    for position, role in enumerate(roles):
        if role.name in seen:
            problems.append(Problem(f"spec.roles[{position}].name", f"{role.name!r} is there already; role names must differ."))
        seen.add(role.name)
    return RoleSetSpec(tuple(roles), strategy, tuple(problems), tuple(_without_effect(spec)))


def _without_effect(spec: dict[str, Any]) -> list[Problem]:
    found = [
        Problem(f"spec.{field}", "has no effect yet: pods are created without it.")
        for field in ("schedulingStrategy", "topologyPolicy")
        if spec.get(field)
    ]
    for position, entry in enumerate(spec.get("roles") or ()):
        path = f"spec.roles[{position}]"
        if (entry.get("updateStrategy") or {}).get("type") == "InPlaceIfPossible":
            found.append(Problem(f"{path}.updateStrategy.type", "in-place updates are not made yet: outdated pods are recreated."))
        if entry.get("schedulingStrategy"):
            found.append(Problem(f"{path}.schedulingStrategy", "has no effect: the role's replicas are single pods."))
        if entry.get("disruptionTolerance"):
            found.append(Problem(f"{path}.disruptionTolerance", "has no effect; use updateStrategy.maxUnavailable."))
    return found


def _read_role(entry: dict[str, Any], path: str, problems: list[Problem]) -> RoleSpec:
    name = str(entry.get("name") or "")
    if not _LABEL_NAME.fullmatch(name) or len(name) > LABEL_LIMIT:
        problems.append(Problem(f"{path}.name", f"{name!r} can't be part of a pod's name; use lower-case letters, digits and '-'."))
    if (entry.get("podGroupSize") or 1) > 1:
        problems.append(Problem(f"{path}.podGroupSize", "groups of pods (PodSets) are not supported yet; leave it out or set 1."))
    strategy = entry.get("updateStrategy") or {}
    broken = _amount_problems(strategy, f"{path}.updateStrategy")
    before = len(problems)
    wanted = _count(entry, "replicas", f"{path}.replicas", 1, problems)
    order = entry.get("upgradeOrder")
    if order is not None and (not isinstance(order, int) or order < 1):
        problems.append(Problem(f"{path}.upgradeOrder", f"{order!r} must be a whole number of 1 or more."))
        order = None
    template = entry.get("template") or {}
    problems += broken + _template_problems(template, f"{path}.template")
    budget = (
        Budget(0, 0, 0) if broken or len(problems) > before else resolve(wanted, strategy.get("maxSurge"), strategy.get("maxUnavailable"))
    )
    return RoleSpec(name, budget, template, template_hash(template), bool(entry.get("stateful")), order)


def _template_problems(template: dict[str, Any], path: str) -> list[Problem]:
    containers = (template.get("spec") or {}).get("containers") or []
    if not containers:
        return [Problem(f"{path}.spec.containers", "at least one container is needed.")]
    problems = []
    for position, container in enumerate(containers):
        if not _LABEL_NAME.fullmatch(container.get("name") or ""):
            message = f"{container.get('name')!r} must be lower-case letters, digits and '-'."
            problems.append(Problem(f"{path}.spec.containers[{position}].name", message))
        if not container.get("image"):
            problems.append(Problem(f"{path}.spec.containers[{position}].image", "an image is needed."))
    return problems


def _amount_problems(strategy: dict[str, Any], path: str) -> list[Problem]:
    found = (amount_problem(strategy.get(field), f"{path}.{field}") for field in ("maxSurge", "maxUnavailable"))
    return [problem for problem in found if problem is not None]


def _count(spec: dict[str, Any], field: str, path: str, default: int, problems: list[Problem]) -> int:
    value = spec.get(field)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        problems.append(Problem(path, f"{value!r} must be a whole number of 0 or more."))
        return default
    return value


def _name_problems(name: str) -> list[Problem]:
    problems = []
    if len(name) > SERVICE_NAME_LIMIT:
        message = f"{len(name)} characters are too many, revision names would not fit into labels; use at most {SERVICE_NAME_LIMIT}."
        problems.append(Problem("metadata.name", message))
    if not _SERVICE_NAME.fullmatch(name):
        message = f"{name!r} can't name the headless Service; use lower-case letters, digits and '-', beginning with a letter."
        problems.append(Problem("metadata.name", message))
    return problems


def _selector_problems(selector: Any, labels: dict[str, str]) -> list[Problem]:
    if not selector or not (selector.get("matchLabels") or selector.get("matchExpressions")):
        return [Problem("spec.selector", "an empty selector would match every RoleSet; set matchLabels to labels of the template.")]
    unmatched = [key for key, value in (selector.get("matchLabels") or {}).items() if labels.get(key) != value]
    problems = [
        Problem(
            f"spec.selector.matchLabels[{key}]", "spec.template.metadata.labels must carry the same value, else no RoleSet would belong."
        )
        for key in unmatched
    ]
    for position, term in enumerate(selector.get("matchExpressions") or ()):
        if not _expression_matches(term, labels):
            message = "does not match spec.template.metadata.labels."
            problems.append(Problem(f"spec.selector.matchExpressions[{position}]", message))
    return problems


def _expression_matches(term: dict[str, Any], labels: dict[str, str]) -> bool:
    key, values = term.get("key", ""), term.get("values") or []
    match term.get("operator"):
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    return False
