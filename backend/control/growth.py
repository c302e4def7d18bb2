"""How much counters grew lately, so that a finding about losses goes away when the losses stop. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

WINDOW_S = 600.0
STEP_S = 10.0
"""Distance of two remembered moments; the window is exact to this."""


class Growth:
    """Named counters over the last WINDOW_S. A counter counts from where it was first seen, a fallen one (its process was
    restarted) from zero."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._total: dict[str, float] = {}
        """Growth since first seen, restarts evened out."""
        self._moments: deque[tuple[float, dict[str, float]]] = deque()

    def update(self, counters: Mapping[str, float], now: float) -> dict[str, float]:
        """Take a reading; returns the growth of each counter that grew within the window."""
        for name, value in counters.items():
            last = self._last.get(name, value)
            self._total[name] = self._total.get(name, 0.0) + (value - last if value >= last else value)
            self._last[name] = value
        for name in self._last.keys() - counters.keys():
            del self._last[name], self._total[name]
        if not self._moments or now - self._moments[-1][0] >= STEP_S:
            self._moments.append((now, dict(self._total)))
        while len(self._moments) > 1 and self._moments[1][0] <= now - WINDOW_S:
            self._moments.popleft()
        oldest = self._moments[0][1]
        return {name: total - oldest.get(name, 0.0) for name, total in self._total.items() if total > oldest.get(name, 0.0)}
