"""Control's own metrics, read from its parts when somebody asks, so that nothing is counted twice."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from backend.control.service import Control
from backend.core.metrics import Registry

_HISTORY = {
    "received": "Decision records taken from the stream.",
    "duplicates": "Decision records that came a second time and were dropped.",
    "unreadable": "Stream entries that were no batch of records.",
    "trimmed": "Stream entries that the stream's cap removed before they were written.",
    "written": "Decision records written to files.",
    "files": "History files written.",
    "files_deleted": "History files deleted to keep to the size.",
    "rows_deleted": "Rows of those files.",
    "write_failures": "History files that the disk refused.",
    "compacted": "Small history files merged.",
}


class _Figures(Collector):
    def __init__(self, control: Control) -> None:
        self.control = control

    def collect(self) -> Iterable[Metric]:
        control = self.control
        for name, meaning in _HISTORY.items():
            yield CounterMetricFamily(f"control_history_{name}", meaning, value=getattr(control.history.counters, name))
        yield CounterMetricFamily("control_stream_dropped", "Viewers of the event stream that were too slow.", value=control.hub.dropped)
        yield CounterMetricFamily("control_scrape_failures", "Scrapes of pods that failed.", value=control.scraper.failures)
        yield CounterMetricFamily("control_fleet_file_problems", "Times the fleet file turned bad.", value=control.source.problems)
        yield CounterMetricFamily(
            "control_task_restarts", "Tasks that died and were started again.", value=sum(control.tasks.restarts.values())
        )
        yield GaugeMetricFamily("control_history_unwritten_records", "Records that no file holds yet.", value=control.history.hot.unwritten)
        open_entries = control.history.unacknowledged
        yield GaugeMetricFamily("control_history_unacknowledged_entries", "Stream entries not yet safe in a file.", value=open_entries)
        yield GaugeMetricFamily("control_history_recent_records", "Records in memory.", value=len(control.history.hot))
        yield GaugeMetricFamily("control_stream_viewers", "Open event streams.", value=control.hub.listeners)
        yield GaugeMetricFamily("control_pods", "Pods of the fleet.", value=len(control.pods))
        yield GaugeMetricFamily("control_pods_ready", "Pods that may get requests.", value=sum(pod.ready for pod in control.pods))
        found = GaugeMetricFamily("control_findings", "Findings now, by severity.", labels=["severity"])
        for severity in ("error", "warning", "info"):
            found.add_metric([severity], sum(finding.severity == severity for finding in control.findings))
        yield found


def register(registry: Registry, control: Control) -> None:
    registry.collector.register(_Figures(control))
