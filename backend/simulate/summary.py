"""What a replay was like: percentiles, hit rate, errors, beside what an endless cache would have found. Counts, sends nothing."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable

import msgspec

from backend.simulate.loadgen import RequestResult
from backend.simulate.traces import CeilingCounter, TraceRequest

PERCENTILES = (50, 90, 95, 99)


class Percentiles(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """Milliseconds; None without a sample."""

    count: int = 0
    mean_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None


class Summary(msgspec.Struct, kw_only=True):
    """A replay as a whole."""

    trace: str = ""
    policy: str = ""
    requests: int = 0
    ok: int = 0
    errors: dict[str, int] = {}
    """By class."""
    first_error: str = ""
    duration_s: float = 0.0
    requests_per_s: float = 0.0
    ttft: Percentiles = Percentiles()
    itl: Percentiles = Percentiles()
    """Of each request's mean gap between tokens."""
    e2e: Percentiles = Percentiles()
    late: Percentiles = Percentiles()
    """How much later than due requests were sent: large values mean that a bound or this machine held them back."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    hit_rate: float | None = None
    """Cached prompt tokens over prompt tokens of the requests whose answer told both."""
    ceiling: float = 0.0
    """Share of the same requests' 512-token blocks that an endless cache would have found."""
    ceiling_tokens: float = 0.0
    """The same by tokens: comparable with `hit_rate`."""
    pods: dict[str, int] = {}
    """Requests by the pod that answered."""

    def text(self) -> str:
        """The summary as a few aligned lines."""
        return "\n".join([*self._counts(), "", *self._times(), "", *self._pods()]).rstrip()

    def _counts(self) -> Iterable[str]:
        speed = f"{self.requests_per_s:.2f} requests/s" if self.duration_s else "no time"
        policy = f" with policy {self.policy}" if self.policy else ""
        yield f"{self.requests:,} requests of {self.trace or 'the trace'}{policy} in {self.duration_s:.1f} s ({speed})"
        failed = ", ".join(f"{count:,} {name}" for name, count in sorted(self.errors.items()))
        yield f"ok        {self.ok:,}" + (f"; errors: {failed}" if failed else "; no errors")
        if self.first_error:
            yield f"          first error: {self.first_error}"
        if self.hit_rate is not None:
            yield (
                f"hit rate  {self.hit_rate:.2%} of {self.prompt_tokens:,} prompt tokens; an endless cache: "
                f"{self.ceiling_tokens:.2%} of tokens, {self.ceiling:.2%} of blocks"
            )
        else:
            yield f"hit rate  not told by the engine; an endless cache: {self.ceiling_tokens:.2%} of tokens, {self.ceiling:.2%} of blocks"

    def _times(self) -> Iterable[str]:
        yield f"{'ms':10}" + "".join(f"{name:>11}" for name in ("mean", *(f"p{p}" for p in PERCENTILES)))
        for name, times in (("TTFT", self.ttft), ("ITL", self.itl), ("E2E", self.e2e), ("sent late", self.late)):
            values = (times.mean_ms, times.p50_ms, times.p90_ms, times.p95_ms, times.p99_ms)
            yield f"{name:10}" + "".join(f"{'–' if value is None else f'{value:,.1f}':>11}" for value in values)

    def _pods(self) -> Iterable[str]:
        total = sum(self.pods.values())
        for pod, count in sorted(self.pods.items()):
            yield f"{pod:20} {count:>8,} requests  {count / total:6.1%}"


class Collector:
    """Adds results up. Keeps four floats a request and the distinct hash ids, nothing else."""

    def __init__(self) -> None:
        self.requests = 0
        self._ceiling = CeilingCounter()
        self._ok = 0
        self._errors: dict[str, int] = {}
        self._first_error = ""
        self._pods: dict[str, int] = {}
        self._ttft, self._itl, self._e2e, self._late = (array("d") for _ in range(4))
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0
        self._hit_known = False

    @property
    def failed(self) -> int:
        return self.requests - self._ok

    def sent(self, request: TraceRequest) -> None:
        """Count a request towards the ceiling; called for all that are sent, in their order."""
        self._ceiling.add(request)

    def add(self, result: RequestResult) -> None:
        self.requests += 1
        self._late.append(result.late_s)
        if result.pod:
            self._pods[result.pod] = self._pods.get(result.pod, 0) + 1
        if result.error:
            self._errors[result.error] = self._errors.get(result.error, 0) + 1
            self._first_error = self._first_error or f"{result.error}: {result.message}"[:300]
            return
        self._ok += 1
        for values, seconds in ((self._ttft, result.ttft_s), (self._itl, result.itl_s), (self._e2e, result.e2e_s)):
            if seconds is not None:
                values.append(seconds)
        self._completion_tokens += result.completion_tokens or 0
        if result.prompt_tokens is not None and result.cached_tokens is not None:
            self._hit_known = True
            self._prompt_tokens += result.prompt_tokens
            self._cached_tokens += result.cached_tokens

    def summary(self, duration_s: float, *, trace: str = "", policy: str = "") -> Summary:
        best = self._ceiling.result()
        return Summary(
            trace=trace,
            policy=policy,
            requests=self.requests,
            ok=self._ok,
            errors=dict(self._errors),
            first_error=self._first_error,
            duration_s=duration_s,
            requests_per_s=self.requests / duration_s if duration_s else 0.0,
            ttft=percentiles(self._ttft),
            itl=percentiles(self._itl),
            e2e=percentiles(self._e2e),
            late=percentiles(self._late),
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
            hit_rate=self._cached_tokens / self._prompt_tokens if self._hit_known and self._prompt_tokens else None,
            ceiling=best.rate,
            ceiling_tokens=best.token_rate,
            pods=dict(self._pods),
        )


def percentiles(seconds: Iterable[float]) -> Percentiles:
    """Nearest-rank percentiles: always a value that was really seen.

    >>> percentiles([0.1, 0.2, 0.3, 0.4]).p50_ms
    200.0
    """
    ordered = sorted(seconds)
    if not ordered:
        return Percentiles()

    def rank(percent: int) -> float:
        return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] * 1e3

    p50, p90, p95, p99 = (rank(percent) for percent in PERCENTILES)
    return Percentiles(count=len(ordered), mean_ms=sum(ordered) / len(ordered) * 1e3, p50_ms=p50, p90_ms=p90, p95_ms=p95, p99_ms=p99)
