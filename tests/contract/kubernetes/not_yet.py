"""Tests of the contract that the laptop's cluster does not pass, each with its reason. Other servers run them."""

from __future__ import annotations

_NOT_SERVED = "the kind is not served: nothing on a laptop acts on it"
_UPDATES = "ownership of fields is recorded for server-side apply alone, not for other writes"
_KINDS = (
    "statefulsets", "daemonsets", "jobs", "cronjobs", "poddisruptionbudgets", "horizontalpodautoscalers", "ingresses", "networkpolicies",
    "endpointslices", "persistentvolumeclaims", "resourcequotas", "limitranges", "roles", "rolebindings",
)  # fmt: skip

DESELECTED: dict[str, str] = {
    **{f"test_builtin_kinds.py::test_builtin_kind[{kind}]": _NOT_SERVED for kind in _KINDS},
    "test_apply.py::test_managed_fields_of_other_writes": _UPDATES,
    "test_apply.py::test_managed_fields_of_status": _UPDATES,
    "test_apply.py::test_conflict_with_an_update": _UPDATES,
    "test_apply.py::test_update_never_conflicts": _UPDATES,
    "test_discovery_errors.py::test_groups": "the group batch is not served",
    "test_discovery_errors.py::test_yaml_one_booleans": "a bare `y` in YAML stays text, as in YAML 1.2 and in PyYAML",
    "test_misc.py::test_events_of_both_groups_are_the_same": "the second group of events is not served",
    "test_misc.py::test_binding_by_the_old_path": "pods are bound at their own path only",
    "test_misc.py::test_eviction_against_a_budget": "disruption budgets are not served",
    "test_misc.py::test_eviction_within_a_budget": "disruption budgets are not served",
    "test_misc.py::test_access_review": "one token, which may do everything: there is nothing to review",
    "test_misc.py::test_who_am_i": "one token, no users",
    "test_subresources_crd.py::test_cel_rules": "x-kubernetes-validations are not evaluated: none of the project's definitions has any",
    "test_kubectl.py::test_can_i": "kubectl sends access reviews as protobuf",
    "test_kubectl.py::test_rollout_status": "Deployments are stored, but nothing runs them",
}
