"""What objects look like: text always, HTML that is escaped, well-formed and asks nobody."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from backend.api.findings import Finding
from tests.fakes.control_api import decision

EVIL = '<img src=x onerror="alert(1)">&'

OBJECTS = {
    "workbench": lambda wb: wb,
    "fleet": lambda wb: wb.fleet,
    "fleet_snapshot": lambda wb: wb.fleet.snapshot(),
    "pod": lambda wb: wb.fleet.pod("vllm-0"),
    "cache_before_a_map": lambda wb: wb.cache,
    "map": lambda wb: wb.cache.map(),
    "probe": lambda wb: wb.cache.probe("x"),
    "sources": lambda wb: wb.cache.sources(),
    "router_before_decisions": lambda wb: wb.router,
    "decisions": lambda wb: wb.router.decisions(),
    "explanation": lambda wb: wb.router.explain("r1"),
    "findings": lambda wb: wb.findings(),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_shows_as_text_and_as_well_formed_html(wb, fake, name):
    fake.findings = [Finding(id="f", severity="warning", title=EVIL, cause="a", fix="b")]
    fake.decisions = [decision(1, error=EVIL, model=EVIL, user=EVIL)]
    bundle = OBJECTS[name](wb)._repr_mimebundle_()
    assert bundle["text/plain"]
    assert "<img" not in bundle["text/html"]
    ElementTree.fromstring(f"<x>{bundle['text/html']}</x>")


@pytest.mark.parametrize("name", ["workbench", "fleet", "cache_before_a_map", "router_before_decisions"])
def test_showing_asks_the_server_nothing(wb, fake, name):
    shown = OBJECTS[name](wb)
    asked = len(fake.asked)
    shown._repr_mimebundle_()
    repr(shown)
    assert len(fake.asked) == asked


def test_the_workbench_says_where_it_is_and_how_the_fleet_is(wb, fake):
    assert fake.url in repr(wb)
    assert "2 of 2 pods ready, serving qwen3-8b" in repr(wb)


def test_long_tables_are_cut_and_say_so(wb, fake):
    fake.decisions = [decision(at) for at in range(50)]
    shown = wb.router.decisions(limit=50)
    assert "30 more rows; .df() has all" in repr(shown)
    assert "30 more rows" in shown._repr_mimebundle_()["text/html"]


def test_the_chosen_pod_is_marked(wb):
    assert "vllm-1 ← chosen" in repr(wb.router.explain("r1"))
    assert "font-weight: bold" in wb.router.explain("r1")._repr_mimebundle_()["text/html"]


def test_a_long_cell_is_clipped_in_text_and_wrapped_in_html(wb, fake):
    fake.findings = [Finding(id="f", severity="warning", title="t", cause="a cause of many words " * 10)]
    found = wb.findings()
    assert max(map(len, repr(found).splitlines())) < 140
    assert "white-space: normal" in found._repr_mimebundle_()["text/html"]
    assert ("a cause of many words " * 10).strip() in found._repr_mimebundle_()["text/html"]
