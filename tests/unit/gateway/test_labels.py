"""Label selectors as Kubernetes reads them: what they let through, and what is refused as unclear."""

from __future__ import annotations

import pytest

from backend.gateway.labels import SelectorError, matches, parse

LABELS = {"zone": "a", "gpu": "h20", "team/tier": "gold", "empty": ""}

SELECTORS = [
    ("zone=a", True),
    ("zone==a", True),
    ("zone=b", False),
    ("absent=a", False),
    ("zone!=b", True),
    ("zone!=a", False),
    ("absent!=a", True),  # as Kubernetes: a label that is not there differs from every value
    ("zone in (a,b)", True),
    ("zone in ( b , a )", True),
    ("zone in (b)", False),
    ("absent in (a)", False),
    ("zone notin (b,c)", True),
    ("zone notin (a)", False),
    ("absent notin (a)", True),
    ("gpu", True),
    ("absent", False),
    ("!absent", True),
    ("! absent", True),
    ("!gpu", False),
    ("empty=", True),
    ("empty", True),
    ("zone=", False),
    ("empty in (,x)", True),
    ("team/tier=gold", True),
    (" zone = a , gpu in (h20,l20) , !absent ", True),
    ("zone=a,gpu=l20", False),
    ("zone in (a,b),gpu notin (l20),team/tier", True),
    ("in=x", False),
    ("notin", False),
    ("in in (in)", False),
    ("", True),
    ("  ", True),
]


@pytest.mark.parametrize(("selector", "expected"), SELECTORS)
def test_a_selector_lets_through_what_kubernetes_would(selector: str, expected: bool) -> None:
    assert matches(parse(selector), LABELS) is expected


@pytest.mark.parametrize(
    ("selector", "part"),
    [
        ("zone=a,", "a label"),
        (",zone", "a label"),
        ("zone in a", "("),
        ("zone in (a", ")"),
        ("zone in ()x", ","),
        ("zone=a b", ","),
        ("zone=a=b", ","),
        ("zone>5", ">"),
        ("!zone=a", ","),
        ("!", "a label"),
        ("=a", "a label"),
        ("-zone=a", "-zone"),
        ("zone=-a", "-a"),
        ("a/b/c=x", "a/b/c"),
        ("/b=x", "/b"),
        ("x" * 64, "x" * 64),
        ("zone=" + "x" * 64, "x" * 64),
        ("zone=\xe4", "\xe4"),
    ],
)
def test_what_is_no_selector_is_refused_and_the_place_is_named(selector: str, part: str) -> None:
    with pytest.raises(SelectorError) as refused:
        parse(selector)
    assert part in str(refused.value)


@pytest.mark.parametrize("hostile", ["(" * 100_000, "a," * 50_000 + "!", "!" * 100_000, " " * 100_000 + "=", "a in (" + "," * 100_000])
def test_a_hostile_selector_is_refused_quickly(hostile: str) -> None:
    with pytest.raises(SelectorError):
        parse(hostile)
