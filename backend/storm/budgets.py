"""How many may be missing and how many may be extra while something is replaced."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from .actions import Problem

PERCENT = re.compile(r"(\d{1,9})%")


class Budget(msgspec.Struct, frozen=True):
    """`wanted` instances, at most `surge` more, at most `unavailable` of them not ready."""

    wanted: int
    surge: int
    unavailable: int

    @property
    def min_ready(self) -> int:
        return self.wanted - self.unavailable

    @property
    def per_step(self) -> int:
        """How many of a role one step of an interleaved rollout may change."""
        return max(1, self.surge + self.unavailable)


def amount_problem(value: Any, path: str) -> Problem | None:
    """Why `value` is no amount (a count of 0 or more, or a percentage such as "25%"), or None."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return None
    if isinstance(value, str) and PERCENT.fullmatch(value):
        return None
    return Problem(path, f"{value!r} is neither a count of 0 or more nor a percentage; write 2, or '25%' in quotes.")


def resolve(wanted: int, surge: int | str | None, unavailable: int | str | None) -> Budget:
    """Percentages of `wanted`: surge rounds up, unavailable rounds down. Both zero would never move, so one may then be unavailable."""
    if wanted == 0:
        return Budget(0, 0, 0)
    extra, missing = _count(surge, wanted, up=True), _count(unavailable, wanted, up=False)
    if extra == 0 and missing == 0:
        missing = 1
    return Budget(wanted, extra, min(missing, wanted))


def _count(value: int | str | None, wanted: int, *, up: bool) -> int:
    if isinstance(value, str):
        part = int(value[:-1]) * wanted
        return -(-part // 100) if up else part // 100
    return value or 0
