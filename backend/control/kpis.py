"""Figures of the last minute from finished requests: rate, errors, time to first token, hit rate. Pure, in one-second buckets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from backend.api.decisions import DecisionRecord

WINDOW_S = 60
RATE_S = 10
"""Rates are over this long: short enough to follow, long enough not to flicker."""
SAMPLES_A_SECOND = 500
"""Times to first token kept a second; a p95 over 30,000 samples is exact enough."""
_FAILED = frozenset({"upstream_error", "upstream_reset", "timeout", "aborted", "truncated"})


class Kpis(NamedTuple):
    requests_per_s: float = 0.0
    errors_per_s: float = 0.0
    ttft_p95_ms: float | None = None
    hit_rate: float | None = None


@dataclass(slots=True)
class _Second:
    requests: int = 0
    errors: int = 0
    cached_tokens: int = 0
    prompt_tokens: int = 0
    ttft_ms: list[float] = field(default_factory=list)


class TrafficWindow:
    """Requests by the second in which they ended."""

    def __init__(self) -> None:
        self._seconds: dict[int, _Second] = {}
        self.policies: dict[str, float] = {}
        """Policy to the arrival of its newest request, seconds since 1970."""

    def add(self, records: Iterable[DecisionRecord]) -> None:
        for record in records:
            second = self._seconds.setdefault(int(record.at + record.total_ms / 1000), _Second())
            second.requests += 1
            second.errors += is_error(record)
            if record.cached_tokens is not None and record.usage_prompt_tokens:
                second.cached_tokens += record.cached_tokens
                second.prompt_tokens += record.usage_prompt_tokens
            if record.ttft_ms is not None and len(second.ttft_ms) < SAMPLES_A_SECOND:
                second.ttft_ms.append(record.ttft_ms)
            self.policies[record.policy] = max(record.at, self.policies.get(record.policy, 0.0))

    def kpis(self, now: float) -> Kpis:
        """Over the full seconds before `now`; records still on their way from the workers (0.2 s) are in the second after."""
        current = int(now)
        for moment in [moment for moment in self._seconds if moment < current - WINDOW_S]:
            del self._seconds[moment]
        minute = [second for moment, second in self._seconds.items() if moment < current]
        recent = [second for moment, second in self._seconds.items() if current - RATE_S <= moment < current]
        times = sorted(sample for second in minute for sample in second.ttft_ms)
        prompt = sum(second.prompt_tokens for second in minute)
        return Kpis(
            requests_per_s=sum(second.requests for second in recent) / RATE_S,
            errors_per_s=sum(second.errors for second in recent) / RATE_S,
            ttft_p95_ms=round(times[min(len(times) - 1, int(0.95 * len(times)))], 3) if times else None,
            hit_rate=round(sum(second.cached_tokens for second in minute) / prompt, 6) if prompt else None,
        )

    def uses(self, policy: str, now: float) -> bool:
        """Whether `policy` decided a request of the last minute."""
        return now - self.policies.get(policy, 0.0) <= WINDOW_S


def is_error(record: DecisionRecord) -> bool:
    """The fleet's fault. A client that left or sent nonsense is not."""
    return record.outcome in _FAILED or record.status >= 500
