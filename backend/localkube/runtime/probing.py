"""When which probe of a pod is asked next. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from backend.localkube.runtime.model import Phase, Probe, ProbeKind, Tracked
from backend.localkube.runtime.probes import HEALTH

_PROBED = frozenset({Phase.STARTING, Phase.READY, Phase.UNREADY})
_READY_SLOWER = 4
"""Pods that are ready are asked less often, where nobody said how often."""


def due(pod: Tracked, asked: Mapping[ProbeKind, float], usual_s: float, now: float) -> tuple[float, ProbeKind, Probe] | None:
    """Time, kind and question of the next probe; None while there is nothing to ask. `asked` has when each kind was asked last.

    A pod that was not ready yet is asked for readiness at least every `usual_s`, whatever its period: a failure has no consequence
    then, and a cluster of simulators should not wait ten seconds for what takes one.
    """
    if pod.phase not in _PROBED:
        return None
    candidates = []
    for kind, probe in _wanted(pod, usual_s):
        period_s = min(probe.period_s, usual_s) if pod.phase is Phase.STARTING and kind is ProbeKind.READINESS else probe.period_s
        first = pod.began + probe.initial_delay_s
        last = asked.get(kind)
        candidates.append((max(now, first if last is None else max(first, last + period_s)), kind, probe))
    return min(candidates, key=lambda candidate: candidate[0])


def _wanted(pod: Tracked, usual_s: float) -> Iterator[tuple[ProbeKind, Probe]]:
    probes = pod.spec.probes
    if probes is None:
        period_s = usual_s * (_READY_SLOWER if pod.phase is Phase.READY else 1)
        yield ProbeKind.READINESS, msgspec.structs.replace(HEALTH, period_s=period_s)
    elif not pod.started and probes.startup is not None:
        yield ProbeKind.STARTUP, probes.startup
    else:
        yield ProbeKind.READINESS, probes.readiness
        if probes.liveness is not None:
            yield ProbeKind.LIVENESS, probes.liveness
