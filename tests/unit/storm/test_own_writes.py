"""What was written counts at once, however slow or quick the watch is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from backend.storm import names
from backend.storm.ownwrites import OVERDUE_S, View, owner_index

OWNER = [{"uid": "owner", "controller": True}]


class Copy:
    """What an informer has."""

    def __init__(self) -> None:
        self.items: dict[str, Any] = {}

    def get(self, namespace: str | None, name: str) -> Any:
        return self.items.get(name)

    def by_index(self, name: str, value: str) -> Sequence[Any]:
        return [item for item in self.items.values() if value in owner_index(item)]


def _pod(version: int, *, uid: str = "u1", ending: bool = False, name: str = "a") -> dict[str, Any]:
    meta = {"name": name, "namespace": "n", "uid": uid, "resourceVersion": str(version), "ownerReferences": OWNER}
    return {"metadata": meta | ({"deletionTimestamp": "now"} if ending else {})}


@pytest.fixture
def copy() -> Copy:
    return Copy()


@pytest.fixture
def view(copy: Copy) -> View:
    return View({names.PODS: copy})


def _tell(view: View, copy: Copy, item: dict[str, Any], *, deleted: bool = False) -> bool:
    """A watch event: the copy first, then the handler."""
    if deleted:
        copy.items.pop(item["metadata"]["name"], None)
    else:
        copy.items[item["metadata"]["name"]] = item
    return view.writes.told(names.PODS, item, deleted=deleted)


def _versions(view: View) -> list[str]:
    return [item["metadata"]["resourceVersion"] for item in view.owned(names.PODS, "owner")]


def test_a_created_object_counts_until_the_watch_tells_it_and_then_once(view: View, copy: Copy) -> None:
    view.wrote(names.PODS, _pod(5), 0.0)
    assert _versions(view) == ["5"]
    assert _tell(view, copy, _pod(5)) is True
    assert _versions(view) == ["5"]
    assert len(view.writes) == 0


def test_an_older_state_is_no_news_and_a_newer_one_is(view: View, copy: Copy) -> None:
    copy.items["a"] = _pod(3)
    view.wrote(names.PODS, _pod(9), 0.0, seen_uid="u1")
    assert _tell(view, copy, _pod(7)) is True
    assert _versions(view) == ["9"]
    assert _tell(view, copy, _pod(11)) is False
    assert _versions(view) == ["11"]


def test_a_deletion_that_began_counts_until_the_object_is_gone(view: View, copy: Copy) -> None:
    copy.items["a"] = _pod(3)
    view.wrote(names.PODS, _pod(4, ending=True), 0.0, seen_uid="u1")
    assert view.owned(names.PODS, "owner")[0]["metadata"]["deletionTimestamp"] == "now"
    assert _tell(view, copy, _pod(6), deleted=True) is False
    assert view.owned(names.PODS, "owner") == []


def test_an_object_that_the_server_no_longer_has_is_not_counted(view: View, copy: Copy) -> None:
    copy.items["a"] = _pod(3)
    view.gone(names.PODS, "n", "a", "u1", 0.0)
    assert view.owned(names.PODS, "owner") == []
    assert view.get(names.PODS, "n", "a") is None
    assert _tell(view, copy, _pod(6), deleted=True) is True
    assert len(view.writes) == 0


def test_a_watch_that_is_quicker_than_the_answer_is_believed(view: View, copy: Copy) -> None:
    """The end was told before the answer to the delete came: the answer must not bring the object back."""
    seen = "u1"
    view.wrote(names.PODS, _pod(4, ending=True), 0.0, seen_uid=seen)
    assert view.owned(names.PODS, "owner") == []
    copy.items["a"] = _pod(8)
    view.wrote(names.PODS, _pod(7), 0.0, seen_uid=seen)
    assert _versions(view) == ["8"]
    assert len(view.writes) == 0


def test_a_new_object_of_an_old_name_replaces_a_deletion(view: View, copy: Copy) -> None:
    copy.items["a"] = _pod(3)
    view.gone(names.PODS, "n", "a", "u1", 0.0)
    assert _tell(view, copy, _pod(9, uid="u2")) is False
    assert _versions(view) == ["9"]


@pytest.mark.parametrize("still_there", [True, False])
def test_what_the_watch_never_tells_is_looked_up(view: View, copy: Copy, still_there: bool) -> None:
    view.wrote(names.PODS, _pod(5), 0.0)
    assert view.writes.overdue(OVERDUE_S) == []
    (key,) = view.writes.overdue(OVERDUE_S + 1)
    view.writes.settle(key, _pod(6) if still_there else None, None, OVERDUE_S + 1)
    assert _versions(view) == (["6"] if still_there else [])


def test_a_role_set_whose_last_finalizer_went_is_gone_at_once(copy: Copy) -> None:
    view = View({names.ROLE_SETS: copy})
    copy.items["a"] = _pod(3)
    view.wrote(names.ROLE_SETS, _pod(3, ending=True), 0.0, seen_uid="u1")
    assert view.get(names.ROLE_SETS, "n", "a") is None
