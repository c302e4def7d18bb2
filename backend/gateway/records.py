"""Finished decision records on their way to the history: in batches to a Redis stream, from a bounded queue, never on a request's path.

A batch stays at the head of the queue until the server has acknowledged it; a lost acknowledgement means that it is sent twice, and
the history drops doubles by id. While the server is away the newest `kept_records` are kept and the loss of older ones is counted.
A record that cannot be written is dropped and counted: it must not hold up those behind it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from itertools import islice

import msgspec
import redis.asyncio
from redis.exceptions import RedisError

from backend.api.decisions import DecisionRecord
from backend.core.settings import RecordSettings
from backend.gateway.classify import Evidence, classify
from backend.history.records import FIELD, encode_batch, encode_record

log = logging.getLogger(__name__)

FIRST_DELAY_S, LONGEST_DELAY_S = 0.2, 5.0
SEND_TIMEOUT_S = 5.0
CountLoss = Callable[[int], None]
Counters = Callable[[str], tuple[int, int]]
TellSettled = Callable[[DecisionRecord], None]
_UNWRITABLE = (OverflowError, TypeError, ValueError, msgspec.MsgspecError)


class RecordPublisher:
    """`put` from the request path; `run` as a supervised task; `flush` once at the end."""

    def __init__(
        self, settings: RecordSettings, worker: int, *, lost: CountLoss, counters: Counters, settled: TellSettled = lambda _: None
    ) -> None:
        """`settled` is told once of each record that was put as doubtful, when its class is final."""
        self._settings = settings
        self._worker = worker
        self._lost = lost
        self._counters = counters
        self._settled = settled
        self._queue: deque[DecisionRecord] = deque()
        self._doubtful: dict[str, Evidence] = {}
        self._full = asyncio.Event()
        self._client: redis.asyncio.Redis | None = None
        self._sending = asyncio.Lock()
        self._under_way = 0
        """Records at the head of the queue that are being sent."""
        self._left_under_way = 0
        """Records of that batch that had to leave the full queue: lost only if the server does not take the batch."""
        self.away = False
        """The server does not answer."""

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, record: DecisionRecord) -> None:
        queue = self._queue
        if len(queue) >= self._settings.kept_records:
            self._drop_oldest()
        queue.append(record)
        if len(queue) >= self._settings.batch_records and not self.away:
            self._full.set()

    def put_doubtful(self, record: DecisionRecord, evidence: Evidence) -> None:
        """A record whose hit nothing explains yet: the pod's events may be a moment behind its answer, so it is looked at again
        when its batch is sent."""
        if self._settings.redis_url:
            self._doubtful[record.id] = evidence
        else:
            self._settled(record)
        self.put(record)

    def _drop_oldest(self) -> None:
        oldest = self._queue.popleft()
        if self._doubtful.pop(oldest.id, None) is not None:
            self._settled(oldest)
        if self._under_way:
            self._under_way -= 1
            self._left_under_way += 1
        elif self._settings.redis_url:
            self._lost(1)

    async def run(self) -> None:
        if not self._settings.redis_url:
            return
        delay = FIRST_DELAY_S
        while True:
            try:
                async with asyncio.timeout(self._settings.flush_s if not self.away else delay):
                    await self._full.wait()
            except TimeoutError:
                pass
            self._full.clear()
            delay = FIRST_DELAY_S if await self._send_all() else min(delay * 2, LONGEST_DELAY_S)

    async def flush(self, timeout_s: float) -> None:
        """Send what is left, once; what cannot be sent is counted as lost."""
        if self._settings.redis_url:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._send_all()
            except TimeoutError:
                pass
            if self._queue:
                log.error("%d decision records are lost: the stream server does not answer", len(self._queue))
                self._lost(len(self._queue))
                self._settle(list(self._queue))
        if self._client is not None:
            await self._client.aclose()

    async def _send_all(self) -> bool:
        """Whether the queue was brought down to nothing."""
        async with self._sending:
            while self._queue:
                batch = list(islice(self._queue, self._settings.batch_records))
                self._settle(batch)
                if not await self._sent(batch):
                    return False
            if self.away:
                self.away = False
                log.info("decision records are sent again")
            return True

    async def _sent(self, batch: list[DecisionRecord]) -> bool:
        self._under_way = len(batch)
        taken = False
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._send(batch)
            taken = True
        except (RedisError, OSError, TimeoutError) as error:
            if not self.away:
                self.away = True
                log.warning("decision records cannot be sent, the newest %d are kept: %s", self._settings.kept_records, error)
        finally:
            if taken:
                for _ in range(self._under_way):
                    self._queue.popleft()
            elif self._left_under_way:
                self._lost(self._left_under_way)
            self._under_way = self._left_under_way = 0
            # As in `backend.history.stream`: redis-py, or asyncio.wait_for of CPython 3.11, can swallow a cancellation.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError
        return taken

    async def _send(self, batch: list[DecisionRecord]) -> None:
        if self._client is None:
            self._client = redis.asyncio.Redis.from_url(self._settings.redis_url, socket_timeout=SEND_TIMEOUT_S, socket_connect_timeout=2.0)
        try:
            encoded = encode_batch(batch)
        except _UNWRITABLE:
            batch = self._without_unwritable(batch)
            if not batch:
                return
            encoded = encode_batch(batch)
        fields: dict[str | bytes, bytes | int] = {FIELD: encoded, b"worker": self._worker}
        await self._client.xadd(self._settings.stream, fields, maxlen=self._settings.stream_batches, approximate=True)  # type: ignore[arg-type]

    def _without_unwritable(self, batch: list[DecisionRecord]) -> list[DecisionRecord]:
        """What of `batch` can be written; the rest leaves the queue at once, so that it is counted once however often this is tried."""
        good: list[DecisionRecord] = []
        bad: set[str] = set()
        for record in batch:
            try:
                encode_record(record)
            except _UNWRITABLE as error:
                bad.add(record.id)
                log.error("the record of request %s cannot be written and is lost: %s", record.id, error)
            else:
                good.append(record)
        self._queue = deque(record for record in self._queue if record.id not in bad)
        self._under_way = len(good)
        self._lost(len(bad))
        return good

    def _settle(self, batch: list[DecisionRecord]) -> None:
        if not self._doubtful:
            return
        for record in batch:
            evidence = self._doubtful.pop(record.id, None)
            if evidence is not None:
                evidence.stored_after, evidence.removed_after = self._counters(
                    record.chosen if record.prefill is None else record.prefill.chosen
                )
                record.hit_class = classify(record.predicted_tokens, record.cached_tokens, record.block_size, evidence)
                self._settled(record)
