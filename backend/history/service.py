"""The history at work: takes records from the stream, keeps the newest in memory, writes the rest to Parquet, answers pages.

A record is safe at every moment: pending in the stream until its file is on the disk, acknowledged only after that. Writing and
reading files happens in threads; everything else on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from backend.api.decisions import DecisionRecord, is_trace
from backend.core import memory
from backend.core.clock import Clock, SystemClock
from backend.core.errors import EnvironmentProblem, NotFound, Unavailable, WireError
from backend.core.settings import HistorySettings, RecordSettings
from backend.core.supervise import Supervisor
from backend.history import files, records, stream, upkeep
from backend.history.cold import ColdDecisions
from backend.history.hot import Entry, HotDecisions
from backend.history.model import NEWEST, OLDEST, Filter, HistoryCounters, HistoryTrouble, Key, cursor, key_of

log = logging.getLogger(__name__)

FIRST_RETRY_S = 0.2
LONGEST_RETRY_S = 5.0
UPKEEP_S = 3600.0
GATHER_S = 0.25
CLOSING_S = 1.5
"""Seconds a stopping process spends on a last file; what it does not manage is still in the stream."""

OnRecords = Callable[[Sequence[DecisionRecord]], None]


class History:
    """One writer and any number of readers of one history folder."""

    def __init__(
        self,
        folder: Path,
        settings: HistorySettings,
        source: RecordSettings,
        *,
        on_records: OnRecords = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        """Raises ConfigError for a stream server's URL that is none."""
        if source.redis_url:
            stream.check_url(source.redis_url)
        self.folder = folder
        self.settings = settings
        self.source = source
        self.clock: Clock = clock or SystemClock()
        self.hot = HotDecisions(settings.recent_rows)
        self.cold = ColdDecisions(folder)
        self.counters = HistoryCounters()
        self.trouble = HistoryTrouble(corrupt=self.cold.corrupt)
        self._on_records = on_records
        self._unwritten: list[Entry] = []
        self._open: dict[bytes, None] = {}
        """Stream entries whose records wait in `_unwritten` or are in the file being written, in order of delivery."""
        self._durable: list[bytes] = []
        """Stream entries whose records are on the disk and which the server has not been told about yet."""
        self._arrived = asyncio.Event()
        self._enough = asyncio.Event()
        self._space = asyncio.Event()
        self._writing = asyncio.Lock()
        self._stream: stream.DecisionStream | None = None

    async def load(self) -> None:
        """Fill memory from the newest files."""
        if not await asyncio.to_thread(files.listing, self.folder):
            return
        await asyncio.to_thread(files.clean, self.folder)
        newest = await asyncio.to_thread(self.cold.newest, self.settings.recent_rows)
        self.hot.load(newest, complete=len(newest) < self.settings.recent_rows)
        await asyncio.to_thread(memory.give_back)

    def start(self, tasks: Supervisor) -> None:
        """Run until `tasks` is closed. Without a stream server only what is written already can be read."""
        tasks.start("history-writer", self._write_always)
        tasks.start("history-upkeep", self._keep_always)
        if self.source.redis_url:
            tasks.start("history-reader", self._read_always)

    async def close(self) -> None:
        """A last file, if there is time. Call it before the tasks end, so that a file under way is finished, not begun again."""
        try:
            async with asyncio.timeout(CLOSING_S):
                await self.flush()
        except TimeoutError:
            log.info("no time for a last file: %d records stay in the stream", len(self._unwritten))

    @property
    def unacknowledged(self) -> int:
        """Stream entries that we hold and the server still keeps for us."""
        return len(self._open) + len(self._durable)

    # reading

    async def page(self, wanted: Filter, limit: int, before: Key = NEWEST) -> tuple[list[DecisionRecord], str | None]:
        """At most `limit` matching decisions older than `before`, newest first, and the cursor of the next page."""
        floor = self.hot.floor
        newest = self.hot.page(wanted, limit + 1, before)
        if floor != OLDEST and (len(newest) <= limit or key_of(newest[-1]) <= floor):
            older = await asyncio.to_thread(self.cold.page, wanted, limit + 1, before)
            newest = merge(newest, older, limit + 1)
        more = len(newest) > limit
        return newest[:limit], cursor(key_of(newest[limit - 1])) if more else None

    async def get(self, record_id: str) -> DecisionRecord:
        """By the record's id, or the newest of a trace: its id is all that a client with a `traceparent` knows. Raises NotFound."""
        ways = [(self.hot.get, self.cold.get)] + ([(self.hot.of_trace, self.cold.of_trace)] if is_trace(record_id) else [])
        found = None
        for hot, cold in ways:
            found = found or hot(record_id)
            if found is None and self.hot.floor != OLDEST:
                found = await asyncio.to_thread(cold, record_id)
        if found is None:
            raise NotFound(f"No decision has the id {record_id!r}.", fix="Ids are in the `request-id` header and in the list of decisions.")
        return found

    # from the stream to memory

    async def _read_always(self) -> None:
        delay = FIRST_RETRY_S
        while True:
            source = self._stream = stream.DecisionStream(self.source.redis_url, self.source.stream)
            try:
                await source.open()
                connected_at = await source.now()
                await self._tell_durable()
                async for chunk in source.pending():
                    await self._take(chunk, repeated=True)
                self._well()
                delay = FIRST_RETRY_S
                while True:
                    await self._room()
                    chunk = await source.fresh()
                    if 0 < len(chunk) < stream.CHUNK:
                        # Workers send small batches: waiting a moment halves the number of reads.
                        await asyncio.sleep(GATHER_S)
                    await self._take(chunk, repeated=bool(chunk) and stream.entry_time(chunk[0][0]) <= connected_at)
            except Unavailable as error:
                if not self.trouble.redis:
                    log.warning("%s", error)
                self.trouble.redis = error.message
            finally:
                self._stream = None
                await source.close()
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_RETRY_S)

    def _well(self) -> None:
        if self.trouble.redis:
            log.info("the stream server answers again")
        self.trouble.redis = ""

    async def _room(self) -> None:
        """Wait while the disk does not take what we hold: the stream keeps the rest."""
        while len(self._unwritten) >= 2 * self.settings.write_rows:
            self._space.clear()
            await self._space.wait()

    async def _take(self, chunk: Sequence[stream.Entry], *, repeated: bool) -> None:
        """Keep the records of `chunk` that are new. `repeated`: they may have been written by a life before this one."""
        new = [entry for entry in chunk if entry[0] not in self._open]
        arrived = self._decode(new)
        known = await self._known(arrived) if repeated else set()
        # No await from here on: an entry may count as open only together with its records, or a file written in between
        # would acknowledge it without them.
        fresh: list[DecisionRecord] = []
        for record in arrived:
            entry = self.hot.add(record) if record.id not in known else None
            if entry is None:
                self.counters.duplicates += 1
                continue
            self._unwritten.append(entry)
            fresh.append(record)
        self._open.update((entry_id, None) for entry_id, _ in new)
        self.counters.received += len(fresh)
        if new:
            self._arrived.set()
        if len(self._unwritten) >= self.settings.write_rows:
            self._enough.set()
        if fresh:
            self._on_records(fresh)

    def _decode(self, chunk: Sequence[stream.Entry]) -> list[DecisionRecord]:
        arrived: list[DecisionRecord] = []
        for entry_id, fields in chunk:
            if not fields:
                self.counters.trimmed += 1
                continue
            name = entry_id.decode()
            try:
                arrived += records.decode_batch(fields, partial(self._leave_out, f"a record of stream entry {name}"))
            except WireError as error:
                self._leave_out(f"stream entry {name}", str(error))
        return arrived

    def _leave_out(self, what: str, why: str) -> None:
        self.counters.unreadable += 1
        log.warning("%s is left out: %s", what, why)

    async def _known(self, arrived: Sequence[DecisionRecord]) -> set[str]:
        """Ids among `arrived` that lie in files only: memory answers for all that is above its floor."""
        asked = [record for record in arrived if record.id not in self.hot and key_of(record) <= self.hot.floor]
        if not asked:
            return set()
        times = [key_of(record).at_us for record in asked]
        return await asyncio.to_thread(self.cold.known, {record.id for record in asked}, min(times), max(times))

    # from memory to files

    async def _write_always(self) -> None:
        while True:
            await self._arrived.wait()
            try:
                async with asyncio.timeout(self.settings.write_s):
                    await self._enough.wait()
            except TimeoutError:
                pass  # the usual way: the file's time has come
            delay = FIRST_RETRY_S
            while not await self.flush():
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_RETRY_S)

    async def flush(self) -> bool:
        """Write what memory holds and acknowledge it; False when the disk refused, and everything stays as it was."""
        async with self._writing:
            batch, entries = self._unwritten, list(self._open)
            self._unwritten = []
            self._enough.clear()
            self._arrived.clear()
            written = False
            try:
                written = await self._write(batch)
            finally:
                if not written:
                    self._unwritten = batch + self._unwritten
                    self._arrived.set()
            if not written:
                return False
            self._durable += entries
            for entry_id in entries:
                self._open.pop(entry_id, None)
            self._space.set()
        try:
            await self._tell_durable()
        except Unavailable:
            pass  # told again after the next connection; until then they are pending and known
        return True

    async def _write(self, batch: Sequence[Entry]) -> bool:
        """True when nothing of `batch` needs to be kept: it is on the disk, or can never be."""
        if not batch:
            return True
        raws = [entry.raw for entry in batch]
        try:
            file = await asyncio.to_thread(files.write_records, self.folder, raws, self.clock.now())
        except files.UnwritableRows as error:
            return await self._write(self._set_aside(batch, error))
        except (EnvironmentProblem, OSError) as error:
            if not self.trouble.disk:
                log.error("%d decisions cannot be written: %s", len(batch), error)
            self.trouble.disk = str(error)
            self.trouble.disk_full = type(error).__name__ == "DiskFull"
            self.counters.write_failures += 1
            return False
        if self.trouble.disk:
            log.info("the history can be written again")
        self.trouble.disk, self.trouble.disk_full = "", False
        self.cold.learn(file)
        self.counters.written += file.rows
        self.counters.files += 1
        self.hot.mark_written(batch)
        await asyncio.to_thread(memory.give_back)
        return True

    def _set_aside(self, batch: Sequence[Entry], error: files.UnwritableRows) -> list[Entry]:
        """`batch` without the records that would stop every file from now on; they go from memory too."""
        bad = set(error.positions)
        log.error("left out: %s", error)
        self.counters.unreadable += len(bad)
        self.hot.discard(batch[at] for at in bad)
        return [entry for at, entry in enumerate(batch) if at not in bad]

    async def _tell_durable(self) -> None:
        told = list(self._durable)
        if not told or self._stream is None:
            return
        await self._stream.acknowledge(told)
        del self._durable[: len(told)]
        await self._stream.trim()

    async def _keep_always(self) -> None:
        while True:
            if await asyncio.to_thread(files.listing, self.folder):
                try:
                    done = await asyncio.to_thread(upkeep.keep, self.cold, kept_bytes=self.settings.kept_bytes, now=self.clock.now())
                except (EnvironmentProblem, OSError) as error:
                    log.warning("the history's files could not be merged: %s", error)
                else:
                    self.counters.compacted += done.merged_files
                    self.counters.files_deleted += done.deleted_files
                    self.counters.rows_deleted += done.deleted_rows
            await asyncio.sleep(UPKEEP_S)


def merge(newest: Sequence[DecisionRecord], older: Sequence[DecisionRecord], limit: int) -> list[DecisionRecord]:
    """Both are newest first and may overlap; the first `limit` of all, each id once."""
    by_id = {record.id: record for record in (*older, *newest)}
    return sorted(by_id.values(), key=key_of, reverse=True)[:limit]
