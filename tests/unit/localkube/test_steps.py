"""A pod's life, decision by decision. Not here: processes and sockets (test_pods)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.localkube.runtime import model, probing, steps
from backend.localkube.runtime.model import Action, Goal, Limits, Phase, PodSpec, Tracked

LIMITS = Limits(grace_s=5, leave_s=0.5, first_backoff_s=1, longest_backoff_s=8, healthy_s=30, unready_after=2, restart_after=4)
SPEC = PodSpec(name="vllm-0", model="qwen3-8b", startup_s=60)
CHANGED = PodSpec(name="vllm-0", model="qwen3-8b", startup_s=60, args={"block-size": "16"})


def pod(phase: Phase, **more: object) -> Tracked:
    known = {"pid": 100, "started_at": 1.0} if phase in model.RUNNING else {}
    return replace(Tracked(SPEC, phase=phase), **{**known, **more})


CASES = [
    # id, pod before, event, now, phase after, actions, due after
    ("a_new_pod_starts_at_once", steps.fresh(SPEC, 0), model.Tick(), 0.0, Phase.BACKOFF, (Action.START,), 0.0),
    ("backoff_is_waited_for", pod(Phase.BACKOFF, due=9), model.Tick(), 8.0, Phase.BACKOFF, (), 9.0),
    ("a_started_pod_has_its_startup_time", pod(Phase.BACKOFF), model.Started(7, 2.0), 10.0, Phase.STARTING, (), 70.0),
    ("the_first_good_probe_makes_ready", pod(Phase.STARTING), model.Probed(True), 1.0, Phase.READY, (), 0.0),
    ("a_bad_probe_while_starting_is_patience", pod(Phase.STARTING, due=60), model.Probed(False, "refused"), 1.0, Phase.STARTING, (), 60.0),
    ("a_start_that_takes_too_long_is_ended", pod(Phase.STARTING, due=60), model.Tick(), 60.0, Phase.ENDING, (Action.TERMINATE,), 65.0),
    ("one_bad_probe_is_forgiven", pod(Phase.READY), model.Probed(False, "slow"), 1.0, Phase.READY, (), 0.0),
    ("the_second_takes_it_out_of_routing", pod(Phase.READY, failures=1), model.Probed(False, "slow"), 1.0, Phase.UNREADY, (), 0.0),
    ("a_hung_pod_is_replaced", pod(Phase.UNREADY, failures=3), model.Probed(False, "slow"), 1.0, Phase.ENDING, (Action.TERMINATE,), 6.0),
    ("an_unready_pod_comes_back", pod(Phase.UNREADY, failures=3), model.Probed(True), 1.0, Phase.READY, (), 0.0),
    ("an_unwanted_pod_is_announced_first", pod(Phase.READY), model.Unwanted(), 1.0, Phase.LEAVING, (), 1.5),
    ("then_told", pod(Phase.LEAVING, due=1.5), model.Tick(), 1.5, Phase.ENDING, (Action.TERMINATE,), 6.5),
    ("then_killed", pod(Phase.ENDING, due=6.5), model.Tick(), 6.5, Phase.ENDING, (Action.KILL,), 7.5),
    ("nobody_needs_telling_when_all_ends", pod(Phase.READY), model.Unwanted(at_once=True), 1.0, Phase.ENDING, (Action.TERMINATE,), 6.0),
    ("one_that_never_served_is_told_at_once", pod(Phase.STARTING), model.Unwanted(), 1.0, Phase.ENDING, (Action.TERMINATE,), 6.0),
    ("one_without_a_process_is_forgotten", pod(Phase.BACKOFF, due=9), model.Unwanted(), 1.0, Phase.BACKOFF, (Action.FORGET,), 9.0),
    ("the_same_spec_changes_nothing", pod(Phase.READY), model.Wanted(SPEC), 1.0, Phase.READY, (), 0.0),
    ("another_spec_needs_another_process", pod(Phase.READY), model.Wanted(CHANGED), 1.0, Phase.LEAVING, (), 1.5),
    ("a_corrected_spec_skips_the_backoff", pod(Phase.BACKOFF, due=9, backoff_s=8), model.Wanted(CHANGED), 1.0, Phase.BACKOFF, (), 1.0),
    ("a_restart_is_announced_first", pod(Phase.READY), model.RestartAsked(), 1.0, Phase.LEAVING, (), 1.5),
    ("a_restart_skips_the_backoff", pod(Phase.BACKOFF, due=9), model.RestartAsked(), 1.0, Phase.BACKOFF, (), 1.0),
    ("an_adopted_ready_pod_stays_ready", pod(Phase.BACKOFF), model.Adopted(7, 2.0, ready=True), 1.0, Phase.READY, (), 0.0),
    ("an_adopted_starting_pod_is_probed_first", pod(Phase.BACKOFF), model.Adopted(7, 2.0), 1.0, Phase.STARTING, (), 61.0),
]


@pytest.mark.parametrize(
    ("before", "event", "now", "phase", "actions", "due"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_step(before, event, now, phase, actions, due):
    after = steps.step(before, event, LIMITS, now)
    assert (after.pod.phase, after.actions, after.pod.due) == (phase, actions, due)


def test_the_backoff_doubles_up_to_its_limit_and_counts_restarts():
    crashing, waits = steps.fresh(SPEC, 0.0), []
    for now in range(0, 50, 10):
        crashing = steps.step(crashing, model.Started(7, 1.0), LIMITS, now).pod
        crashing = steps.step(crashing, model.Exited("exit code 1"), LIMITS, now).pod
        waits.append(crashing.due - now)
    assert (waits, crashing.restarts, crashing.reason) == ([1, 2, 4, 8, 8], 5, "exit code 1")


def test_a_healthy_time_forgives_earlier_crashes():
    settled = pod(Phase.READY, since=0.0, backoff_s=8.0)
    assert steps.step(settled, model.Exited("killed"), LIMITS, 29.0).pod.due == 29.0 + 8
    assert steps.step(settled, model.Exited("killed"), LIMITS, 30.0).pod.due == 30.0 + 1


def test_a_planned_end_is_followed_by_a_start_with_the_new_spec_at_once():
    leaving = steps.step(pod(Phase.READY), model.Wanted(CHANGED), LIMITS, 0.0).pod
    ending = steps.step(leaving, model.Tick(), LIMITS, 0.5).pod
    gone = steps.step(ending, model.Exited("exit code 0"), LIMITS, 0.7).pod
    assert (gone.spec, gone.due, gone.backoff_s, gone.restarts) == (CHANGED, 0.7, 0.0, 1)
    assert steps.step(gone, model.Tick(), LIMITS, 0.7).actions == (Action.START,)


def test_a_pod_that_is_wanted_again_while_it_leaves_comes_back():
    leaving = steps.step(pod(Phase.READY), model.Unwanted(), LIMITS, 0.0).pod
    back = steps.step(leaving, model.Wanted(SPEC), LIMITS, 0.1).pod
    ending = steps.step(back, model.Tick(), LIMITS, 0.5).pod
    gone = steps.step(ending, model.Exited("exit code 0"), LIMITS, 0.6)
    assert (gone.actions, gone.pod.goal, gone.pod.due) == ((), Goal.RUN, 0.6)


def test_a_removed_pod_is_forgotten_when_its_process_is_gone():
    ending = steps.step(pod(Phase.READY), model.Unwanted(at_once=True), LIMITS, 0.0).pod
    assert steps.step(ending, model.Exited("exit code 0"), LIMITS, 0.2).actions == (Action.FORGET,)


ASKED = model.Probe(successes=2, failures=2)
PROBED = PodSpec(name="p", model="m", startup_s=0, probes=model.Probes(readiness=ASKED, startup=ASKED, liveness=ASKED))


def after(events: str, phase: Phase = Phase.STARTING, *, started: bool = False) -> Tracked:
    """A pod with probes of all kinds after answers such as "S+ R-": startup, readiness, liveness; good, bad."""
    kinds = {"S": model.ProbeKind.STARTUP, "R": model.ProbeKind.READINESS, "L": model.ProbeKind.LIVENESS}
    current = Tracked(PROBED, phase=phase, pid=7, started=started)
    for event in events.split():
        current = steps.step(current, model.Probed(event[1] == "+", "slow", kinds[event[0]]), LIMITS, 1.0).pod
    return current


@pytest.mark.parametrize(
    ("events", "before", "started", "phase_after", "started_after"),
    [
        ("S-", Phase.STARTING, False, Phase.STARTING, False),
        ("S- S-", Phase.STARTING, False, Phase.ENDING, False),
        ("S- S+", Phase.STARTING, False, Phase.STARTING, True),
        ("S+ R+", Phase.STARTING, False, Phase.STARTING, True),
        ("S+ R+ R+", Phase.STARTING, False, Phase.READY, True),
        ("S+ R+ R- R+", Phase.STARTING, False, Phase.STARTING, True),
        ("R-", Phase.READY, True, Phase.READY, True),
        ("R- R+ R-", Phase.READY, True, Phase.READY, True),
        ("R- R-", Phase.READY, True, Phase.UNREADY, True),
        ("R- R- R- R- R- R-", Phase.READY, True, Phase.UNREADY, True),
        ("R- R- R+", Phase.READY, True, Phase.UNREADY, True),
        ("R- R- R+ R+", Phase.READY, True, Phase.READY, True),
        ("L-", Phase.READY, True, Phase.READY, True),
        ("L- L+ L-", Phase.READY, True, Phase.READY, True),
        ("L- R+ L-", Phase.READY, True, Phase.ENDING, True),
    ],
)
def test_each_kind_of_probe_counts_for_itself(events, before, started, phase_after, started_after):
    reached = after(events, before, started=started)
    assert (reached.phase, reached.started) == (phase_after, started_after)


@pytest.mark.parametrize(
    ("policy", "code", "phase"),
    [("Always", 0, Phase.BACKOFF), ("OnFailure", 0, Phase.DONE), ("OnFailure", 1, Phase.BACKOFF), ("Never", 1, Phase.DONE)],
)
def test_the_restart_policy_decides_what_follows_an_end(policy, code, phase):
    running = Tracked(PodSpec(name="p", model="m", restart=policy), phase=Phase.READY, pid=7, started_at=5.0)
    ended = steps.step(running, model.Exited("ended", code, at=9.0), LIMITS, 1.0).pod
    assert ended.phase is phase
    assert ended.ended == model.Ended(code, "ended", 5.0, 9.0, 7)


def test_a_grace_that_is_given_counts_from_the_first_word_and_can_only_shrink():
    leaving = steps.step(pod(Phase.READY), model.Unwanted(grace_s=10), LIMITS, 0.0).pod
    ending = steps.step(leaving, model.Tick(), LIMITS, 0.5).pod
    assert (leaving.due, ending.due) == (0.5, 10.0)
    assert steps.step(ending, model.Unwanted(grace_s=60), LIMITS, 1.0).pod.due == 10.0
    assert steps.step(ending, model.Unwanted(grace_s=3), LIMITS, 1.0).pod.due == 4.0
    assert steps.step(ending, model.Unwanted(grace_s=0), LIMITS, 1.0).actions == (Action.KILL,)


PROBING = [
    # id, phase, seconds since its start, kinds asked when, next probe
    ("the_startup_probe_comes_first_and_alone", Phase.STARTING, False, 0, {}, (3.0, "startup")),
    ("and_again_after_its_period", Phase.STARTING, False, 4, {"startup": 3.0}, (8.0, "startup")),
    ("then_readiness_often_while_nothing_depends_on_it", Phase.STARTING, True, 5, {"readiness": 4.9, "liveness": 4.0}, (5.15, "readiness")),
    ("then_at_its_own_period", Phase.READY, True, 6, {"readiness": 6.0, "liveness": 5.0}, (10.0, "liveness")),
    ("and_each_kind_in_its_turn", Phase.READY, True, 6, {"readiness": 5.0, "liveness": 5.5}, (10.0, "readiness")),
    ("late_ones_are_due_now", Phase.UNREADY, True, 50, {"readiness": 5.0, "liveness": 49.0}, (50.0, "readiness")),
    ("one_that_leaves_is_left_alone", Phase.LEAVING, True, 6, {}, None),
    ("one_without_a_process_too", Phase.BACKOFF, False, 6, {}, None),
]


@pytest.mark.parametrize(
    ("phase", "started", "now", "asked", "expected"), [case[1:] for case in PROBING], ids=[case[0] for case in PROBING]
)
def test_when_which_probe_is_asked(phase, started, now, asked, expected):
    patient = model.Probe(period_s=5, initial_delay_s=3)
    spec = PodSpec(name="p", model="m", probes=model.Probes(readiness=patient, startup=patient, liveness=patient))
    at = {model.ProbeKind(kind): when for kind, when in asked.items()}
    due = probing.due(Tracked(spec, phase=phase, started=started), at, 0.25, now)
    assert (due and (due[0], due[1].value)) == expected


_events = st.one_of(
    st.builds(model.Wanted, st.sampled_from([SPEC, CHANGED])),
    st.builds(model.Unwanted, st.booleans(), st.sampled_from([None, 0, 3, 30])),
    st.just(model.RestartAsked()),
    st.builds(model.Probed, st.booleans()),
    st.just(model.Tick()),
    st.just("exit"),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(_events, st.floats(0, 40)), max_size=30))
def test_whatever_happens_there_is_one_process_at_most_and_the_pod_never_gets_stuck(happenings):
    now, current, forgotten = 0.0, steps.fresh(SPEC, 0.0), False
    for event, passed in happenings:
        now += passed
        if event == "exit":
            if current.phase is Phase.BACKOFF:
                continue
            event = model.Exited("exit code 1")
        result = steps.step(current, event, LIMITS, now)
        current = result.pod
        if Action.FORGET in result.actions:
            forgotten = True
            break
        if Action.START in result.actions:
            assert current.pid == 0, "a second process beside the first"
            current = steps.step(current, model.Started(7, now), LIMITS, now).pod
        assert (current.pid > 0) == (current.phase in model.RUNNING)
        if current.phase in (Phase.BACKOFF, Phase.STARTING, Phase.LEAVING, Phase.ENDING):
            assert current.due <= now + 60, "a phase that nothing ends"
    assert forgotten or current.goal in Goal
