"""The answer's half of an exchange: from the pod to the client, byte for byte, with what has to be known of it noted in passing.

A plain answer is held until it is whole, so that a pod that dies or drains in the middle can be replaced; a stream is held until its
first token and then passed on as it comes. Never chooses a pod: what becomes of a request whose answer fails is decided by `exchange`,
which builds on this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from backend.api.decisions import Outcome
from backend.gateway import answers, upstream_errors
from backend.gateway.answers import Problem
from backend.gateway.framing import CHUNKED, UNTIL_CLOSE, ResponseHead, dechunked
from backend.gateway.model import Usage
from backend.gateway.policies import Policy
from backend.gateway.request import RequestHead
from backend.gateway.stream import StreamNotes, read_answer
from backend.gateway.targets import Pairing, PodTarget
from backend.gateway.upstream import UpstreamConnection

if TYPE_CHECKING:
    from backend.gateway.exchange import Exchange
    from backend.gateway.service import Gateway

HELD_BYTES = 262_144
"""A plain answer up to this size is sent on once it is whole, so that a pod that dies or drains in the middle can be replaced."""
HELD_ERROR_BYTES = 65_536
HELD_HTTP10_BYTES = 16 * 2**20
HELD_OPENING_BYTES = 4096
"""Of a stream, until its first event that says anything."""


class Client(Protocol):
    """The connection that the request came by."""

    def write(self, data: bytes) -> None: ...

    def finished(self, keep_alive: bool) -> None: ...

    def hand_over(self, exchange: Exchange, pairing: Pairing) -> None:
        """The request needs two pods: another kind of exchange takes it from here."""

    @property
    def write_paused(self) -> bool: ...


class Relay:
    """The sink of a pod's answer. `exchange.Exchange` sets all of it, and supplies the last methods."""

    __slots__ = (
        "_body_began", "_client", "_connection", "_gateway", "_held", "_held_bytes", "_held_limit", "_keep", "_policy", "_response",
        "_task", "chosen", "ended_at", "error", "first_at", "head", "id", "notes", "quiet_since", "response_bytes", "status", "usage",
    )  # fmt: skip

    _body_began: bool
    _client: Client
    _connection: UpstreamConnection | None
    _gateway: Gateway
    _held: list[bytes] | None
    _held_bytes: int
    _held_limit: int
    _keep: bool
    _policy: Policy
    _response: ResponseHead | None
    _task: asyncio.Task[None] | None
    chosen: PodTarget | None
    ended_at: float
    """0.0 until it is over."""
    error: str
    first_at: float
    head: RequestHead
    id: bytes
    """What the client and the pod are told: the trace's id where the client gave one."""
    notes: StreamNotes | None
    quiet_since: float
    response_bytes: int
    status: int
    usage: Usage | None

    # --- as the pod's answer comes ---

    def on_head(self, head: ResponseHead, data: bytes, ended: bool) -> None:
        self.first_at = self.quiet_since = perf_counter()
        self._response = head
        if ended:
            self._connection = None
            if head.plain:
                try:
                    return self._answer_plainly(head, data)
                except Exception as error:  # noqa: BLE001  the request handler's edge
                    return self._caught(error)
        hold = self._hold_limit(head)
        if hold:
            if ended:
                return self._answer_whole(data)
            self._held, self._held_bytes, self._held_limit = [], 0, hold
            return self._hold(data, False)
        self.notes = StreamNotes()
        if head.event_stream:
            self._held = []
            return self._hold_opening(data, ended)
        if data:
            self._note(data, self.first_at)
        return self._open(head, data, ended)

    def _hold_limit(self, head: ResponseHead) -> int:
        """Bytes that this answer may have to be kept until it is whole; 0: it is passed on as it comes."""
        if head.plain:
            return HELD_BYTES if head.length <= HELD_BYTES else 0
        if head.status >= 400:
            return HELD_ERROR_BYTES
        if head.length == CHUNKED and self.head.http10:
            return HELD_HTTP10_BYTES
        return 0

    def on_data(self, data: bytes, ended: bool) -> None:
        if ended:
            self._connection = None
        if self._held is not None:
            return self._hold(data, ended)
        if data:
            self._client.write(data)
            self._note(data, perf_counter())
        if ended:
            self._passed()
        return None

    def _note(self, data: bytes, now: float) -> None:
        self._body_began = True
        self.response_bytes += len(data)
        self.notes.packet(data, now)  # type: ignore[union-attr]

    def _hold(self, data: bytes, ended: bool) -> None:
        if self.notes is not None:
            return self._hold_opening(data, ended)
        held = self._held
        assert held is not None
        if data:
            self._body_began = True
            held.append(data)
            self._held_bytes += len(data)
        if not ended:
            if self._held_bytes <= self._held_limit:
                return None
            self._drop_connection()
            if self._held_limit == HELD_HTTP10_BYTES:
                return self._refuse(answers.bad_gateway("it is too long for a client that speaks HTTP/1.0"), "upstream_error")
        self._held = None
        return self._answer_whole(b"".join(held))

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.cancel()
            self._connection = None

    # --- a stream ---

    def _hold_opening(self, data: bytes, ended: bool) -> None:
        """The head waits for the first event that says anything: a draining pod says there that it is, and is replaced unseen."""
        held, notes, head = self._held, self.notes, self._response
        assert held is not None
        assert notes is not None
        assert head is not None
        if data:
            held.append(data)
            self._note(data, perf_counter())
        if not (ended or notes.opening or self.response_bytes > HELD_OPENING_BYTES):
            return None
        self._held = None
        if notes.opening == "abort" and self._is_draining() and self._has_another():
            self._drop_connection()
            return self._try_another("draining", "the pod is draining")
        return self._open(head, b"".join(held), ended)

    def _open(self, head: ResponseHead, data: bytes, ended: bool) -> None:
        self._start_passing(head, data)
        if ended:
            self._passed()
        elif self._client.write_paused:
            self.pause()

    def _passed(self) -> None:
        """A stream came to its own end: it says there how it went."""
        notes = self.notes
        assert notes is not None
        self.usage, aborted, error = notes.ending()
        if error:
            self.error = f"the pod's stream holds an error: {error}"
            self._finish("upstream_error")
        elif aborted:
            self.error = self.error or "the pod ended its answer before it was done"
            self._finish("aborted")
        else:
            self._finish("ok")

    # --- a whole answer ---

    def _answer_whole(self, whole: bytes) -> None:
        head = self._response
        assert head is not None
        plain = head.status == 200 and head.length != CHUNKED
        self._guarded(self._answer_plainly if plain else self._answer_otherwise, head, whole)

    def _answer_plainly(self, head: ResponseHead, whole: bytes) -> None:
        """An answer of the usual kind: its usage is read, an error in it normalised, a draining pod replaced."""
        answer = read_answer(whole)
        if answer is None:
            raise answers.unreadable_answer()
        if answer.error is not None and bytes(answer.error) != b"null":
            return self._send_error(200, whole, b"")
        self.usage = answer.usage
        outcome: Outcome = "ok"
        if answer.choices and answer.choices[0].finish_reason == "abort":
            if self._is_draining() and self._has_another():
                return self._try_another("draining", "the pod is draining")
            outcome = "aborted"
        self.response_bytes = len(whole)
        self._start_passing(head, whole)
        self._finish(outcome)
        return None

    def _answer_otherwise(self, head: ResponseHead, whole: bytes) -> None:
        """An error, or an answer in chunks for a client that knows none."""
        payload = dechunked(whole) if head.length == CHUNKED else whole
        if head.status >= 400:
            return self._send_error(head.status, payload, head.retry_after)
        notes = self.notes = StreamNotes()
        if payload:
            self._note(payload, self.first_at)
        if notes.opening == "abort" and self._is_draining() and self._has_another():
            return self._try_another("draining", "the pod is draining")
        self._start_passing(head.without_framing(), payload)
        self._keep = False
        return self._passed()

    def _is_draining(self) -> bool:
        if self.chosen is None:
            return False
        completion = self.usage.counted().completion if self.usage is not None else 0
        return self._gateway.adapter(self.chosen.engine).is_draining("abort", completion or 0)

    # --- to the client ---

    def _start_passing(self, head: ResponseHead, data: bytes) -> None:
        self.status = head.status
        self._keep = self.head.keep_alive and not self._gateway.draining and head.length != UNTIL_CLOSE
        self._client.write(b"".join((head.forward, *self._response_lines(), b"\r\n", data)))

    def _response_lines(self) -> tuple[bytes, ...]:
        lines: tuple[bytes, ...]
        if self.chosen is not None:
            lines = (b"request-id: ", self.id, self._policy.after_id, self.chosen.response_lines)
        else:
            lines = (b"request-id: ", self.id, b"\r\n")
        if not self._keep:
            return (*lines, b"connection: close\r\n")
        return (*lines, b"connection: keep-alive\r\n") if self.head.http10 else lines

    def _send_error(self, status: int, payload: bytes, retry_after: bytes) -> None:
        status, rendered, lines = upstream_errors.normalise(status, payload, retry_after)
        self._own_answer(status, rendered, lines)
        self.error = self.error or f"the pod answered {status}"
        self._finish("upstream_error")

    def _own_answer(self, status: int, payload: bytes, lines: bytes) -> None:
        self.status = status
        self._keep = self._keep and self.head.keep_alive and not self._gateway.draining
        self.response_bytes += len(payload)
        whole = answers.response(status, payload, extra=b"".join((lines, *self._response_lines())))
        self._client.write(whole[: -len(payload)] if self.head.method == b"HEAD" and payload else whole)

    # --- back-pressure and time ---

    def pause(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    def check_time(self, now: float) -> None:
        """Called a few times a second; `now` is perf_counter.

        Engines send a stream's head at once and its first token when its turn has come: until the first byte of the body the longer
        limit holds.
        """
        connection = self._connection
        if connection is None:
            return
        if connection.active or self._client.write_paused:
            connection.active = False
            self.quiet_since = now
            return
        limits = self._gateway.settings.limits
        limit = limits.idle_timeout_s if self._body_began else limits.first_byte_timeout_s
        if now - self.quiet_since > limit:
            connection.cancel()
            what = "the pod stopped in the middle of its answer" if self._body_began else "no answer from the pod"
            self.on_failure("timeout", f"{what} for {limit:g} s")

    # --- supplied by Exchange ---

    def _guarded(self, step: Callable[..., None], *arguments: object) -> None:
        raise NotImplementedError

    def _caught(self, error: Exception) -> None:
        raise NotImplementedError

    def on_failure(self, kind: str, detail: str) -> None:
        raise NotImplementedError

    def _has_another(self) -> bool:
        raise NotImplementedError

    def _try_another(self, kind: str, detail: str) -> None:
        raise NotImplementedError

    def _refuse(self, problem: Problem, outcome: Outcome = "refused") -> None:
        raise NotImplementedError

    def _finish(self, outcome: Outcome) -> None:
        raise NotImplementedError
