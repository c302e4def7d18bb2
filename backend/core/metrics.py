"""One metrics registry a process, rendered as Prometheus text on its `/metrics`.

Names begin with the process' own prefix (`gateway_`, `kvindex_`, `control_`, ...); units are the last word of a name, as the
Prometheus naming guide asks. Never the library's global registry: tests and in-process engines need several side by side.
"""

from __future__ import annotations

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

__all__ = ["CONTENT_TYPE", "Counter", "Gauge", "Histogram", "Registry"]


class Registry:
    """A registry with the process' own figures (CPU, memory, open files) and whatever the parts add."""

    def __init__(self) -> None:
        self.collector = CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.collector)

    def counter(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, documentation, labels, registry=self.collector)

    def gauge(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, documentation, labels, registry=self.collector)

    def histogram(
        self, name: str, documentation: str, labels: tuple[str, ...] = (), *, buckets: tuple[float, ...] = Histogram.DEFAULT_BUCKETS
    ) -> Histogram:
        return Histogram(name, documentation, labels, registry=self.collector, buckets=buckets)

    def render(self) -> bytes:
        return generate_latest(self.collector)
