"""Asking pods how they are: rates, staleness, engines that misbehave. Not here: reading metric names (tests/unit/engines)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from backend.api.fleet import Pod
from backend.core.clock import ManualClock
from backend.core.settings import FleetSettings
from backend.core.supervise import Supervisor
from backend.fleet import scraper as module
from backend.fleet.rates import LoadHistory
from backend.fleet.scraper import Scraper
from tests.fakes.waiting import eventually

GOLDEN = (Path(__file__).parents[2] / "data" / "engines" / "metrics_vllm_0.32.0_under_load.txt").read_bytes()
KNOWN = {"running", "waiting", "kv_usage", "prefix_queries", "prefix_hits", "prompt_tokens", "generation_tokens", "ttft"}

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Engine:
    """A pod whose HTTP side is a script; `talk` is called for every connection."""

    def __init__(self) -> None:
        self.connections = 0
        self.talk: Talk = answering(GOLDEN)
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            try:
                await self.talk(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        self._server = await asyncio.start_server(connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    def pod(self, **given: object) -> Pod:
        values: dict[str, object] = {"name": "a", "ip": "127.0.0.1", "port": self.port, "state": "ready", "ready": True, **given}
        return Pod(**values)  # type: ignore[arg-type]


def answering(body: bytes, *, head: bytes = b"", times: int = 10**6) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(times):
            await reader.readuntil(b"\r\n\r\n")
            writer.write((head or b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)) + body)
            await writer.drain()

    return talk


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = Engine()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def scraper() -> AsyncIterator[Scraper]:
    async with Supervisor("test") as tasks:
        # A long period: tests ask by themselves.
        made = Scraper(FleetSettings(scrape_s=3600, scrape_timeout_s=0.5), tasks, clock=ManualClock())
        yield made
        await tasks.close()
        made.close()


async def test_a_real_engines_figures_are_read(engine, scraper):
    await scraper.follow([engine.pod()])
    load = await scraper.scrape("a")
    assert (load.state, load.error, load.missing) == ("fresh", "", [])
    assert (load.running, load.waiting) == (8.0, 8.0)
    assert load.prefix_hits == 576.0


async def test_a_connection_is_kept_and_a_closed_one_is_opened_again(engine, scraper):
    await scraper.follow([engine.pod()])
    for _ in range(3):
        await scraper.scrape("a")
    assert engine.connections == 1
    engine.talk = answering(GOLDEN, times=1)
    await scraper.follow([engine.pod(started_at=2.0)])
    for _ in range(3):
        assert (await scraper.scrape("a")).error == ""
    assert engine.connections == 4


async def forever_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10**6)
    await reader.read()


async def trickling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        await writer.drain()


async def cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nvllm")
    await writer.drain()


MISBEHAVING = [
    # id, what the engine does, words of the error
    ("never_answers", forever_silent, "no answer within 0.5 s"),
    ("trickles", trickling, "no answer within 0.5 s"),
    ("never_ends", endless, "larger than"),
    ("ends_in_the_middle", cut_off, "in the middle"),
    ("is_broken", answering(b"no", head=b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n"), "status 500"),
    ("is_no_http", answering(b"", head=b"220 mail.example.org ESMTP\r\n"), "not HTTP"),
    ("sends_a_word_for_a_figure", answering(b'vllm:num_requests_running{a="b"} many\n'), "cannot be read"),
]


@pytest.mark.parametrize(("talk", "words"), [case[1:] for case in MISBEHAVING], ids=[case[0] for case in MISBEHAVING])
async def test_an_engine_that_misbehaves_keeps_its_figures_and_is_told(engine, scraper, monkeypatch, talk, words):
    monkeypatch.setattr(module, "LARGEST_ANSWER", 2**20)
    await scraper.follow([engine.pod()])
    await scraper.scrape("a")
    await engine.stop()
    engine.talk = talk
    await engine.start()
    scraper._pages["a"].close()
    load = await scraper.scrape("a")
    assert words in load.error
    assert load.running == 8.0
    engine.talk = answering(GOLDEN)
    scraper._pages["a"].close()
    assert (await scraper.scrape("a")).error == ""


async def test_an_engine_that_is_away_is_never_fresh(engine, scraper):
    await engine.stop()
    await scraper.follow([engine.pod()])
    load = await scraper.scrape("a")
    assert load.state == "never"
    assert "No connection" in load.error
    assert scraper.failures == 1


async def test_an_unknown_engine_is_named(engine, scraper):
    await scraper.follow([engine.pod(engine="llamafile")])
    assert "llamafile" in (await scraper.scrape("a")).error


async def test_figures_grow_old(engine, scraper):
    await scraper.follow([engine.pod()])
    await scraper.scrape("a")
    scraper._clock.advance(3 * 3600)
    assert scraper.load("a").state == "fresh"
    scraper._clock.advance(1)
    assert scraper.load("a").state == "stale"
    assert scraper.load("a").running == 8.0


async def test_another_boot_forgets_and_a_gone_pod_is_unknown(engine, scraper):
    await scraper.follow([engine.pod(started_at=1.0)])
    await scraper.scrape("a")
    await scraper.follow([engine.pod(started_at=1.0, state="unready")])
    assert scraper.load("a").state == "fresh"
    await scraper.follow([engine.pod(started_at=2.0)])
    assert scraper.load("a").state == "never"
    await scraper.follow([])
    assert scraper.load("a").state == "never"


async def test_pods_are_scraped_by_themselves(engine):
    async with Supervisor("test") as tasks:
        scraper = Scraper(FleetSettings(scrape_s=0.02), tasks)
        await scraper.follow([engine.pod(), engine.pod(name="asleep", state="starting")])
        await eventually(lambda: scraper.load("a").state == "fresh")
        assert scraper.load("asleep").state == "never"
        await tasks.close()
        scraper.close()


def figures(**given: float) -> dict[str, float]:
    return dict.fromkeys((*(KNOWN - {"ttft"}), "ttft_sum", "ttft_count", "requests_finished"), 0.0) | given


def test_rates_are_over_the_time_between_two_scrapes():
    history = LoadHistory()
    history.add(figures(prompt_tokens=100, ttft_sum=1, ttft_count=10), KNOWN, now=0, monotonic=0)
    assert history.load.prompt_tokens_per_s == 0
    history.add(figures(prompt_tokens=300, ttft_sum=2, ttft_count=12), KNOWN, now=2, monotonic=2)
    assert history.load.prompt_tokens_per_s == 100
    assert history.load.ttft_mean_s == pytest.approx(0.5)
    history.add(figures(prompt_tokens=300, ttft_sum=2, ttft_count=12), KNOWN, now=4, monotonic=4)
    assert history.load.prompt_tokens_per_s == 0
    assert history.load.ttft_mean_s is None


def test_a_counter_that_went_back_is_no_negative_rate():
    history = LoadHistory()
    history.add(figures(prompt_tokens=300, prefix_queries=100, prefix_hits=50), KNOWN, now=0, monotonic=0)
    history.add(figures(prompt_tokens=10, prefix_queries=10), KNOWN, now=2, monotonic=2)
    assert history.load.prompt_tokens_per_s == 0
    assert history.load.hit_rate is None


def test_the_hit_rate_is_of_the_last_minute():
    history = LoadHistory()
    for second in range(0, 121, 2):
        early = min(second, 60)
        # The first minute hits nothing, the second one everything.
        history.add(figures(prefix_queries=10 * second, prefix_hits=10 * (second - early)), KNOWN, now=second, monotonic=second)
        if second == 60:
            assert history.load.hit_rate == 0.0
        if second == 90:
            assert history.load.hit_rate == pytest.approx(0.5)
    assert history.load.hit_rate == pytest.approx(1.0)


def test_a_figure_that_the_engine_lacks_is_listed_not_invented():
    history = LoadHistory()
    given = figures()
    for name in ("kv_usage", "ttft_sum", "ttft_count"):
        del given[name]
    history.add(given, KNOWN, now=0, monotonic=0)
    assert history.load.missing == ["kv_usage", "ttft"]
    history.add(given, KNOWN - {"ttft", "kv_usage"}, now=2, monotonic=2)
    assert history.load.missing == []
