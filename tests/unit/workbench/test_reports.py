"""The daily report: figures against records counted by hand, pages that need no network, honest gaps; and the client's side of reports."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import msgspec
import polars as pl
import pytest

import workbench
from backend.api import frames
from backend.api.findings import Finding
from tests.fakes import control_api
from tests.fakes.control_api import NOW, decision
from workbench import errors
from workbench.reports import drawing, figures, gather, page, texts, times
from workbench.reports.model import Window

WINDOW = Window(NOW - 86_400, NOW)


def day() -> list:
    """Twelve requests of the day before NOW, one of the day before that, one after."""
    good = [decision(at, id=f"g{at}", at=NOW - 3600 - at, ttft_ms=10.0 * (at + 1), user="alice") for at in range(8)]
    good[7] = msgspec.structs.replace(good[7], chosen="vllm-0", hit_class="raced", cached_tokens=0)
    bad = [
        decision(1, id="b1", at=NOW - 7200, outcome="timeout", status=504, ttft_ms=None, cached_tokens=None, hit_class="unpredicted"),
        decision(2, id="b2", at=NOW - 7300, outcome="truncated", ttft_ms=5.0, chosen="old-pod", candidates=["old-pod"], error="secret"),
        decision(6, id="b4", at=NOW - 7350, status=500, model="other", ttft_ms=None, cached_tokens=None, hit_class="unpredicted"),
        decision(3, id="b3", at=NOW - 7400, outcome="client_gone", policy="random", status=0, ttft_ms=None, hit_class="unpredicted"),
    ]
    outside = [decision(4, id="o1", at=NOW - 86_401.0), decision(5, id="o2", at=NOW)]
    return sorted([*good, *bad, *outside], key=lambda one: one.at, reverse=True)


@pytest.fixture
def made(fake, wb):
    fake.decisions = day()
    fake.findings = [Finding(id="x", severity="warning", title="A <b>pod</b> is slow.", cause="Load.", fix="Add pods.", since=NOW)]
    return wb.reports.make("daily", since=WINDOW.since, until=WINDOW.until)


def rows(made, name: str) -> list[dict]:
    return made.tables[name].to_dicts()


def test_only_requests_of_the_window_count(made):
    assert made.facts["requests"] == 12
    assert (made.facts["failed"], made.facts["complete"]) == (3, True)


def test_requests_are_counted_by_model_policy_and_outcome(made):
    counted = {(row["policy"], row["outcome"]): row["requests"] for row in rows(made, "requests") if row["model"] == "qwen3-8b"}
    assert counted == {
        ("prefix-cache", "ok"): 8,
        ("prefix-cache", "timeout"): 1,
        ("prefix-cache", "truncated"): 1,
        ("random", "client_gone"): 1,
    }
    assert sum(row["share"] for row in rows(made, "requests")) == pytest.approx(1.0)
    assert made.tables["by_time"]["requests"].sum() == 12
    assert made.tables["by_time"].select("answered", "failed").sum().row(0) == (8, 3)


def test_percentiles_are_of_requests_that_have_the_measure(made):
    found = {(row["policy"], row["measure"]): row for row in rows(made, "latency") if row["model"] == "qwen3-8b"}
    ttft = found["prefix-cache", "TTFT"]
    assert (ttft["requests"], ttft["p50_ms"], ttft["p99_ms"]) == (9, 40.0, 80.0)
    assert found["prefix-cache", "E2E"]["requests"] == 8
    assert ("random", "E2E") not in found


def test_hit_rate_and_promises_come_from_requests_that_tell_both(made):
    told = [one for one in day()[1:-1] if one.cached_tokens is not None]
    assert made.facts["hit_rate"] == pytest.approx(sum(one.cached_tokens for one in told) / sum(one.usage_prompt_tokens for one in told))
    assert (made.facts["predictions"], made.facts["within_a_block"]) == (9, pytest.approx(8 / 9))
    assert [(row["hit_class"], row["requests"]) for row in rows(made, "hit_classes")] == [("exact", 8), ("raced", 1), ("unpredicted", 3)]


def test_pods_stand_busiest_first_with_idle_and_gone_ones(made, fake):
    assert [(row["pod"], row["requests"]) for row in rows(made, "pods")] == [("vllm-1", 10), ("old-pod", 1), ("vllm-0", 1)]
    fake.decisions = []
    idle = made.__class__(made.report)
    assert idle.df("pods").height == 3


def test_errors_have_cause_and_fix_but_not_their_text(made):
    found = {row["outcome"]: row for row in rows(made, "errors")}
    assert set(found) == {"timeout", "truncated", "client_gone", "ok"}
    assert (found["ok"]["status"], found["ok"]["pod"]) == (500, "vllm-1")
    assert all(row["cause"] and row["fix"] for row in found.values())


def test_neither_users_nor_error_texts_nor_the_token_leave_with_a_report(made, fake, tmp_path):
    for path in made.save(tmp_path):
        data = path.read_bytes()
        assert not [word for word in (b"alice", b"secret", fake.token.encode()) if word in data], path.name


def test_changes_name_started_and_gone_pods(made):
    assert [(row["pod"], row["change"]) for row in rows(made, "fleet_changes")] == [("old-pod", "gone")]
    fleet = made.tables["fleet"]
    begun = Window(NOW - 10, NOW + 10)
    changed = figures.changes(fleet.with_columns(restarts=pl.Series([0, 3])), pl.DataFrame({"pod": []}), begun)
    assert [(row["pod"], row["change"]) for row in changed.iter_rows(named=True)] == [("vllm-0", "started"), ("vllm-1", "started again")]


def test_every_outcome_and_class_of_the_api_is_explained():
    from typing import get_args

    from backend.api.decisions import HitClass, Outcome

    assert set(texts.OUTCOMES) == set(get_args(Outcome))
    assert set(texts.CLASSES) == set(get_args(HitClass))


class Links(HTMLParser):
    """Everything of a page that a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        if tag in ("script", "iframe", "img", "link", "object"):
            self.found.append(tag)
        self.found += [value for name, value in named.items() if name in ("src", "href", "srcset") and not value.startswith("#")]


def test_a_page_fetches_and_runs_nothing(made):
    text = made.html()
    parser = Links()
    parser.feed(text)
    assert parser.found == []
    assert "url(" not in text
    assert "@import" not in text
    assert "A &lt;b&gt;pod&lt;/b&gt; is slow." in text


def test_files_hold_the_same_numbers(made, tmp_path):
    files = made.save(tmp_path / "new" / "folder")
    assert files[0].name == "daily.html"
    data = json.loads((tmp_path / "new" / "folder" / "daily.json").read_text())
    assert data["facts"]["requests"] == 12
    assert data["since"] == "2025-11-21T08:26:40+00:00"
    for name, table in made.tables.items():
        read = pl.read_parquet(tmp_path / "new" / "folder" / f"daily-{name.replace('_', '-')}.parquet")
        assert read.equals(table), name
        assert len(data["tables"][name]) == table.height
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(path.name for path in files)


def test_a_quiet_day_says_so(fake, wb):
    fake.decisions = []
    made = wb.reports.make("daily")
    text = made.html()
    assert made.facts["requests"] == 0
    assert made.facts["hit_rate"] is None
    assert "No request arrived in this time." in text
    assert "Nothing is wrong." in text
    assert rows(made, "pods")[0]["requests"] == 0
    assert "nan" not in text.lower()


def test_an_empty_fleet_makes_a_report_too(fake, wb):
    fake.decisions, fake.snapshot = [], control_api.fleet(0)
    assert "The fleet has no pods." in wb.reports.make("daily").html()


def test_an_index_that_is_away_is_a_gap_with_its_reason(fake, wb):
    fake.index_away = True
    made = wb.reports.make("daily", since=NOW - 100, until=NOW + 100)
    assert made.facts["requests"] == 5
    assert {problem.split(":")[0] for problem in made.problems} == {"Event index", "Most shared prefixes"}
    assert made.html().count("Could not be read.") == 2
    assert "kvindex does not answer" in made.html()


def test_too_many_requests_are_cut_and_told(fake, wb):
    fake.decisions = [decision(at, id=f"m{at}", at=NOW - at) for at in range(1, 2500)]
    found = wb._loop.run(gather.gather(wb._core, WINDOW, now=NOW, most=1500))
    assert (found.requests.height, found.cut_at) == (2000, NOW - 2000)
    from workbench.reports.daily import compose

    assert "There were too many to read" in page.html(compose(found))


@pytest.mark.parametrize(
    ("hours", "step"), [(0.5, 60), (1, 300), (6, 600), (24, 1800), (48, 3600), (24 * 7, 21600), (24 * 31, 86400)], ids=str
)
def test_steps_are_round_and_never_more_than_fit(hours, step):
    window = Window(NOW - hours * 3600, NOW)
    assert figures.step_s(window) == step
    table = figures.steps(frames.decisions_frame([decision(0, at=NOW - 1)]), window)
    assert table.height <= figures.MOST_STEPS + 1
    assert table["requests"].to_list()[-1] == 1


DRAWINGS = [
    ("bars", drawing.bars(["a", "<b>"], {"ok": [1, 2], "failed": [0, None]}, alt='A "drawing" & more')),
    ("lines", drawing.lines(["a", "b", "c"], {"p50": [1.0, None, 3.0]}, alt="x")),
    ("rows", drawing.rows([("<pod>", 3.0, "3"), ("other", 0.0, "0")], alt="x")),
    ("nothing", drawing.bars([], {"ok": []}, alt="x")),
    ("zeros", drawing.lines(["a"], {"ok": [0.0]}, alt="x")),
]


@pytest.mark.parametrize("svg", [case[1] for case in DRAWINGS], ids=[case[0] for case in DRAWINGS])
def test_a_drawing_is_well_formed_and_says_what_it_shows(svg):
    root = ET.fromstring(f"<div>{svg}</div>")
    (image,) = root.findall("svg")
    assert image.get("role") == "img"
    assert image.get("aria-label") == image.find("title").text
    assert not re.search(r"nan|inf", svg)


TIMES = [
    ("a_day_by_default", None, None, NOW - 86_400, NOW),
    ("an_age", "2h", None, NOW - 7200, NOW),
    ("a_date", "2025-11-21", "2025-11-22T08:26:40", NOW - 86_400 - 30_400, NOW),
    ("seconds", NOW - 5, str(NOW), NOW - 5, NOW),
]


@pytest.mark.parametrize(("since", "until", "begin", "end"), [case[1:] for case in TIMES], ids=[case[0] for case in TIMES])
def test_times_are_read_as_utc(since, until, begin, end):
    assert times.window(since, until, NOW) == Window(begin, end)


@pytest.mark.parametrize(
    ("since", "until"),
    [
        ("yesterday", None),
        ("-5", None),
        (float("nan"), None),
        (NOW, NOW),
        (NOW + 1, None),
        ("40d", None),
        ("2025-02-30", None),
        (1e300, None),
    ],
    ids=str,
)
def test_a_time_that_is_none_is_wrong_usage(since, until):
    with pytest.raises(errors.UsageError) as raised:
        times.window(since, until, NOW)
    assert raised.value.fix


# the client's side


def test_reports_are_listed_run_and_read(fake, wb, tmp_path):
    assert "not read yet" in repr(wb.reports)
    assert wb.reports.list().df()["seconds"].to_list() == [1.5]
    card = wb.reports.run("daily", since="2025-11-21", until="2025-11-22")
    assert (card.state, card.files) == ("done", ["daily.html", "daily-pods.parquet"])
    assert wb.reports.get(card.id).run.since == times.seconds("2025-11-21", 0.0)
    assert wb.reports.read(card.id, "daily.html") == b"contents of daily.html"
    assert [path.name for path in wb.reports.save(card.id, tmp_path / "x")] == card.files
    wb.reports.list()
    for shown in (wb.reports, card, wb.reports.make()):
        bundle = shown._repr_mimebundle_()
        assert bundle["text/plain"]
        assert "<table" in bundle["text/html"]


def test_a_report_that_fails_raises_with_its_reason(fake, wb):
    fake.report_error = "no room left"
    with pytest.raises(errors.PermanentError, match="no room left"):
        wb.reports.run("daily")
    assert wb.reports.run("daily", wait=False).state == "failed"


def test_schedules_are_made_run_and_deleted(fake, wb):
    schedules = wb.reports.schedules
    assert "not read yet" in repr(schedules)
    made = schedules.create("0 7 * * 1-5", id="workdays", hours=12)
    assert (made.id, made.hours) == ("workdays", 12.0)
    assert schedules.df()["id"].to_list() == ["daily", "workdays"]
    assert schedules.run("workdays").run.schedule == "workdays"
    assert schedules.delete("workdays").id == "workdays"
    with pytest.raises(errors.NotFound):
        schedules.delete("workdays")
    assert "0 6 * * *" in repr(schedules)
    assert "<table" in schedules._repr_mimebundle_()["text/html"]


@pytest.mark.parametrize(
    "fields", [{"report": "weekly"}, {"id": "No Spaces"}, {"id": "../x"}, {"hours": 0}, {"hours": 1e6}], ids=lambda fields: str(fields)
)
def test_a_schedule_that_cannot_be_is_told_before_it_is_sent(fake, wb, fields):
    before = len(fake.asked)
    with pytest.raises(errors.UsageError):
        wb.reports.schedules.create("0 6 * * *", **fields)
    assert len(fake.asked) == before


def test_an_unknown_report_is_wrong_usage(wb):
    with pytest.raises(errors.UsageError, match="weekly"):
        wb.reports.make("weekly")


def test_what_must_not_happen_twice_is_not_sent_twice(wb):
    """A connection that breaks after the request was sent: nobody knows whether it was done."""
    import socket
    import threading

    counted = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                counted.append(connection.recv(65536))
                connection.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        from workbench._transport import Transport
        from workbench.reports.client import AsyncSchedules

        transport = Transport(f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(workbench.errors.NotConnected):
            wb._loop.run(AsyncSchedules(transport).create("0 6 * * *"))
        assert len(counted) == 1
        with pytest.raises(workbench.errors.NotConnected):
            wb._loop.run(AsyncSchedules(transport).list())
        assert len(counted) == 3
        wb._loop.run(transport.close())
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
