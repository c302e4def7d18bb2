"""Patches, selectors and tables: pure functions of the API server."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.localkube.api import applying, builtins, patches, selectors, tables
from backend.localkube.api.status import ApiError

Json = dict[str, Any]
NAMES = st.text("abc/~", min_size=1, max_size=3)
VALUES = st.recursive(
    st.integers() | st.text("xyz", max_size=3) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)
POD = next(kind for kind in builtins.kinds() if kind.key == "pods")


def difference(old: Json, new: Json) -> Json:
    """The merge patch from `old` to `new`."""
    patch: Json = dict.fromkeys(old.keys() - new.keys())
    for name, value in new.items():
        before = old.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            patch[name] = difference(before, value)
        elif name not in old or before != value or type(before) is not type(value):
            patch[name] = value
    return patch


@given(OBJECTS, OBJECTS)
def test_a_merge_patch_leads_from_any_object_to_any_other(old: Json, new: Json):
    assert patches.merge(old, difference(old, new)) == new


@given(OBJECTS, NAMES, VALUES)
def test_a_json_patch_adds_and_removes_under_any_name(target: Json, name: str, value: Any):
    path = "/" + name.replace("~", "~0").replace("/", "~1")
    added = patches.json_patch(target, [{"op": "add", "path": path, "value": value}, {"op": "test", "path": path, "value": value}])
    assert added == {**target, name: value}
    rest = {key: item for key, item in target.items() if key != name}
    assert patches.json_patch(added, [{"op": "remove", "path": path}]) == rest


@given(OBJECTS, OBJECTS)
def test_patches_leave_their_target_alone(target: Json, patch: Json):
    before = repr(target)
    patches.merge(target, patch)
    patches.strategic(target, patch, POD.schema)
    assert repr(target) == before


def test_a_strategic_patch_can_be_sent_twice():
    pod = {"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}}
    patch = {"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "1"}]}}
    once = patches.strategic(pod, patch, POD.schema)
    assert patches.strategic(once, patch, POD.schema) == once
    assert [item["name"] for item in once["spec"]["containers"]] == ["c", "a", "b"]


def test_apply_gives_up_an_element_of_a_list_that_is_left_out():
    def apply(old: Json | None, *names: str) -> Json:
        containers = [{"name": name, "image": "1"} for name in names]
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}}
        asked = applying.Apply(body, "me", POD, force=False, now=0.0)
        return asked.new("p") if old is None else asked.onto(old)

    both = apply(None, "a", "b")
    assert [item["name"] for item in apply(both, "b")["spec"]["containers"]] == ["b"]


@given(st.sets(st.lists(NAMES.map(lambda name: f"f:{name}"), min_size=1, max_size=3).map(tuple), max_size=6))
def test_owned_fields_survive_their_stored_form(paths: set[tuple[str, ...]]):
    """A path below another one stands for both in the stored form."""
    longest = {path for path in paths if not any(other != path and other[: len(path)] == path for other in paths)}
    assert applying.paths_of(applying.tree(paths)) == longest


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".spec.size", ["small"]),
        (".status.conditions[?(@.type=='Ready')].status", ["True"]),
        (".spec.parts[1]", ["b"]),
        (".spec.parts[*]", ["a", "b"]),
        (".spec.nothing.there", []),
        (".metadata.labels['a.b/c']", ["d"]),
    ],
    ids=["field", "filter", "index", "all", "missing", "quoted"],
)
def test_json_paths(path: str, found: list[Any]):
    conditions = [{"type": "Other", "status": "False"}, {"type": "Ready", "status": "True"}]
    value = {
        "metadata": {"labels": {"a.b/c": "d"}}, "spec": {"size": "small", "parts": ["a", "b"]}, "status": {"conditions": conditions},
    }  # fmt: skip
    assert selectors.json_path(value, path) == found


@pytest.mark.parametrize("text", ["a in", "a=b=c", "!", "=b", "a in (x", "a,,b"])
def test_broken_selectors_are_refused(text: str):
    with pytest.raises(ApiError) as refused:
        selectors.parse_labels(text)
    assert refused.value.code == 400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (150, "2m30s"), (3599, "59m"), (7200, "120m"), (10_800, "3h"), (12_600, "3h30m"),
     (86_400, "24h"), (172_800, "2d"), (180_000, "2d2h"), (864_000, "10d")],
)  # fmt: skip
def test_ages_as_kubectl_shortens_them(seconds: int, text: str):
    assert tables.age(seconds) == text
