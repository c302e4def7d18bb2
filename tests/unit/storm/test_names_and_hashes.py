"""Names, labels and variables are those that users know; hashes say what is another version and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.fleet.pods import pod_of
from backend.storm import names, render
from backend.storm.hashing import ALPHABET, canonical, encode_number, fnv1a_32, template_hash
from backend.storm.merge import merge, merge_diff
from backend.storm.model import read_role_set
from tests.fakes.storm import role, storm_service

CHILDREN = json.loads((Path(__file__).parents[2] / "data/storm/stateful_children.json").read_text())


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("a" * 62, {}, "a" * 62),
        ("b" + "a" * 63, {}, "b" + "a" * 62),
        ("b" + "a" * 10 + "c" * 60, {}, "b" + "a" * 2 + "c" * 60),
        ("b" + "a" * 70, {"keep_prefix": True}, "b" + "a" * 62),
        ("a" * 57, {"generate": True}, "a" * 57),
        ("b" + "a" * 59 + "-", {"generate": True}, "b" + "a" * 56 + "-"),
        ("svc-roleset-", {"generate": True, "keep_prefix": True}, "svc-roleset-"),
    ],
    ids=["fits", "one too long", "the end survives", "the beginning survives", "room for five", "generated, end survives", "usual"],
)
def test_names_are_cut_to_what_kubernetes_accepts(name: str, options: dict[str, bool], expected: str) -> None:
    assert names.shorten(name, **options) == expected
    assert len(names.shorten(name, **options)) <= (58 if options.get("generate") else 63)


def test_numbers_are_encoded_as_the_field_does() -> None:
    assert fnv1a_32(b"abc") == 440920331
    assert encode_number(440920331) == "884f64"
    assert encode_number(12345) == "056789"
    assert [encode_number(digit)[-1] for digit in range(10)] == list("456789bcdf")


def test_a_pod_looks_as_the_observed_controller_made_it() -> None:
    """Labels, annotations, variables and their order, host name; only the hash is our own."""
    owner, expected = CHILDREN["RoleSet"], CHILDREN["Pod"]
    reference, labels = expected["metadata"]["ownerReferences"][0], expected["metadata"]["labels"]
    owner["metadata"] |= {"name": reference["name"], "uid": reference["uid"]}
    owner["metadata"]["annotations"][names.INDEX_ANNOTATION] = expected["metadata"]["annotations"][names.INDEX_ANNOTATION]
    known = next(item for item in read_role_set(owner["spec"]).roles if item.name == labels[names.ROLE_LABEL])
    text = json.dumps(render.pod(owner, known, int(labels[names.SLOT_KEY])))
    pod = json.loads(text.replace(known.template_hash, labels[names.TEMPLATE_HASH_LABEL]))
    for field in ("name", "labels", "annotations", "ownerReferences"):
        assert pod["metadata"][field] == expected["metadata"][field]
    assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == (expected["spec"]["hostname"], expected["spec"]["subdomain"])
    assert pod["spec"]["containers"][0]["env"] == expected["spec"]["containers"][0]["env"]


def test_a_users_variable_with_a_built_in_name_is_left_out() -> None:
    entry = role("prefill")
    entry["template"]["spec"]["containers"][0]["env"] = [{"name": "ROLE_NAME", "value": "mine"}, {"name": "B", "value": "$(ROLE_NAME)"}]
    known = read_role_set({"roles": [entry]}).roles[0]
    env = render.pod({"metadata": {"name": "rs", "namespace": "n", "uid": "u"}}, known, None)["spec"]["containers"][0]["env"]
    assert [item["name"] for item in env][-2:] == ["ROLE_TEMPLATE_HASH", "B"]
    assert {"name": "ROLE_NAME", "value": "prefill"} in env


def test_an_interchangeable_pod_gets_its_name_from_the_server_and_no_host_name() -> None:
    pod = render.pod({"metadata": {"name": "rs", "namespace": "n", "uid": "u"}}, read_role_set({"roles": [role("decode")]}).roles[0], None)
    assert pod["metadata"]["generateName"] == "rs-decode-"
    assert "name" not in pod["metadata"]
    assert "hostname" not in pod["spec"]


@pytest.mark.parametrize(
    "stored",
    [
        {"metadata": {"creationTimestamp": None}, "spec": {"containers": [{"name": "e", "image": "i"}]}},
        {"spec": {"containers": [{"name": "e", "image": "i", "resources": {}}], "restartPolicy": "Always"}},
        {"spec": {"dnsPolicy": "ClusterFirst", "containers": [{"image": "i", "name": "e", "env": [], "terminationMessagePolicy": "File"}]}},
    ],
    ids=["null time", "empty resources", "defaults and order"],
)
def test_what_a_server_fills_in_is_no_new_version(stored: dict[str, Any]) -> None:
    assert template_hash(stored) == template_hash({"spec": {"containers": [{"name": "e", "image": "i"}]}})


def test_hashes_have_six_letters_of_the_alphabet_and_differ_by_image() -> None:
    first, second = (template_hash(role("p", image=image)["template"]) for image in ("a:1", "a:2"))
    assert first != second
    assert {len(first), len(second)} == {6}
    assert set(first + second) <= set(ALPHABET)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=3), values, max_size=4))
def test_canonical_form_is_stable(value: dict[str, Any]) -> None:
    again = json.loads(canonical(value))
    assert canonical(again) == canonical(value)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


@given(st.dictionaries(st.text(max_size=3), values, max_size=4), st.dictionaries(st.text(max_size=3), values, max_size=4))
def test_a_merge_patch_turns_one_object_into_the_other(old: dict[str, Any], new: dict[str, Any]) -> None:
    old, new = _without_nulls(old), _without_nulls(new)
    assert merge(old, merge_diff(old, new)) == new
    assert merge_diff(new, new) == {}


def test_fields_that_nobody_knows_reach_role_sets_and_pods() -> None:
    entry = role("prefill", futureField={"a": [1]})
    entry["template"]["spec"]["futureGate"] = True
    service = storm_service(entry)
    revision = render.Revision("svc-x", 1, service["spec"]["template"])
    role_set = render.role_set(service, revision, {}, 0)
    assert role_set["spec"]["roles"][0]["futureField"] == {"a": [1]}
    role_set["metadata"] |= {"name": "rs", "uid": "u"}
    assert render.pod(role_set, read_role_set(role_set["spec"]).roles[0], None)["spec"]["futureGate"] is True


def test_a_pod_says_what_every_role_of_its_revision_runs() -> None:
    group = read_role_set({"roles": [role("prefill"), role("decode")]})
    pod = render.pod({"metadata": {"name": "rs", "namespace": "n", "uid": "u"}}, group.roles[0], None, group.roles)
    seen = pod_of(
        {**pod, "metadata": {**pod["metadata"], "name": "a", "labels": {**pod["metadata"]["labels"], "model.aibrix.ai/name": "m"}}}
    )
    assert seen is not None
    assert seen.template_hashes == {each.name: each.template_hash for each in group.roles}
    assert seen.template_hash == group.roles[0].template_hash
