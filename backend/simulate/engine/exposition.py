"""Prometheus text as the engine's own client library writes it: labels in order of name, numbers in its spelling."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate


class Histogram:
    """Counts per bucket, not cumulated; the last one is everything beyond the largest bound."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def numbers(self) -> list[float]:
        """Cumulated buckets, count, sum: the order in which they are written."""
        cumulated = list(accumulate(self.counts))
        return [*cumulated, cumulated[-1], self.sum]


def head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}\n", f"# TYPE {name} {kind}\n"]


def labels_text(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    escaped = ((name, value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')) for name, value in sorted(labels.items()))
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


def histogram_lines(name: str, labels: Mapping[str, str], bounds: tuple[float, ...]) -> list[str]:
    """Template lines of a histogram, one place for a number each."""
    limits = [*(number(bound) for bound in bounds), "+Inf"]
    lines = [f"{name}_bucket{labels_text({**labels, 'le': limit})}" for limit in limits]
    lines += [f"{name}_count{labels_text(labels)}", f"{name}_sum{labels_text(labels)}"]
    return [escape(line) + " %s\n" for line in lines]


def filled(name: str, labels: Mapping[str, str], histogram: Histogram) -> list[str]:
    lines = "".join(histogram_lines(name, labels, histogram.bounds))
    return [lines % tuple(map(number, histogram.numbers()))]


def escape(text: str) -> str:
    return text.replace("%", "%%")


def number(value: float) -> str:
    """As the client library writes numbers: `8.0`, and `1.79e+09` from a million on."""
    text = repr(float(value))
    dot = text.find(".")
    if dot > 6 and value > 0:
        mantissa = f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.")
        return f"{mantissa}e+0{dot - 1}"
    return text
