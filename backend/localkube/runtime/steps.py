"""Every decision about a pod's life: `step(pod, event, limits, now)` gives the pod as it is afterwards and what to do.

    BACKOFF ──due──> STARTING ──probe ok──> READY <──probes──> UNREADY
       ^                 │                    │                   │
       └──── exit ───────┴────────────────────┴───────────────────┤ unwanted, restart asked, spec changed
                                                                  v
       (start again, or forgotten) <──exit── ENDING <──leave time── LEAVING

Pure: `now` is the monotonic clock, handed over; nothing here starts, signals or waits.
"""

from __future__ import annotations

from dataclasses import replace

from backend.api.fleet import PodState
from backend.localkube.runtime.model import (
    RUNNING,
    Action,
    Adopted,
    Event,
    Exited,
    Goal,
    Limits,
    Phase,
    PodSpec,
    Probed,
    RestartAsked,
    Started,
    Step,
    Tick,
    Tracked,
    Unwanted,
    Wanted,
)

_SHOWN: dict[Phase, PodState] = {
    Phase.BACKOFF: "backoff",
    Phase.STARTING: "starting",
    Phase.READY: "ready",
    Phase.UNREADY: "unready",
    Phase.LEAVING: "stopping",
    Phase.ENDING: "stopping",
}


def shown(phase: Phase) -> PodState:
    """The phase as the API names it."""
    return _SHOWN[phase]


def fresh(spec: PodSpec, now: float) -> Tracked:
    """A pod that was never started: due at once."""
    return Tracked(spec, phase=Phase.BACKOFF, since=now, due=now)


def step(pod: Tracked, event: Event, limits: Limits, now: float) -> Step:
    """What `event` makes of `pod`."""
    match event:
        case Wanted(spec):
            return _wanted(pod, spec, limits, now)
        case Unwanted(at_once):
            return _leave(replace(pod, goal=Goal.REMOVE, next_spec=None), limits, now, "is being removed", at_once=at_once)
        case RestartAsked():
            return _restart_asked(pod, limits, now)
        case Started(pid, started_at):
            return Step(_enter(replace(pod, pid=pid, started_at=started_at, failures=0, planned=False), Phase.STARTING, now))
        case Adopted(pid, started_at, restarts, ready):
            adopted = replace(pod, pid=pid, started_at=started_at, restarts=restarts, failures=0, planned=False)
            return Step(_enter(adopted, Phase.READY if ready else Phase.STARTING, now))
        case Exited(reason):
            return _exited(pod, reason, limits, now)
        case Probed(ok, reason):
            return _probed(pod, limits, now, ok=ok, reason=reason)
        case Tick():
            return _tick(pod, limits, now)


def _enter(pod: Tracked, phase: Phase, now: float, reason: str = "") -> Tracked:
    due = now + pod.spec.startup_s if phase is Phase.STARTING else 0.0
    return replace(pod, phase=phase, since=now, due=due, reason=reason)


def _wanted(pod: Tracked, spec: PodSpec, limits: Limits, now: float) -> Step:
    pod = replace(pod, goal=Goal.RUN)
    if pod.phase is Phase.BACKOFF:
        changed = spec.digest != pod.spec.digest
        # A corrected spec need not wait for the back-off that its predecessor earned.
        return Step(replace(pod, spec=spec, due=now, backoff_s=0.0) if changed else pod)
    if pod.phase in (Phase.LEAVING, Phase.ENDING):
        return Step(replace(pod, next_spec=spec))
    if spec.digest == pod.spec.digest:
        return Step(pod)
    return _leave(replace(pod, next_spec=spec), limits, now, "gets new arguments")


def _restart_asked(pod: Tracked, limits: Limits, now: float) -> Step:
    if pod.phase is Phase.BACKOFF:
        return Step(replace(pod, due=now, backoff_s=0.0))
    if pod.phase in (Phase.LEAVING, Phase.ENDING):
        return Step(pod)
    return _leave(pod, limits, now, "is being restarted")


def _leave(pod: Tracked, limits: Limits, now: float, reason: str, *, at_once: bool = False) -> Step:
    if pod.phase not in RUNNING:
        return Step(pod, (Action.FORGET,)) if pod.goal is Goal.REMOVE else Step(pod)
    if pod.phase is Phase.ENDING:
        return Step(pod)
    # A pod that never was ready has no requests to wait for.
    if at_once or pod.phase is Phase.STARTING:
        return _terminate(pod, limits, now, reason)
    if pod.phase is Phase.LEAVING:
        return Step(pod)
    return Step(replace(pod, phase=Phase.LEAVING, since=now, due=now + limits.leave_s, reason=reason, planned=True))


def _terminate(pod: Tracked, limits: Limits, now: float, reason: str, *, planned: bool = True) -> Step:
    grace_s = limits.grace_s if pod.spec.grace_s is None else pod.spec.grace_s
    ending = replace(pod, phase=Phase.ENDING, since=now, due=now + grace_s, reason=reason, planned=planned)
    return Step(ending, (Action.TERMINATE,))


def _exited(pod: Tracked, reason: str, limits: Limits, now: float) -> Step:
    gone = replace(pod, pid=0, failures=0, spec=pod.next_spec or pod.spec, next_spec=None, phase=Phase.BACKOFF, since=now)
    if pod.goal is Goal.REMOVE:
        return Step(gone, (Action.FORGET,))
    if pod.planned:
        return Step(replace(gone, due=now, backoff_s=0.0, reason="starts again", restarts=pod.restarts + 1))
    healthy = pod.phase in (Phase.READY, Phase.UNREADY) and now - pod.since >= limits.healthy_s
    wait_s = limits.first_backoff_s if healthy or not pod.backoff_s else min(2 * pod.backoff_s, limits.longest_backoff_s)
    return Step(replace(gone, due=now + wait_s, backoff_s=wait_s, restarts=pod.restarts + 1, reason=reason))


def _probed(pod: Tracked, limits: Limits, now: float, *, ok: bool, reason: str) -> Step:
    if pod.phase not in (Phase.STARTING, Phase.READY, Phase.UNREADY):
        return Step(pod)
    if ok:
        if pod.phase is Phase.READY:
            return Step(replace(pod, failures=0))
        return Step(replace(_enter(pod, Phase.READY, now), failures=0))
    if pod.phase is Phase.STARTING:
        return Step(replace(pod, reason=reason))
    failures = pod.failures + 1
    if failures >= limits.restart_after:
        hung = f"was taken for hung: {failures} probes failed, the last with: {reason}"
        return _terminate(replace(pod, failures=failures), limits, now, hung, planned=False)
    if failures >= limits.unready_after:
        since = now if pod.phase is Phase.READY else pod.since
        return Step(replace(pod, phase=Phase.UNREADY, since=since, failures=failures, reason=reason))
    return Step(replace(pod, failures=failures))


def _tick(pod: Tracked, limits: Limits, now: float) -> Step:
    if pod.phase in (Phase.READY, Phase.UNREADY) or now < pod.due:
        return Step(pod)
    match pod.phase:
        case Phase.BACKOFF:
            return Step(pod, (Action.START,))
        case Phase.LEAVING:
            return _terminate(pod, limits, now, pod.reason)
        case Phase.ENDING:
            # Looked at again a second later, should the kernel need that long to end it.
            return Step(replace(pod, due=now + 1.0), (Action.KILL,))
        case _:
            late = f"did not become ready within {pod.spec.startup_s:g} s: {pod.reason}"
            return _terminate(pod, limits, now, late, planned=False)
