"""From an engine's counters to what people read: rates, hit rate of the last minute, mean time to first token. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import msgspec

from backend.api.fleet import PodLoad

WINDOW_S = 60.0
"""Hit rates are over this long."""

FIGURES = (
    "running",
    "waiting",
    "kv_usage",
    "prefix_queries",
    "prefix_hits",
    "prompt_tokens",
    "generation_tokens",
    "requests_finished",
    "ttft",
)
"""Figures of MetricNames that a PodLoad is made of; those of them that an engine family has must be there."""


class LoadHistory:
    """The scrapes of one boot of one pod, as far as rates need them."""

    def __init__(self) -> None:
        self.load = PodLoad()
        self.scraped_monotonic = 0.0
        self._last: Mapping[str, float] = {}
        self._hits: deque[tuple[float, float, float]] = deque()

    def add(self, figures: Mapping[str, float], known: set[str], *, now: float, monotonic: float) -> None:
        """Take a scrape. `known`: figures that this engine family has."""
        seconds = monotonic - self.scraped_monotonic if self._last else 0.0
        self.load = PodLoad(
            state="fresh",
            scraped_at=now,
            running=figures.get("running", 0.0),
            waiting=figures.get("waiting", 0.0),
            kv_usage=figures.get("kv_usage", 0.0),
            prefix_queries=figures.get("prefix_queries", 0.0),
            prefix_hits=figures.get("prefix_hits", 0.0),
            hit_rate=self._hit_rate(figures, monotonic),
            prompt_tokens_per_s=self._grown(figures, "prompt_tokens") / seconds if seconds else 0.0,
            generation_tokens_per_s=self._grown(figures, "generation_tokens") / seconds if seconds else 0.0,
            requests_finished=figures.get("requests_finished", 0.0),
            ttft_mean_s=self._ttft_mean(figures),
            missing=[name for name in FIGURES if name in known and name not in figures and f"{name}_sum" not in figures],
        )
        self._last = figures
        self.scraped_monotonic = monotonic

    def fail(self, why: str) -> None:
        """The newest scrape failed: the figures stay, the reason is shown."""
        self.load = msgspec.structs.replace(self.load, error=why)

    def _grown(self, figures: Mapping[str, float], name: str) -> float:
        """Growth since the last scrape; 0 when a counter is missing or went back (the engine was restarted unseen)."""
        if name not in figures or name not in self._last:
            return 0.0
        return max(0.0, figures[name] - self._last[name])

    def _ttft_mean(self, figures: Mapping[str, float]) -> float | None:
        requests = self._grown(figures, "ttft_count")
        return self._grown(figures, "ttft_sum") / requests if requests else None

    def _hit_rate(self, figures: Mapping[str, float], monotonic: float) -> float | None:
        if "prefix_queries" not in figures or "prefix_hits" not in figures:
            return None
        queries, hits = figures["prefix_queries"], figures["prefix_hits"]
        samples = self._hits
        if samples and queries < samples[-1][1]:
            samples.clear()
        samples.append((monotonic, queries, hits))
        # The newest sample older than the window stays: the window's growth counts from it.
        while len(samples) > 2 and samples[1][0] <= monotonic - WINDOW_S:
            samples.popleft()
        asked = queries - samples[0][1]
        return (hits - samples[0][2]) / asked if asked > 0 else None
