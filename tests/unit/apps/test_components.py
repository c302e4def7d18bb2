"""Words, numbers and small tables: literal cases. Not here: how they look (tests/ui)."""

from __future__ import annotations

import math
import string

import pytest

from apps.components import cachetext, findings, kpi, snippets, status, text, why
from apps.components.heatmap import _ceiling, shorten
from apps.core.snapshot import Connection
from backend.api.cache import CacheMap, ProbeMatch, ProbeResult
from backend.api.decisions import DecisionRecord, PrefillChoice
from backend.api.findings import Finding

NUMBERS = [
    (text.count, 1234, "1,234"),
    (text.count, 12_345_678, "12.3 M"),
    (text.count, None, "–"),
    (text.rate, 0.0, "0.0"),
    (text.rate, 0.034, "0.03"),
    (text.rate, 123.4, "123"),
    (text.percent, 0.366, "37 %"),
    (text.percent, math.nan, "–"),
    (text.milliseconds, 0.42, "0.42 ms"),
    (text.milliseconds, 38.2, "38 ms"),
    (text.milliseconds, 1240.0, "1.24 s"),
    (text.duration, 42, "42 s"),
    (text.duration, 119, "119 s"),
    (text.duration, 900, "15 min"),
    (text.duration, 7200, "2 h"),
    (text.duration, 259_200, "3 d"),
    (text.duration, -1, "–"),
    (text.clock, 1_700_000_000.25, "22:13:20.250"),
]


@pytest.mark.parametrize(("function", "value", "expected"), NUMBERS, ids=[f"{case[0].__name__}_{case[1]}" for case in NUMBERS])
def test_numbers_are_written_for_people(function: object, value: float, expected: str) -> None:
    assert function(value) == expected  # type: ignore[operator]


def test_names_sort_as_people_count() -> None:
    assert sorted(["vllm-10", "vllm-9", "a", "vllm-1-b"], key=text.natural) == ["a", "vllm-1-b", "vllm-9", "vllm-10"]


@pytest.mark.parametrize(("largest", "top"), [(0, 8), (8, 8), (9, 12), (13, 16), (17, 24), (25, 32), (100, 128), (129, 192)])
def test_the_colour_scale_moves_in_few_steps(largest: int, top: int) -> None:
    assert _ceiling(largest) == top


def test_long_names_keep_their_end() -> None:
    assert shorten("a" * 40 + "-decode-17").endswith("-decode-17")
    assert len(shorten("a" * 50)) == 28


HOSTILE = "<script>alert('x')</script>\"&"


def record(**changes: object) -> DecisionRecord:
    values: dict[str, object] = {
        "id": "r1",
        "at": 0.0,
        "model": "m",
        "policy": "prefix-cache",
        "candidates": ["a", "b", "c"],
        "terms": {"matched_tokens": [64.0, 128.0, 0.0], "in_flight": [1.0, 2.0, 3.0]},
        "chosen": "b",
        "outcome": "ok",
    }
    return DecisionRecord(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "html",
    [
        findings.render([Finding(id="1", severity="error", title=HOSTILE, target=HOSTILE, cause=HOSTILE, fix=HOSTILE)]),
        kpi.render([kpi.Kpi(HOSTILE, HOSTILE, HOSTILE, HOSTILE)]),
        status.render(Connection("lost", 1.0, HOSTILE), 2.0, 1, failure=HOSTILE),
        why.story(record(id=HOSTILE, error=HOSTILE, model=HOSTILE, reason=HOSTILE, user=HOSTILE, path=HOSTILE)),
        why.candidates(record(candidates=[HOSTILE, "b", "c"], terms={HOSTILE: [1.0, 2.0, 3.0]})),
        cachetext.probe_answer(ProbeResult(model=HOSTILE, tokens=1, matches=[ProbeMatch(pod=HOSTILE, matched_tokens=1, share=1.0)])),
        cachetext.probe_failed(HOSTILE),
        text.state_box(HOSTILE, ""),
    ],
    ids=["findings", "kpi", "status", "story", "candidates", "probe", "probe_failed", "state_box"],
)
def test_what_others_named_is_escaped(html: str) -> None:
    assert "<script" not in html
    assert "&lt;script" in html


def test_the_chosen_pod_comes_first_and_is_marked() -> None:
    html = why.candidates(record())
    assert html.index("✓ b") < html.index(">a<")
    assert html.count('class="chosen"') == 1


def test_of_a_pair_both_halves_are_listed_with_their_terms() -> None:
    prefill = PrefillChoice(chosen="p-1", candidates=["p-0", HOSTILE, "p-1"], terms={"matched_tokens": [0.0, 0.0, 512.0]}, attempts=["p-0"])
    html = why.candidates(record(prefill=prefill))
    first, second = html.split("Candidate for decode")
    assert first.index("✓ p-1") < first.index("p-0")
    assert "failed first" in first
    assert HOSTILE not in html
    assert second.count("<tr") == 4 - 1  # its own head stands before the split


def test_a_policy_without_terms_still_lists_its_candidates() -> None:
    assert why.candidates(record(terms={})).count("<tr") == 4
    assert why.plot(record(terms={}), "light") is None


def test_terms_of_odd_length_do_not_break_the_page() -> None:
    assert "–" in why.candidates(record(terms={"matched_tokens": [1.0]}))


def test_a_refused_request_has_no_candidates_and_says_so() -> None:
    assert "No candidates" in why.candidates(record(candidates=[], terms={}, chosen=""))


def test_the_line_breaks_where_nothing_was_measured() -> None:
    html = kpi.render([kpi.Kpi("x", "1", line=[1.0, None, 2.0, 3.0])])
    assert html.count("M0") + html.count("M80") == 2
    assert "area" not in html


MAP = CacheMap(
    at=0.0, version=1, pods=["a", "b"], bins=4, blocks=[[1, 0, 0, 2], [0, 0, 0, 3]], totals=[3, 3], distinct=4, copies=6, shared=[]
)


def test_the_map_in_one_sentence() -> None:
    assert "held <b class='num'>1.50</b> times" in cachetext.summary(MAP, "")
    assert "last state" in cachetext.summary(MAP, "kvindex is away")
    assert "does not answer" in cachetext.summary(None, "kvindex is away")


def test_an_empty_map_says_what_engines_need() -> None:
    empty = CacheMap(at=0.0, version=1, pods=["a"], bins=1, blocks=[[0]], totals=[0], distinct=0, copies=0)
    assert "--kv-events-config" in cachetext.summary(empty, "")


@pytest.mark.parametrize("key", list(snippets.SNIPPETS))
def test_snippets_are_python_and_hold_only_known_names(key: str) -> None:
    compile(snippets.code(key), key, "exec")
    wanted = {name for _, name, _, _ in string.Formatter().parse(snippets.SNIPPETS[key]) if name}
    assert wanted <= set(snippets.EXAMPLES)


def test_a_prompt_in_a_snippet_is_a_literal() -> None:
    code = snippets.code("probe", prompt='say "hi"\n{x}')
    assert "'say \"hi\"\\n{x}'" in code
