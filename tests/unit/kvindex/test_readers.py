"""The index seen from elsewhere: shared files, generations, a writer that dies and its successor."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from backend.core.errors import NotFound, UsageError
from backend.kvindex import IndexReader, PrefixIndex
from backend.kvindex import layout as at
from tests.fakes.events import batch, removed, stored

PROMPT = list(range(64))


def fill(index: PrefixIndex, pod: str, blocks: int) -> None:
    index.ingest(pod, batch(stored(range(1, blocks + 1), PROMPT[: 4 * blocks])))


def test_there_is_nothing_to_open_before_a_writer_publishes(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        PrefixIndex.open(tmp_path)
    writer = PrefixIndex(64, tmp_path, publish=False)
    with pytest.raises(NotFound):
        PrefixIndex.open(tmp_path)
    writer.publish()
    assert PrefixIndex.open(tmp_path).match(PROMPT) == {}
    writer.close()


def test_a_reader_sees_every_change_at_once(tmp_path: Path) -> None:
    writer = PrefixIndex(64, tmp_path)
    reader = PrefixIndex.open(tmp_path)
    fill(writer, "a", 2)
    assert (reader.match(PROMPT), reader.block_size("a"), reader.counters("a")) == ({"a": 8}, 4, (2, 0))
    fill(writer, "b", 4)
    writer.ingest("a", batch(removed(2)))
    assert reader.match(PROMPT) == {"a": 4, "b": 16}
    lookup = reader.lookup(["b", "a"])
    assert lookup.match(np.array(PROMPT, np.uint32)) == (("b", "a"), [16, 4])
    assert lookup.source(1) == (4, 2, 1)
    writer.remove_pod("b")
    assert reader.match(PROMPT) == {"a": 4}
    assert reader.hash_tokens(PROMPT, "", 4).tolist() == writer.hash_tokens(PROMPT, "", 4).tolist()
    writer.close()


def test_a_reader_follows_growth(tmp_path: Path) -> None:
    writer = PrefixIndex(16, tmp_path)
    reader = PrefixIndex.open(tmp_path)
    fill(writer, "a", 16)
    before = reader.generation
    for prompt in range(40):
        writer.ingest("b", batch(stored(range(100 * prompt, 100 * prompt + 16), [prompt + 1000] * 64)))
    assert reader.match(PROMPT) == {"a": 64}
    assert reader.generation > before
    assert len(list(tmp_path.glob("index-[0-9]*.bin"))) == 1
    writer.close()


def test_two_writers_do_not_share_a_folder(tmp_path: Path) -> None:
    writer = PrefixIndex(16, tmp_path)
    with pytest.raises(UsageError, match="Another index service"):
        PrefixIndex(16, tmp_path)
    writer.close()
    PrefixIndex(16, tmp_path).close()


def test_readers_keep_the_last_state_until_the_successor_is_ready(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from backend.kvindex import PrefixIndex; from tests.fakes.events import *\n"
        f"index = PrefixIndex(64, Path({str(tmp_path)!r})); index.ingest('a', batch(stored([1, 2], range(8))))\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=100).returncode == -9
    reader = PrefixIndex.open(tmp_path)
    assert reader.match(PROMPT) == {"a": 8}
    successor = PrefixIndex(64, tmp_path, publish=False)
    assert successor.has_predecessor
    assert reader.match(PROMPT) == {"a": 8}
    fill(successor, "a", 3)
    assert reader.match(PROMPT) == {"a": 8}
    successor.publish()
    assert reader.match(PROMPT) == {"a": 12}
    assert reader.state() == "live"
    successor.close()
    assert reader.state() == "stale"
    assert reader.match(PROMPT) == {"a": 12}


def test_a_writer_that_falls_silent_is_called_stale(tmp_path: Path) -> None:
    writer = PrefixIndex(16, tmp_path)
    reader = PrefixIndex.open(tmp_path)
    assert reader.state() == "live"
    assert writer._publisher is not None
    writer._publisher._current.words[at.W_HEARTBEAT_NS] = time.monotonic_ns() - int(2.1e9)
    assert reader.state() == "stale"
    writer.beat()
    assert reader.state() == "live"
    writer.close()


def test_no_wrong_answer_while_a_writer_in_another_process_churns_and_grows(tmp_path: Path) -> None:
    """One pod's prompt stays, another's tail comes and goes, the table grows under it: the stable answer never wavers."""
    script = (
        "import time, sys; from pathlib import Path; from backend.kvindex import PrefixIndex; from tests.fakes.events import *\n"
        f"index = PrefixIndex(64, Path({str(tmp_path)!r}), publish=False)\n"
        "tokens = list(range(64)); index.ingest('keeps', batch(stored(range(1, 17), tokens)))\n"
        "index.ingest('churns', batch(stored(range(1, 9), tokens[:32])))\n"
        "index.publish(); print('ready', flush=True); end = time.monotonic() + 2; at = 100\n"
        "while time.monotonic() < end:\n"
        "    index.ingest('churns', batch(stored(range(9, 17), tokens[32:], parent=8), removed(*range(16, 8, -1))))\n"
        "    index.ingest('other', batch(stored(range(at, at + 8), [at] * 32))); at += 8\n"
        "    if at % 4000 < 8: index.clear('other')\n"
        "print(index.stats().generation)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        reader: IndexReader = PrefixIndex.open(tmp_path)
        lookup = reader.lookup(["keeps", "churns", "other"])
        prompt, answers, seen = np.array(PROMPT, np.uint32), 0, set()
        while writer.poll() is None:
            names, matched = lookup.match(prompt)
            found = dict(zip(names, matched, strict=True))
            assert found["keeps"] == 64
            assert 32 <= found["churns"] <= 64
            assert found.get("other", 0) == 0
            seen.add(found["churns"])
            answers += 1
        assert int(writer.stdout.read()) > 3
    assert answers > 1000
    assert len(seen) > 1


def test_an_index_that_outgrows_shared_memory_is_shared_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = PrefixIndex(64, tmp_path)
    writer.ingest("a", batch(stored([1], PROMPT[:4])))
    reader = PrefixIndex.open(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    for block in range(2, 3000):
        writer.ingest("a", batch(stored([block], [block] * 4)))
    writer.ingest("a", batch(stored([3000], PROMPT[4:8], parent=1)))
    assert (writer.match(PROMPT[:8]), writer.blocks("a")) == ({"a": 8}, 3000)
    assert reader.match(PROMPT[:8]) == {"a": 4}
    assert "No room left" in writer.problem
    assert writer.growth_failures > 0
    writer.share()
    assert reader.match(PROMPT[:8]) == {"a": 4}
    files = sorted(file.name for file in tmp_path.glob("index-[0-9]*.bin"))
    assert len(files) == 1, "what could not be made leaves nothing behind"
    monkeypatch.undo()
    writer.share()
    assert writer.problem == ""
    assert reader.match(PROMPT[:8]) == {"a": 8}
    assert reader.state() == "live"
    writer.ingest("a", batch(removed(1)))
    assert reader.match(PROMPT[:8]) == writer.match(PROMPT[:8])
    assert len(list(tmp_path.glob("index-[0-9]*.bin"))) == 1


def test_an_index_is_not_published_before_it_can_be_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = PrefixIndex(64, tmp_path, publish=False)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        for block in range(1, 2000):
            writer.ingest("a", batch(stored([block], [block] * 4)))
        writer.publish()
    with pytest.raises(NotFound):
        PrefixIndex.open(tmp_path)
    writer.share()
    assert PrefixIndex.open(tmp_path).match([7] * 4) == {"a": 4}
