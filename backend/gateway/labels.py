"""Label selectors in Kubernetes' syntax: `a=b, c!=d, e in (x,y), f notin (x), g, !h`; all parts have to hold.

Owns the syntax and its meaning, nothing else: no pods, no HTTP. Unlike kubectl it knows no `>` and `<`, which label selectors of
Kubernetes' own objects do not have either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

Operator = Literal["in", "notin", "exists", "absent"]
LONGEST = 4096
"""Characters of a selector: it comes with each request."""

_TOKEN = re.compile(r"\s*(==|!=|[=!,()]|[^\s=!,()]+)\s*")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?\Z")
_PREFIX = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\Z")
_SIGNS = frozenset(("==", "=", "!=", "!", ",", "(", ")", ""))


class SelectorError(ValueError):
    """The text says what was expected where."""


class Requirement(NamedTuple):
    label: str
    operator: Operator
    values: frozenset[str] = frozenset()


def matches(requirements: tuple[Requirement, ...], labels: Mapping[str, str]) -> bool:
    return all(_holds(each, labels) for each in requirements)


def _holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.label)
    if requirement.operator == "in":
        return value in requirement.values
    if requirement.operator == "notin":
        return value not in requirement.values
    return (value is not None) == (requirement.operator == "exists")


@lru_cache(256)
def parse(selector: str) -> tuple[Requirement, ...]:
    """Raises SelectorError. An empty selector asks for nothing."""
    if len(selector) > LONGEST:
        raise SelectorError(f"longer than {LONGEST} characters")
    tokens = [found[1] for found in _TOKEN.finditer(selector)]
    if not tokens:
        return ()
    reader = _Reader(tokens)
    requirements = [reader.requirement()]
    while reader.peek():
        reader.expect(",")
        requirements.append(reader.requirement())
    return tuple(requirements)


class _Reader:
    """The tokens one after the other; "" behind the last."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    def peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def next(self) -> str:
        token = self.peek()
        self._at += 1
        return token

    def expect(self, sign: str) -> None:
        token = self.next()
        if token != sign:
            raise SelectorError(f"expected {sign!r}, found {_named(token)}")

    def requirement(self) -> Requirement:
        if self.peek() == "!":
            self.next()
            return Requirement(self._label(), "absent")
        label = self._label()
        sign = self.peek()
        if sign in ("", ","):
            return Requirement(label, "exists")
        self.next()
        if sign in ("=", "=="):
            return Requirement(label, "in", frozenset((self._value(),)))
        if sign == "!=":
            return Requirement(label, "notin", frozenset((self._value(),)))
        if sign == "in":
            return Requirement(label, "in", self._values())
        if sign == "notin":
            return Requirement(label, "notin", self._values())
        raise SelectorError(f"expected =, !=, in, notin or ',' behind {label!r}, found {_named(sign)}")

    def _label(self) -> str:
        token = self.next()
        if token in _SIGNS:
            raise SelectorError(f"expected a label, found {_named(token)}")
        prefix, slash, name = token.rpartition("/")
        if not _NAME.match(name) or (slash and not _PREFIX.match(prefix)):
            raise SelectorError(f"{token!r} cannot be the name of a label")
        return token

    def _value(self) -> str:
        token = self.peek()
        if token in ("", ",", ")"):
            return ""
        self.next()
        if not _NAME.match(token):
            raise SelectorError(f"{token!r} cannot be the value of a label")
        return token

    def _values(self) -> frozenset[str]:
        self.expect("(")
        values = {self._value()}
        while self.peek() == ",":
            self.next()
            values.add(self._value())
        self.expect(")")
        return frozenset(values)


def _named(token: str) -> str:
    return repr(token) if token else "the end"
