"""Each thing that can be wrong gives a finding with a cause and a fix. Not here: how control learns of it (tests/behaviour)."""

from __future__ import annotations

from typing import Any

import pytest

from backend.api.cache import SourceState
from backend.api.findings import Finding
from backend.api.fleet import Pod, PodLoad, PodView
from backend.api.reports import ReportRun
from backend.control.findings import Remembered, findings
from backend.control.model import PeerView, ReportsView, View
from backend.history.model import HistoryTrouble

NOW = 1_790_000_000.0


def pod(name: str = "a", load: PodLoad | None = None, **given: Any) -> PodView:
    values: dict[str, Any] = {"ip": "127.0.0.1", "model": "m", "state": "ready", "ready": True, "started_at": NOW - 500, **given}
    return PodView(pod=Pod(name=name, **values), load=load or PodLoad(state="fresh"))


def source(name: str = "a", **given: Any) -> SourceState:
    return SourceState(pod=name, **{"status": "live", "block_size": 64, **given})


def view(**given: Any) -> View:
    return View(**{"now": NOW, "pods": [pod()], "sources": [source()], **given})


CASES = [
    # id, view, finding's id, severity, words of the cause
    ("unreadable_fleet_file", view(fleet_problem="pods.json:3: bad"), "fleet-file", "error", "pods.json:3"),
    ("no_pods", view(pods=[], sources=[]), "fleet-empty", "warning", "empty"),
    ("a_cluster_that_is_away", view(not_reconciled={"pods": "refused"}), "not-reconciled:pods", "error", "refused"),
    (
        "pod_backing_off",
        view(pods=[pod(state="backoff", ready=False, reason="code 3")]),
        "pod-backoff:a",
        "error",
        "code 3",
    ),
    ("pod_failed", view(pods=[pod(state="failed", ready=False)]), "pod-failed:a", "error", "not be started"),
    ("pod_not_ready", view(pods=[pod(state="unready", ready=False, reason="probe: 503")]), "pod-not-ready:a", "warning", "503"),
    ("pod_starts_for_long", view(pods=[pod(state="starting", ready=False)]), "pod-not-ready:a", "warning", "starting"),
    (
        "scheduled_report_failed",
        view(reports=ReportsView(failed=[ReportRun(id="r", report="daily", state="failed", schedule="daily", error="no room")])),
        "report-failed:daily",
        "warning",
        "no room",
    ),
    (
        "asked_report_failed",
        view(reports=ReportsView(failed=[ReportRun(id="r", report="daily", state="failed", error="no room")])),
        "report-failed:asked",
        "warning",
        "no room",
    ),
    ("schedules_away", view(reports=ReportsView(problem="no answer")), "schedules-away", "warning", "no answer"),
    ("schedule_broken", view(reports=ReportsView(broken={"x": "minute 61"})), "schedule-broken:x", "warning", "minute 61"),
    ("stale_scrape", view(pods=[pod(load=PodLoad(state="stale", error="timeout"))]), "scrape:a", "warning", "timeout"),
    ("never_scraped", view(pods=[pod(load=PodLoad(error="refused"))]), "scrape:a", "warning", "refused"),
    ("missing_metrics", view(pods=[pod(load=PodLoad(state="fresh", missing=["kv_usage"]))]), "metrics-missing:a", "warning", "figures"),
    ("no_events", view(sources=[]), "no-events:a", "info", "no KV events"),
    ("no_events_but_needed", view(sources=[], prefix_cache_used=True), "no-events:a", "warning", "counts its cache as empty"),
    ("events_unsupported", view(sources=[source(status="unsupported", reason="404")]), "no-events:a", "info", "404"),
    ("source_lost", view(sources=[source(status="lost", reason="timed out")]), "source-lost:a/0", "warning", "timed out"),
    ("events_missed", view(grown={"missed:a/0": 2.0, "gaps:a/0": 1.0}), "source-missed:a/0", "warning", "2 batches"),
    ("gaps_filled", view(grown={"gaps:a/0": 3.0}), "source-gaps:a/0", "info", "3 holes"),
    (
        "garbage_events",
        view(sources=[source(skipped={"type": 5})], grown={"skipped:a/0": 5.0}),
        "source-unreadable:a/0",
        "warning",
        "type 5",
    ),
    ("late_events", view(sources=[source(lag_ms=9000.0, last_event_at=NOW - 1)]), "source-lag:a/0", "warning", "9.0 s"),
    (
        "two_block_sizes",
        view(pods=[pod(), pod("b")], sources=[source(), source("b", block_size=16)]),
        "block-size:m",
        "warning",
        "16 tokens: b; 64 tokens: a",
    ),
    ("kvindex_away", view(kvindex=PeerView("http://k", "refused.")), "kvindex-away", "warning", "refused"),
    ("kvindex_away_and_needed", view(kvindex=PeerView("http://k", "no"), prefix_cache_used=True), "kvindex-away", "error", "no"),
    ("index_without_room", view(index_problem="No room left to write x."), "index-no-room", "warning", "No room left"),
    ("gateway_away", view(gateway=PeerView("http://g", "refused.")), "gateway-away", "error", "Clients get no answers"),
    ("no_stream_server", view(redis_configured=False), "redis-off", "info", "redis_url"),
    ("stream_server_away", view(history=HistoryTrouble(redis="closed")), "redis-away", "error", "closed"),
    ("disk_full", view(history=HistoryTrouble(disk="No room left\nFree some", disk_full=True)), "disk-full", "error", "No room left"),
    ("folder_not_writable", view(history=HistoryTrouble(disk="not writable")), "history-not-written", "error", "not writable"),
    ("corrupt_file", view(history=HistoryTrouble(corrupt={"d/x.parquet": "bad"})), "history-corrupt:d/x.parquet", "warning", "bad"),
    ("records_dropped", view(grown={"records-dropped": 7.0}), "records-dropped", "warning", "7 in the last 10 minutes"),
    ("records_trimmed", view(grown={"records-trimmed": 1.0}), "records-trimmed", "warning", "cap"),
    ("records_unreadable", view(grown={"records-unreadable": 1.0}), "records-unreadable", "warning", "could not be read"),
]


@pytest.mark.parametrize(("seen", "name", "severity", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_is_wrong_is_found(seen, name, severity, words):
    found = {finding.id: finding for finding in findings(seen)}
    assert name in found
    assert found[name].severity == severity
    assert words in found[name].cause
    assert found[name].fix


def test_a_healthy_fleet_has_no_findings():
    assert findings(view(prefix_cache_used=True)) == []


def test_a_pod_that_has_just_started_is_no_finding():
    assert findings(view(pods=[pod(state="starting", ready=False, started_at=NOW - 5)])) == []


def test_an_index_that_is_away_is_one_finding_not_one_a_pod():
    found = findings(view(sources=[], kvindex=PeerView("http://k", "refused")))
    assert [finding.id for finding in found] == ["kvindex-away"]


def test_an_index_that_was_never_asked_says_nothing_about_pods():
    assert findings(view(sources=None)) == []


def test_old_lag_of_a_quiet_source_is_no_finding():
    assert findings(view(sources=[source(lag_ms=9000.0, last_event_at=NOW - 600)])) == []


def test_the_worst_come_first():
    seen = view(sources=[], gateway=PeerView("http://g", "refused"), pods=[pod(load=PodLoad(state="stale"))])
    assert [finding.severity for finding in findings(seen)] == ["error", "warning", "info"]


def test_a_finding_keeps_its_beginning_and_a_returning_one_starts_anew():
    memory = Remembered()
    finding = Finding(id="x", severity="info", title="X.")
    assert memory.update([finding], 10.0)[0].since == 10.0
    assert memory.update([finding], 20.0)[0].since == 10.0
    assert memory.update([], 30.0) == []
    assert memory.update([finding], 40.0)[0].since == 40.0
