"""The values behind /metrics and their text, for any engine family.

All but the numbers is formatted once, at start; a scrape fills some seven hundred of them into one template.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from backend.simulate.engine.exposition import Histogram, escape, head, histogram_lines, labels_text, number
from backend.simulate.engine.metrics_table import Family
from backend.simulate.engine.process_metrics import HttpMetrics, process_text

CONTENT_TYPE = b"text/plain; version=1.0.0; charset=utf-8"
_UNCOUNTED_PATHS = frozenset({"/metrics", "/health", "/load", "/ping", "/version", "/server_info"})


class EngineMetrics:
    """`add`, `set` and `histograms` take the names of the table without prefix and `_total`; names that it has not are ignored."""

    def __init__(
        self, prefix: str, listed: Sequence[Family], labels: Mapping[str, str], *, tail: str = "", python_client: bool = True
    ) -> None:
        """`labels` stand at every family, but at one that is not `by_engine` only the model's name. `tail` is constant text.

        `python_client`: with what the engine's client library adds by itself (process, HTTP, birth times of counters).
        """
        self.created = time.time()
        self._prefix = prefix
        self._python_client = python_client
        self._values: dict[tuple[str, str], float] = {}
        self.histograms: dict[str, Histogram] = {}
        self._http = HttpMetrics(self.created)
        parts: list[str] = []
        self._sources: list[tuple[str, str] | Histogram] = []
        for family in listed:
            parts += self._family(family, labels)
        self._template = "".join(parts) + escape(tail)

    def add(self, name: str, amount: float = 1.0, label: str = "") -> None:
        key = (name, label)
        if key in self._values:
            self._values[key] += amount

    def set(self, name: str, value: float, label: str = "") -> None:
        if (name, label) in self._values:
            self._values[name, label] = value

    def observe(self, name: str, value: float, times: int = 1) -> None:
        histogram = self.histograms.get(name)
        if histogram is not None:
            histogram.observe(value, times)

    def http(self, handler: str, method: str, status: int, seconds: float, received: int, sent: int) -> None:
        """Count an answered request; scrapes and probes are not counted."""
        if handler not in _UNCOUNTED_PATHS:
            self._http.count(handler, method, status, seconds, received, sent)

    def render(self) -> bytes:
        numbers: list[float] = []
        for source in self._sources:
            if isinstance(source, Histogram):
                numbers += source.numbers()
            else:
                numbers.append(self._values[source])
        engine = self._template % tuple(map(number, numbers))
        if not self._python_client:
            return engine.encode()
        return f"{process_text()}{engine}{self._http.render()}".encode()

    def _family(self, family: Family, labels: Mapping[str, str]) -> list[str]:
        name = f"{self._prefix}{family.name}"
        base = labels if family.by_engine else {"model_name": labels["model_name"]}
        sets = [{**base, family.label: value} if family.label else dict(base) for value in family.values]
        parts = [escape(line) for line in head(name, family.help, family.kind)]
        if family.kind == "histogram":
            histogram = self.histograms[family.name] = Histogram(family.buckets)
            parts += histogram_lines(name, sets[0], family.buckets)
            self._sources.append(histogram)
        else:
            short = family.name.removesuffix("_total")
            for value, label_set in zip(family.values, sets, strict=True):
                self._values[short, value] = 0.0
                self._sources.append((short, value))
                parts.append(escape(f"{name}{labels_text(label_set)}") + " %s\n")
        if family.kind != "gauge" and self._python_client:
            created = f"{name.removesuffix('_total') if family.kind == 'counter' else name}_created"
            parts += [escape(line) for line in head(created, family.help, "gauge")]
            parts += [escape(f"{created}{labels_text(label_set)} {number(self.created)}\n") for label_set in sets]
        return parts
