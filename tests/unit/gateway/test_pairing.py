"""Which pods may share a request, by what they tell of themselves. Not here: which pair is the best one (test_pd_policy)."""

from __future__ import annotations

import pytest

from backend.api.fleet import HASHES_ANNOTATION, Pod
from backend.gateway.fleet_table import Row
from backend.gateway.targets import Targets

NAMESPACE = "stormservice.orchestration.aibrix.ai"


def told(name: str, own: str, both: str, **more: str) -> Pod:
    """A pod as StormService's controller makes it: `own` template hash, and `prefill decode` of the revision that it was made for."""
    prefill, decode = both.split()
    role = "prefill" if name[0] == "p" else "decode"
    labels = {"role-name": role, "roleset-name": "rs", "role-template-hash": own, f"{NAMESPACE}/role-revision-name": "whatever"}
    annotations = {HASHES_ANNOTATION: f"decode={decode}, prefill={prefill}"}
    return pod(name, labels=labels, annotations=annotations, **more)


def pod(name: str, **more: object) -> Pod:
    return Pod(name=name, ip="10.0.0.1", port=8000, model="m", ready=True, **more)  # type: ignore[arg-type]


def placed(name: str, roleset: str, revision: str, **more: object) -> Pod:
    return pod(name, role="prefill" if name[0] == "p" else "decode", roleset=roleset, revision=revision, **more)


def partners(*pods: Pod) -> set[str]:
    targets = Targets()
    targets.update(2, [Row(slot, one) for slot, one in enumerate(pods)])
    pairing = targets.models["m"].pairing
    if pairing is None:
        return set()
    sides = zip(pairing.prefill.names, pairing.prefill_groups, strict=True)
    decode = list(zip(pairing.decode.names, pairing.decode_groups, strict=True))
    return {f"{first}-{second}" for first, names in sides for second, others in decode if set(names) & set(others)}


CASES = [
    pytest.param([placed("p1", "a", "1"), placed("d1", "a", "1")], {"p1-d1"}, id="one_of_each"),
    pytest.param([placed("p1", "a", "1"), placed("d1", "a", "2")], set(), id="two_revisions"),
    pytest.param([placed("p1", "a", "1"), placed("d1", "b", "1")], set(), id="two_rolesets"),
    pytest.param([placed("p1", "a", "1"), placed("d1", "a", "1", namespace="other")], set(), id="two_namespaces"),
    pytest.param([placed("p1", "a", "1"), placed("d1", "a", "1", engine="sglang")], set(), id="two_families"),
    pytest.param([placed("p1", "", ""), placed("d1", "", "")], {"p1-d1"}, id="nothing_told_is_one_group"),
    pytest.param([told("p1", "P1", "P1 D1"), told("d1", "D1", "P1 D1")], {"p1-d1"}, id="templates_of_one_revision"),
    pytest.param([told("p1", "P1", "P1 D1"), told("d2", "D2", "P2 D2")], set(), id="templates_of_two_revisions"),
    pytest.param(
        [told("p1", "P1", "P1 D1"), told("d1", "D1", "P1 D1"), told("d2", "D2", "P1 D2")],
        {"p1-d1", "p1-d2"},
        id="a_role_left_as_it_was_belongs_to_both",
    ),
    pytest.param([told("p1", "P1", "P1 D1"), told("d2", "D2", "P1 D2")], {"p1-d2"}, id="and_to_the_new_one_when_the_old_has_gone"),
    pytest.param(
        [told("p1", "P1", "P1 D1"), told("p2", "P2", "P2 D2"), told("d1", "D1", "P1 D1"), told("d2", "D2", "P2 D2")],
        {"p1-d1", "p2-d2"},
        id="in_the_middle_of_an_upgrade_of_both_roles",
    ),
    pytest.param(
        [told("p1", "P1", "P1 D1"), told("d1", "D1", "P1 D1", namespace="o"), told("d2", "D1", "P1 D1")],
        {"p1-d2"},
        id="a_namespace_more",
    ),
]


@pytest.mark.parametrize(("pods", "expected"), CASES)
def test_pods_pair_within_one_revision_of_their_roleset(pods: list[Pod], expected: set[str]) -> None:
    assert partners(*pods) == expected


def test_a_roles_own_revision_of_another_controller_parts_nothing() -> None:
    label = f"{NAMESPACE}/role-revision-name"
    first, second = (placed(name, "a", f"svc-{name}", labels={label: f"svc-{name}"}) for name in ("p1", "d1"))
    assert partners(first, second) == {"p1-d1"}


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        pytest.param([placed("p1", "a", "1"), placed("d1", "a", "2")], ["d1"], id="a_decode_pod_that_can"),
        pytest.param([placed("p1", "a", "1"), placed("d1", "a", "2"), pod("x")], ["x"], id="rather_one_that_is_meant_to"),
        pytest.param([placed("p1", "a", "1", engine="sglang"), placed("d1", "a", "2", engine="sglang")], [], id="nobody"),
        pytest.param([placed("p1", "a", "1", engine="xllm"), placed("d1", "a", "1", engine="xllm")], ["p1", "d1"], id="a_family_unknown"),
    ],
)
def test_without_a_pair_those_answer_that_can_do_it_alone(pods: list[Pod], expected: list[str]) -> None:
    targets = Targets()
    targets.update(2, [Row(slot, one) for slot, one in enumerate(pods)])
    assert targets.models["m"].names == expected


@pytest.mark.parametrize(
    ("told", "port"), [("9001", 9001), ("", 0), ("many", 0), ("70000", 0), ("-1", 0)], ids=["given", "none", "words", "large", "negative"]
)
def test_a_bootstrap_port_is_read_or_left_to_the_engine(told: str, port: int) -> None:
    assert pod("p", annotations={"model.aibrix.ai/sglang-bootstrap-port": told}).bootstrap_port == port
