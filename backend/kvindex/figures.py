"""The service's Prometheus figures, read from index and sources when somebody scrapes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from backend.core.metrics import Registry

if TYPE_CHECKING:
    from backend.kvindex.service import IndexService

_COUNTERS = {
    "batches": "Messages applied",
    "stored": "Blocks stored",
    "removed": "Block copies removed",
    "cleared": "Caches cleared",
    "gaps": "Holes in the sequence",
    "missed": "Messages that no replay could bring back",
    "restarts": "Engine restarts seen",
    "reconnects": "Connections made again",
}


class _Figures(Collector):
    def __init__(self, service: IndexService) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        stats = self._service.index.stats()
        for name, documentation, value in (
            ("kvindex_distinct_blocks", "Blocks that at least one pod holds", stats.distinct_blocks),
            ("kvindex_copies", "Blocks held, summed over pods", stats.copies),
            ("kvindex_capacity_blocks", "Distinct blocks before the table grows", stats.capacity_blocks),
            ("kvindex_bytes", "Memory of table and engine hashes", stats.bytes),
            ("kvindex_parked_blocks", "Blocks that wait for their unknown parent", stats.parked),
            ("kvindex_generation", "Generation of the shared file", stats.generation),
        ):
            yield GaugeMetricFamily(name, documentation, value=value)
        failures = self._service.index.growth_failures
        yield CounterMetricFamily("kvindex_growth_failures", "Attempts to grow for which shared memory had no room", value=failures)
        states = self._service.feed.states()
        labels = ("pod", "rank")
        for name, documentation in _COUNTERS.items():
            counter = CounterMetricFamily(f"kvindex_source_{name}", documentation, labels=labels)
            for state in states:
                counter.add_metric((state.pod, str(state.rank)), getattr(state, name))
            yield counter
        skipped = CounterMetricFamily("kvindex_source_skipped", "Events left out, unreadable ones and others", labels=(*labels, "reason"))
        live = GaugeMetricFamily("kvindex_source_live", "1 while the source is live", labels=labels)
        lag = GaugeMetricFamily("kvindex_source_lag_seconds", "Engine's time stamp to indexed, newest message", labels=labels)
        for state in states:
            key = (state.pod, str(state.rank))
            live.add_metric(key, float(state.status == "live"))
            if state.lag_ms is not None:
                lag.add_metric(key, state.lag_ms / 1000)
            for reason, count in state.skipped.items():
                skipped.add_metric((*key, reason), count)
        yield from (skipped, live, lag)


def register(registry: Registry, service: IndexService) -> None:
    registry.collector.register(_Figures(service))
