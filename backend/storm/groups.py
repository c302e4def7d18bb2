"""RoleSets as a StormService counts them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from . import names
from .actions import Object
from .model import RoleSetSpec, read_role_set
from .pods import Pod
from .roles import RoleState, count_roles


class Group(msgspec.Struct):
    """One RoleSet with its pods.

    Whether it is ready is counted from the pods themselves: its own status may be of before its last change.
    """

    name: str
    namespace: str
    uid: str
    revision: str
    index: int
    terminating: bool
    spec: RoleSetSpec
    states: list[RoleState]
    strangers: list[Pod]
    pods: Sequence[Pod]
    object: Object
    available: bool = False
    complete: bool = False
    updated: bool = False


def read_group(item: Object, pods: Sequence[Pod]) -> Group:
    """`item` with the pods that it controls."""
    meta = item["metadata"]
    spec = read_role_set(item.get("spec"))
    states, strangers = count_roles(spec.roles, pods)
    index = (meta.get("annotations") or {}).get(names.INDEX_ANNOTATION, "")
    group = Group(
        meta["name"],
        meta.get("namespace", ""),
        meta.get("uid", ""),
        (meta.get("labels") or {}).get(names.REVISION_LABEL, ""),
        int(index) if index.isdigit() else -1,
        bool(meta.get("deletionTimestamp")),
        spec,
        states,
        strangers,
        pods,
        item,
    )
    if not group.terminating and not spec.problems:
        group.available = all(state.available for state in states)
        group.complete = not strangers and all(state.complete for state in states)
        group.updated = all(state.updated == state.budget.wanted and not state.outdated for state in states)
    return group


def owned_groups(service: Object, role_sets: Iterable[Object], pods: dict[str, list[Pod]]) -> list[Group]:
    """The RoleSets that this very service controls, in its own namespace; labels alone make nobody an owner."""
    meta = service["metadata"]
    uid, namespace = meta.get("uid", ""), meta.get("namespace", "")
    mine = [item for item in role_sets if item["metadata"].get("namespace", "") == namespace and uid and names.controller_uid(item) == uid]
    mine.sort(key=lambda item: (item["metadata"].get("creationTimestamp", ""), item["metadata"]["name"]))
    return [read_group(item, pods.get(item["metadata"].get("uid", ""), ())) for item in mine]


def free_index(used: set[int]) -> int:
    """The smallest index that no RoleSet has, taken at once: an index names one group as long as it lives."""
    index = 0
    while index in used:
        index += 1
    used.add(index)
    return index
