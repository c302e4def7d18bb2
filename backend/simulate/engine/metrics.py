"""The values behind /metrics and their text.

All but the numbers is formatted once, at start; a scrape fills some seven hundred of them into one template.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from backend.simulate.engine.exposition import Histogram, escape, head, histogram_lines, labels_text, number
from backend.simulate.engine.metrics_table import Family, Version, cache_config, families
from backend.simulate.engine.model import CoreSettings
from backend.simulate.engine.process_metrics import HttpMetrics, process_text

CONTENT_TYPE = b"text/plain; version=1.0.0; charset=utf-8"
_UNCOUNTED_PATHS = frozenset({"/metrics", "/health", "/load", "/ping", "/version", "/server_info"})


class EngineMetrics:
    """`add`, `set` and `histograms` take the names of the table without `vllm:`; names that the version has not are ignored."""

    def __init__(self, *, model: str, engine: str = "0", version: Version, settings: CoreSettings, algorithm: str) -> None:
        self.created = time.time()
        self._values: dict[tuple[str, str], float] = {}
        self.histograms: dict[str, Histogram] = {}
        self._http = HttpMetrics(self.created)
        labels = {"engine": engine, "model_name": model}
        parts: list[str] = []
        self._sources: list[tuple[str, str] | Histogram] = []
        for family in families(version, settings.max_model_len):
            parts += self._family(family, labels)
        info = {
            **cache_config(
                block_size=settings.block_size, num_blocks=settings.num_blocks, max_model_len=settings.max_model_len, algorithm=algorithm
            ),
            "engine": engine,
        }
        parts += head("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", "gauge")
        parts.append(escape(f"vllm:cache_config_info{labels_text(info)} 1.0\n"))
        self._template = "".join(parts)
        self.set("engine_sleep_state", 1.0, "awake")

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
        return f"{process_text()}{engine}{self._http.render()}".encode()

    def _family(self, family: Family, labels: Mapping[str, str]) -> list[str]:
        name = f"vllm:{family.name}"
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
        if family.kind != "gauge":
            created = f"{name.removesuffix('_total') if family.kind == 'counter' else name}_created"
            parts += [escape(line) for line in head(created, family.help, "gauge")]
            parts += [escape(f"{created}{labels_text(label_set)} {number(self.created)}\n") for label_set in sets]
        return parts
