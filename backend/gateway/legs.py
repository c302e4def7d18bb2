"""The first leg of a disaggregated request: sent to its prefill pod, the answer gathered whole, its end told exactly once.

Owns the leg's connection and the pod's place in the counts of requests under way. Never decides what a failure means, never writes to
a client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from backend.gateway import answers, upstream_errors
from backend.gateway.framing import CHUNKED, ResponseHead, dechunked
from backend.gateway.model import Counted
from backend.gateway.stream import read_answer
from backend.gateway.targets import PodTarget
from backend.gateway.upstream import UpstreamConnection

if TYPE_CHECKING:
    from backend.gateway.service import Gateway

ANSWER_BYTES = 16 * 2**20
"""An answer holds the prompt's block ids, and its token ids when the client asked for them."""
AVOID_S = 1.0
"""Seconds in which others are preferred to a pod that refused a connection."""

LegFailure = Literal["", "connect", "reset", "garbage", "timeout", "internal", "draining", "refused", "failed", "cancelled"]
"""refused: the engine says that the request is wrong; failed: it says that something else is."""


class PrefillLeg:
    """`told` is called once when it ends, but not for one that was cancelled."""

    __slots__ = (
        "_body", "_connection", "_fresh_tried", "_gateway", "_head", "_parts", "_request", "_size", "_task", "_told", "answer", "detail",
        "ended_at", "failure", "pod", "retry_after", "sent_at", "status", "usage",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, pod: PodTarget, told: Callable[[PrefillLeg], None]) -> None:
        self._gateway = gateway
        self._told = told
        self._connection: UpstreamConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._head: ResponseHead | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._fresh_tried = False
        self._request: tuple[bytes, ...] = ()
        self._body = b""
        self.pod = pod
        self.answer = b""
        self.status = 0
        """HTTP status of the answer; 0 while there is none."""
        self.retry_after = b""
        self.usage = Counted()
        self.failure: LegFailure = ""
        self.detail = ""
        self.sent_at = self.ended_at = 0.0
        gateway.counts.plus(pod.slot)

    def start(self, head: tuple[bytes, ...], body: bytes) -> None:
        """`head` in parts, all of it."""
        self._request, self._body = head, body
        connection = self.pod.pool.take()
        if connection is not None:
            self._send(connection)
        else:
            self._task = self._gateway.spawn(self._connect())

    def cancel(self) -> None:
        """Nobody wants it any more: the engine stops."""
        if not self.ended_at:
            self.failure = "cancelled"
            self._release()

    def check_time(self, now: float) -> None:
        limit = self._gateway.settings.routing.pd.prefill_timeout_s
        if self.sent_at and not self.ended_at and now - self.sent_at > limit:
            self._end("timeout", f"no answer to the prefill for {limit:g} s")

    async def _connect(self) -> None:
        detail, connection = "", None
        try:
            connection = await self.pod.pool.connect(self._gateway.settings.limits.connect_timeout_s)
        except TimeoutError:
            detail = "connecting took too long"
        except OSError:
            detail = "the pod refused the connection"
        self._task = None
        if connection is None:
            self.pod.pool.avoid_until = asyncio.get_running_loop().time() + AVOID_S
            self._end("connect", detail)
        elif self.ended_at:
            connection.cancel()
        else:
            self._send(connection)

    def _send(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        self.sent_at = self.sent_at or perf_counter()
        connection.send(self._request, self._body, self)

    # --- the pod's answer ---

    def on_head(self, head: ResponseHead, data: bytes, ended: bool) -> None:
        self._head = head
        self.on_data(data, ended)

    def on_data(self, data: bytes, ended: bool) -> None:
        if ended:
            self._connection = None
        self._parts.append(data)
        self._size += len(data)
        if self._size > ANSWER_BYTES:
            self._end("garbage", f"its answer to a prefill is longer than {ANSWER_BYTES} bytes")
        elif ended:
            self._complete()

    def on_failure(self, kind: LegFailure, detail: str) -> None:
        connection, self._connection = self._connection, None
        if self.ended_at:
            return
        if kind == "reset" and self._head is None and not self._fresh_tried and connection is not None and connection.reused:
            # The engine closed an idle connection just as it was used: nothing was computed, and the pod is not to blame.
            self._fresh_tried = True
            self._task = self._gateway.spawn(self._connect())
        else:
            self._end(kind, detail)

    def _complete(self) -> None:
        head, payload = self._head, b"".join(self._parts)
        assert head is not None
        self.status, self.retry_after = head.status, head.retry_after
        self.answer = dechunked(payload) if head.length == CHUNKED else payload
        if head.status != 200:
            return self._failed()
        answer = read_answer(self.answer)
        if answer is None:
            return self._end("garbage", answers.unreadable_answer().message)
        if answer.error is not None and bytes(answer.error) != b"null":
            return self._failed()
        if answer.usage is not None:
            self.usage = answer.usage.counted()
        reason = answer.choices[0].finish_reason if answer.choices else None
        if reason == "abort":
            draining = self._gateway.adapter(self.pod.engine).is_draining(reason, self.usage.completion or 0)
            return self._end("draining" if draining else "failed", "the pod is draining" if draining else "the pod aborted the prefill")
        return self._end("", "")

    def _failed(self) -> None:
        status = upstream_errors.normalise(self.status, self.answer)[0]
        detail = f"answered {status}: {upstream_errors.message(self.answer)}"
        # 503: starting, stopping or full; another pod may take it.
        self._end("refused" if 400 <= status < 500 else "draining" if status == 503 else "failed", detail)

    # --- the end ---

    def _end(self, failure: LegFailure, detail: str) -> None:
        if self.ended_at:
            return
        self.failure, self.detail = failure, detail
        self._release()
        self._told(self)

    def _release(self) -> None:
        self.ended_at = perf_counter()
        self._parts = []
        self._body = b""
        self._gateway.counts.minus(self.pod.slot)
        if self._connection is not None:
            self._connection.cancel()
            self._connection = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
