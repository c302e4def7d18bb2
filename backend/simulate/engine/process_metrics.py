"""Figures on /metrics that are not the engine's own: the Python process, and HTTP by route as its web framework counts it."""

from __future__ import annotations

import gc
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable

from backend.simulate.engine.exposition import Histogram, filled, head, labels_text, number
from backend.simulate.engine.metrics_table import HANDLER_SECONDS, HIGHR

_SIZE = "Only value of header is respected. Otherwise ignored. No percentile calculated. "
_REQUEST_SIZE = f"Content length of incoming requests by handler. {_SIZE}"
_RESPONSE_SIZE = f"Content length of outgoing responses by handler. {_SIZE}"
_HIGHR = "Latency with many buckets but no API specific labels. Made for more accurate percentile calculations. "
_DURATION = "Latency with only few buckets by handler. Made to be only used if aggregation by handler is important. "


class HttpMetrics:
    """What the web framework of the real engine counts, by route."""

    def __init__(self, created: float) -> None:
        self._created = created
        self._requests: dict[tuple[str, str, str], tuple[float, float]] = {}
        self._sizes: dict[str, list[float]] = {}
        self._durations: dict[tuple[str, str], tuple[Histogram, float]] = {}
        self._highr = Histogram(HIGHR)

    def count(self, handler: str, method: str, status: int, seconds: float, received: int, sent: int) -> None:
        """A label set's birth time is kept beside its numbers."""
        now = time.time()
        key = (handler, method, f"{status // 100}xx")
        before, born = self._requests.get(key, (0.0, now))
        self._requests[key] = (before + 1, born)
        sizes = self._sizes.setdefault(handler, [0.0, 0.0, 0.0, now])
        sizes[0] += 1
        sizes[1] += received
        sizes[2] += sent
        self._highr.observe(seconds)
        self._durations.setdefault((handler, method), (Histogram(HANDLER_SECONDS), now))[0].observe(seconds)

    def render(self) -> str:
        lines = head("http_requests_total", "Total number of requests by method, status and handler.", "counter")
        keys = [(labels_text({"handler": h, "method": m, "status": s}), *pair) for (h, m, s), pair in self._requests.items()]
        lines += [f"http_requests_total{labels} {number(value)}\n" for labels, value, _ in keys]
        if keys:
            lines += head("http_requests_created", "Total number of requests by method, status and handler.", "gauge")
            lines += [f"http_requests_created{labels} {number(created)}\n" for labels, _, created in keys]
        lines += self._summary("http_request_size_bytes", _REQUEST_SIZE, 1)
        lines += self._summary("http_response_size_bytes", _RESPONSE_SIZE, 2)
        lines += head("http_request_duration_highr_seconds", _HIGHR, "histogram")
        lines += filled("http_request_duration_highr_seconds", {}, self._highr)
        lines += head("http_request_duration_highr_seconds_created", _HIGHR, "gauge")
        lines.append(f"http_request_duration_highr_seconds_created {number(self._created)}\n")
        return "".join(lines + self._duration_lines())

    def _summary(self, name: str, text: str, at: int) -> Iterable[str]:
        lines = head(name, text, "summary")
        for handler, sizes in self._sizes.items():
            labels = labels_text({"handler": handler})
            lines += [f"{name}_count{labels} {number(sizes[0])}\n", f"{name}_sum{labels} {number(sizes[at])}\n"]
        if self._sizes:
            lines += head(f"{name}_created", text, "gauge")
            lines += [f"{name}_created{labels_text({'handler': h})} {number(sizes[3])}\n" for h, sizes in self._sizes.items()]
        return lines

    def _duration_lines(self) -> list[str]:
        name = "http_request_duration_seconds"
        lines = head(name, _DURATION, "histogram")
        for (handler, method), (histogram, _) in self._durations.items():
            lines += filled(name, {"handler": handler, "method": method}, histogram)
        if self._durations:
            lines += head(f"{name}_created", _DURATION, "gauge")
            for (handler, method), (_, created) in self._durations.items():
                lines.append(f"{name}_created{labels_text({'handler': handler, 'method': method})} {number(created)}\n")
        return lines


def process_text() -> str:
    """Figures of the Python process itself; memory and descriptors only where /proc tells them."""
    lines: list[str] = []
    stats = gc.get_stats()
    for key, text in (("collected", "Objects collected during gc"), ("uncollectable", "Uncollectable objects found during GC")):
        lines += head(f"python_gc_objects_{key}_total", text, "counter")
        lines += [f'python_gc_objects_{key}_total{{generation="{at}"}} {number(stat[key])}\n' for at, stat in enumerate(stats)]
    lines += head("python_gc_collections_total", "Number of times this generation was collected", "counter")
    lines += [f'python_gc_collections_total{{generation="{at}"}} {number(stat["collections"])}\n' for at, stat in enumerate(stats)]
    return "".join(lines) + _PYTHON_INFO + "".join(_proc_lines())


def _python_info() -> str:
    major, minor, patch = platform.python_version_tuple()
    info = {"implementation": platform.python_implementation(), "major": major, "minor": minor, "patchlevel": patch}
    labels = labels_text({**info, "version": platform.python_version()})
    return "".join(head("python_info", "Python platform information", "gauge")) + f"python_info{labels} 1.0\n"


_PYTHON_INFO = _python_info()
_STARTED = time.time()


def _proc_lines() -> Iterable[str]:
    readers: tuple[tuple[str, str, str, Callable[[], float]], ...] = (
        ("virtual_memory_bytes", "Virtual memory size in bytes.", "gauge", lambda: _statm(0)),
        ("resident_memory_bytes", "Resident memory size in bytes.", "gauge", lambda: _statm(1)),
        ("start_time_seconds", "Start time of the process since unix epoch in seconds.", "gauge", lambda: _STARTED),
        ("cpu_seconds_total", "Total user and system CPU time spent in seconds.", "counter", time.process_time),
        ("open_fds", "Number of open file descriptors.", "gauge", lambda: len(os.listdir("/proc/self/fd"))),
        ("max_fds", "Maximum number of open file descriptors.", "gauge", lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    )
    for name, text, kind, read in readers:
        try:
            value = read()
        except OSError:
            continue
        yield from (*head(f"process_{name}", text, kind), f"process_{name} {number(value)}\n")


def _statm(field: int) -> float:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[field]) * resource.getpagesize()
