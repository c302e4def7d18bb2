"""The client against a control API on a real socket: what it asks, what it answers, which errors it raises."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

import workbench
from backend.api.cache import ProbeRequest
from tests.fakes.control_api import decision, fleet
from workbench import _loop, errors


def test_the_fleet_is_a_table_of_pods(wb):
    table = wb.fleet.df()
    assert table["pod"].to_list() == ["vllm-0", "vllm-1"]
    assert table["hit_rate"].to_list() == [0.5, None]
    assert str(table.schema["started_at"]) == "Datetime(time_unit='us', time_zone='UTC')"


def test_a_pod_is_found_by_name(wb):
    assert wb.fleet.pod("vllm-1").load.running == 1.0
    assert wb.fleet["vllm-1"].name == "vllm-1"
    assert wb.fleet._ipython_key_completions_() == ["vllm-0", "vllm-1"]


def test_an_empty_fleet_still_has_all_columns(wb, fake):
    fake.snapshot = fleet(pods=0)
    assert wb.fleet.df().height == 0
    assert "kv_usage" in wb.fleet.df().columns


PROMPTS = [
    ("text", "hello", ProbeRequest(prompt="hello")),
    ("tokens", [1, 2], ProbeRequest(tokens=[1, 2])),
    ("array", np.array([1, 2], np.uint32), ProbeRequest(tokens=[1, 2])),
    ("messages", [{"role": "user", "content": "x"}], ProbeRequest(messages=[{"role": "user", "content": "x"}])),
]


@pytest.mark.parametrize(("prompt", "sent"), [case[1:] for case in PROMPTS], ids=[case[0] for case in PROMPTS])
def test_a_prompt_is_sent_as_what_it_is(wb, fake, prompt, sent):
    table = wb.cache.probe(prompt)
    assert fake.probes == [sent]
    assert table.df()["matched_tokens"].to_list() == [64, 0]


def test_a_prompt_of_mixed_things_is_refused_before_it_is_sent(wb, fake):
    with pytest.raises(errors.UsageError, match="token ids"):
        wb.cache.probe([1, "two"])
    assert fake.probes == []


def test_the_map_is_one_row_a_pod_and_bucket(wb):
    cache_map = wb.cache.map(bins=4)
    assert cache_map.df().filter(pod="vllm-1")["blocks"].to_list() == [1, 2, 3, 4]
    assert cache_map.duplicate_ratio == pytest.approx(16 / 40)
    assert cache_map.shared().df()["pods"].to_list() == [["vllm-0", "vllm-1"]]


def test_decisions_are_filtered_and_paged_by_the_server(wb, fake):
    page = wb.router.decisions(limit=2, pod="vllm-1")
    assert page.df()["id"].to_list() == ["r4", "r3"]
    assert wb.router.decisions(limit=2, before=page.next).df()["id"].to_list() == ["r2", "r1"]
    assert "/api/v1/decisions?limit=2&pod=vllm-1" in fake.asked


def test_an_explanation_has_every_score_term_of_every_candidate(wb):
    explanation = wb.router.explain("r1")
    assert explanation.df().rows() == [("vllm-0", False, 0.0, 1.0), ("vllm-1", True, 64.0, 2.0)]
    story = "\n".join(explanation.story())
    for part in ("chose vllm-1 of 2", "prefix_match", "promised a prefix hit of 64 of 100", "as predicted", "41 ms"):
        assert part in story


def test_a_refused_request_is_explained_without_a_pod(wb, fake):
    fake.decisions = [decision(1, chosen="", candidates=[], terms={}, outcome="refused", status=503, error="no ready pods")]
    assert "No pod was chosen: no ready pods." in wb.router.explain("r1").story()


FAILURES = [
    ("no_such_pod", lambda wb: wb.fleet.pod("nope"), errors.NotFound, "No pod nope."),
    ("no_such_decision", lambda wb: wb.router.explain("nope"), errors.NotFound, "No decision nope."),
    ("an_id_that_is_a_path", lambda wb: wb.router.explain("../fleet"), errors.NotFound, "No decision ../fleet."),
    ("a_limit_of_nothing", lambda wb: wb.router.decisions(limit=0), errors.UsageError, "at least 1"),
]


@pytest.mark.parametrize(("ask", "kind", "message"), [case[1:] for case in FAILURES], ids=[case[0] for case in FAILURES])
def test_a_failure_is_an_error_of_our_tree(wb, ask, kind, message):
    with pytest.raises(kind) as caught:
        ask(wb)
    assert message in str(caught.value)


def test_a_wrong_token_is_told_at_connect(fake):
    with pytest.raises(errors.Unauthorized, match="bearer token"):
        workbench.connect(fake.url, token="wrong")


def test_the_token_may_come_from_the_environment(fake, monkeypatch):
    monkeypatch.setenv("WORKBENCH_TOKEN", fake.token)
    with workbench.connect(fake.url) as wb:
        assert len(wb.fleet.snapshot()) == 2


def test_nobody_there_is_told_with_the_address():
    with pytest.raises(errors.NotConnected, match=r"127\.0\.0\.1:9"):
        workbench.connect("http://127.0.0.1:9", token="x")


def test_a_closed_workbench_says_so_and_may_be_closed_again(fake):
    wb = workbench.connect(fake.url, token=fake.token)
    wb.close()
    wb.close()
    with pytest.raises(errors.NotConnected, match="was closed"):
        wb.fleet.df()


@pytest.mark.parametrize("body", [b"<html>", b'{"pods": 3}'], ids=["not_json", "another_shape"])
def test_an_answer_of_another_version_is_said_to_be_unreadable(wb, fake, body):
    fake.broken = body
    with pytest.raises(errors.UnreadableAnswer, match="same version"):
        wb.fleet.df()


def test_expected_errors_show_without_a_traceback(wb):
    with pytest.raises(errors.NotFound) as caught:
        wb.fleet.pod("nope")
    assert caught.value._render_traceback_() == ["NotFound: No pod nope.\nDo something about it."]


async def test_the_asynchronous_workbench_answers_the_same(fake):
    async with workbench.connect(fake.url, token=fake.token, asynchronous=True) as wb:
        snapshot, page = await asyncio.gather(wb.fleet.snapshot(), wb.router.decisions(limit=1))
        assert (len(snapshot), len(page)) == (2, 1)
    other = await workbench.connect(fake.url, token=fake.token, asynchronous=True)
    await other.close()


async def test_the_plain_workbench_works_where_a_loop_runs_already(fake):
    """As in a notebook."""
    with workbench.connect(fake.url, token=fake.token) as wb:
        assert wb.fleet.df().height == 2


def test_all_workbenches_of_a_process_share_one_thread(fake):
    with workbench.connect(fake.url, token=fake.token), workbench.connect(fake.url, token=fake.token):
        assert [thread.name for thread in threading.enumerate()].count("workbench") == 1


def test_using_the_plain_workbench_inside_its_own_loop_is_refused(wb):
    async def inside():
        wb.fleet.df()

    with pytest.raises(RuntimeError, match="asynchronous=True"):
        _loop.shared().run(inside())


def test_findings_are_a_table_even_when_there_are_none(wb):
    assert wb.findings().df().is_empty()
    assert "Nothing is wrong." in repr(wb.findings())


def test_the_last_request_can_be_explained_without_its_id(wb, fake):
    assert wb.router.explain().record.id == "r4"
    fake.decisions = []
    with pytest.raises(errors.NotFound, match="No request yet"):
        wb.router.explain("last")


def test_pods_of_a_map_stand_in_the_order_of_their_names():
    from backend.api.cache import CacheMap
    from workbench.results import CacheMapResult

    found = CacheMapResult(
        CacheMap(at=1.0, version=1, pods=["v-10", "v-9", "v-1"], bins=1, blocks=[[10], [9], [1]], totals=[10, 9, 1], distinct=20, copies=20)
    )
    assert found.df().rows() == [("v-1", 0, 1), ("v-9", 0, 9), ("v-10", 0, 10)]
