"""Every decision about a pod's life: `step(pod, event, limits, now)` gives the pod as it is afterwards and what to do.

    BACKOFF ──due──> STARTING ──probe ok──> READY <──probes──> UNREADY
       ^                 │                    │                   │
       └──── exit ───────┴────────────────────┴───────────────────┤ unwanted, restart asked, spec changed
                                                                  v
       (start again, or forgotten) <──exit── ENDING <──leave time── LEAVING

A restart policy other than Always can end in DONE instead of BACKOFF.

Pure: `now` is the monotonic clock, handed over; nothing here starts, signals or waits.
"""

from __future__ import annotations

from dataclasses import replace

from backend.api.fleet import PodState
from backend.localkube.runtime.model import (
    RUNNING,
    Action,
    Adopted,
    Ended,
    Event,
    Exited,
    Goal,
    Limits,
    Phase,
    PodSpec,
    Probed,
    ProbeKind,
    RestartAsked,
    Started,
    Step,
    Tick,
    Tracked,
    Unwanted,
    Wanted,
)

_LEAST_GRACE_S = 2.0
"""SIGTERM is followed by SIGKILL no sooner, even if leaving took all of the time granted (as in Kubernetes)."""

_SHOWN: dict[Phase, PodState] = {
    Phase.BACKOFF: "backoff",
    Phase.STARTING: "starting",
    Phase.READY: "ready",
    Phase.UNREADY: "unready",
    Phase.LEAVING: "stopping",
    Phase.ENDING: "stopping",
    Phase.DONE: "failed",
}


def shown(phase: Phase) -> PodState:
    """The phase as the API names it."""
    return _SHOWN[phase]


def fresh(spec: PodSpec, now: float, restarts: int = 0) -> Tracked:
    """A pod that was never started, or whose former processes nobody remembers but as a number of `restarts`: due at once."""
    return Tracked(spec, phase=Phase.BACKOFF, since=now, due=now, restarts=restarts)


def step(pod: Tracked, event: Event, limits: Limits, now: float) -> Step:
    """What `event` makes of `pod`."""
    match event:
        case Wanted(spec):
            return _wanted(pod, spec, limits, now)
        case Unwanted():
            return _unwanted(pod, event, limits, now)
        case RestartAsked():
            return _restart_asked(pod, limits, now)
        case Started(pid, started_at):
            return Step(_enter(_begin(pod, pid, started_at, now), Phase.STARTING, now))
        case Adopted(pid, started_at, restarts, ready):
            adopted = replace(_begin(pod, pid, started_at, now), restarts=restarts)
            if ready:
                return Step(_enter(replace(adopted, started=True), Phase.READY, now))
            return Step(_enter(adopted, Phase.STARTING, now))
        case Exited():
            return _exited(pod, event, limits, now)
        case Probed():
            return _probed(pod, event, limits, now)
        case Tick():
            return _tick(pod, limits, now)


def _begin(pod: Tracked, pid: int, started_at: float, now: float) -> Tracked:
    started = pod.spec.probes is None or pod.spec.probes.startup is None
    fresh_start = replace(pod, pid=pid, started_at=started_at, began=now, started=started, planned=False, kill_at=0.0)
    return replace(fresh_start, failures=0, successes=0, liveness_failures=0)


def _enter(pod: Tracked, phase: Phase, now: float, reason: str = "") -> Tracked:
    due = now + pod.spec.startup_s if phase is Phase.STARTING and pod.spec.startup_s else 0.0
    return replace(pod, phase=phase, since=now, due=due, reason=reason)


def _wanted(pod: Tracked, spec: PodSpec, limits: Limits, now: float) -> Step:
    pod = replace(pod, goal=Goal.RUN)
    changed = spec.digest != pod.spec.digest
    if pod.phase is Phase.DONE:
        return Step(_wait(replace(pod, spec=spec), now)) if changed else Step(pod)
    if pod.phase is Phase.BACKOFF:
        # A corrected spec need not wait for the back-off that its predecessor earned.
        return Step(replace(pod, spec=spec, due=now, backoff_s=0.0) if changed else pod)
    if pod.phase in (Phase.LEAVING, Phase.ENDING):
        return Step(replace(pod, next_spec=spec))
    if not changed:
        return Step(pod)
    return _leave(replace(pod, next_spec=spec), limits, now, "gets new arguments")


def _wait(pod: Tracked, now: float, wait_s: float = 0.0, reason: str = "starts again") -> Tracked:
    """The pod without a process, to be started after `wait_s`."""
    return replace(pod, phase=Phase.BACKOFF, since=now, due=now + wait_s, backoff_s=wait_s, reason=reason, restarts=pod.restarts + 1)


def _unwanted(pod: Tracked, event: Unwanted, limits: Limits, now: float) -> Step:
    pod = replace(pod, goal=Goal.REMOVE, next_spec=None)
    if event.grace_s == 0 and pod.phase in RUNNING:
        forced = replace(pod, phase=Phase.ENDING, since=now, due=now + 1.0, reason="is being removed by force", planned=True)
        return Step(forced, (Action.KILL,))
    if event.grace_s is not None and (not pod.kill_at or now + event.grace_s < pod.kill_at):
        kill_at = now + event.grace_s
        pod = replace(pod, kill_at=kill_at, due=min(pod.due, kill_at) if pod.phase in (Phase.LEAVING, Phase.ENDING) else pod.due)
    return _leave(pod, limits, now, "is being removed", at_once=event.at_once)


def _restart_asked(pod: Tracked, limits: Limits, now: float) -> Step:
    if pod.phase is Phase.BACKOFF:
        return Step(replace(pod, due=now, backoff_s=0.0))
    if pod.phase is Phase.DONE:
        return Step(_wait(pod, now))
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
    due = now + (limits.leave_s if pod.spec.leave_s is None else pod.spec.leave_s)
    due = min(due, pod.kill_at) if pod.kill_at else due
    return Step(replace(pod, phase=Phase.LEAVING, since=now, due=due, reason=reason, planned=True))


def _terminate(pod: Tracked, limits: Limits, now: float, reason: str, *, planned: bool = True) -> Step:
    grace_s = limits.grace_s if pod.spec.grace_s is None else pod.spec.grace_s
    due = max(pod.kill_at, now + min(grace_s, _LEAST_GRACE_S)) if pod.kill_at else now + grace_s
    ending = replace(pod, phase=Phase.ENDING, since=now, due=due, reason=reason, planned=planned)
    return Step(ending, (Action.TERMINATE,))


def _exited(pod: Tracked, event: Exited, limits: Limits, now: float) -> Step:
    why = pod.reason if pod.phase is Phase.ENDING else event.reason  # what we ended it for says more than "by SIGTERM"
    ended = Ended(event.code, why, pod.started_at, event.at, pod.pid)
    gone = replace(pod, pid=0, failures=0, spec=pod.next_spec or pod.spec, next_spec=None, ended=ended)
    if pod.goal is Goal.REMOVE:
        return Step(replace(gone, phase=Phase.BACKOFF, since=now), (Action.FORGET,))
    if pod.planned:
        return Step(_wait(gone, now))
    if pod.spec.restart == "Never" or (pod.spec.restart == "OnFailure" and event.code == 0):
        return Step(replace(gone, phase=Phase.DONE, since=now, due=0.0, reason=why))
    healthy = pod.phase in (Phase.READY, Phase.UNREADY) and now - pod.since >= limits.healthy_s
    wait_s = limits.first_backoff_s if healthy or not pod.backoff_s else min(2 * pod.backoff_s, limits.longest_backoff_s)
    return Step(_wait(gone, now, wait_s, why))


def _probed(pod: Tracked, event: Probed, limits: Limits, now: float) -> Step:
    if pod.phase not in (Phase.STARTING, Phase.READY, Phase.UNREADY):
        return Step(pod)
    probes = pod.spec.probes
    if event.kind is ProbeKind.LIVENESS and probes is not None and probes.liveness is not None:
        failures = 0 if event.ok else pod.liveness_failures + 1
        pod = replace(pod, liveness_failures=failures)
        return Step(pod) if failures < probes.liveness.failures else _hung(pod, failures, event.reason, limits, now)
    if event.kind is ProbeKind.STARTUP and probes is not None and probes.startup is not None:
        if event.ok:
            return Step(replace(pod, started=True, failures=0))
        failures = pod.failures + 1
        pod = replace(pod, failures=failures, reason=event.reason)
        return Step(pod) if failures < probes.startup.failures else _hung(pod, failures, event.reason, limits, now)
    return _readiness(pod, event, limits, now)


def _readiness(pod: Tracked, event: Probed, limits: Limits, now: float) -> Step:
    probes = pod.spec.probes
    if event.ok:
        if pod.phase is Phase.READY:
            return Step(replace(pod, failures=0))
        successes = pod.successes + 1
        if probes is not None and successes < probes.readiness.successes:
            return Step(replace(pod, successes=successes, failures=0))
        return Step(replace(_enter(pod, Phase.READY, now), failures=0, successes=0))
    if pod.phase is Phase.STARTING:
        return Step(replace(pod, reason=event.reason, successes=0))
    failures = pod.failures + 1
    pod = replace(pod, failures=failures, successes=0)
    if probes is None and failures >= limits.restart_after:
        return _hung(pod, failures, event.reason, limits, now)
    if failures >= (limits.unready_after if probes is None else probes.readiness.failures):
        since = now if pod.phase is Phase.READY else pod.since
        return Step(replace(pod, phase=Phase.UNREADY, since=since, reason=event.reason))
    return Step(pod)


def _hung(pod: Tracked, failures: int, reason: str, limits: Limits, now: float) -> Step:
    return _terminate(pod, limits, now, f"was taken for hung: {failures} probes failed, the last with: {reason}", planned=False)


def _tick(pod: Tracked, limits: Limits, now: float) -> Step:
    if pod.phase in (Phase.READY, Phase.UNREADY, Phase.DONE) or now < pod.due:
        return Step(pod)
    match pod.phase:
        case Phase.BACKOFF:
            return Step(pod, (Action.START,))
        case Phase.LEAVING:
            return _terminate(pod, limits, now, pod.reason)
        case Phase.ENDING:
            # Looked at again a second later, should the kernel need that long to end it.
            return Step(replace(pod, due=now + 1.0), (Action.KILL,))
        case _ if not pod.spec.startup_s:
            return Step(pod)
        case _:
            late = f"did not become ready within {pod.spec.startup_s:g} s: {pod.reason}"
            return _terminate(pod, limits, now, late, planned=False)
