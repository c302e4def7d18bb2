"""A request whose prompt is computed by one pod and whose answer by another: both chosen in one step, both counted, one ending.

Takes over from `exchange` as soon as the model is known; what comes back from the decode pod goes the usual way (`relay`). Until the
first byte has gone to the client a failed prefill is replaced by another, a failed decode by another pair: what a prefill pod has handed
over is used once, for the one decode pod that it was sent to. A decode pod that was never reached is replaced without a second prefill.
"""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec

from backend.api.decisions import Outcome
from backend.core.errors import WireError
from backend.engines.base import PrefillPod
from backend.gateway import answers, body, policies
from backend.gateway.exchange import TRIES, Exchange
from backend.gateway.labels import SelectorError
from backend.gateway.legs import PrefillLeg
from backend.gateway.model import Counted, FleetView, NoCandidate, PairDecision, PairView, RequestView
from backend.gateway.policies import pd
from backend.gateway.targets import Pairing, PodTarget
from backend.gateway.upstream import UpstreamConnection

if TYPE_CHECKING:
    from backend.engines.base import EngineAdapter
    from backend.gateway.upstream import FailureKind

log = logging.getLogger(__name__)

LINGER_S = 1.0
"""Seconds in which a prefill leg may end behind its decode leg: its answer holds the prefix hit."""
_REPLACED = ("connect", "reset", "draining")
_OUTCOMES: dict[str, Outcome] = {"timeout": "timeout", "reset": "upstream_reset"}


class PairExchange(Exchange):
    """`chosen` is the decode pod; the prefix hit, promised and told, is the prefill pod's."""

    __slots__ = (
        "_adapter", "_answered", "_decode_body", "_leg_id", "_over", "_pairing", "_peer", "leg", "pair", "prefill_attempts",
        "prefill_error",
    )  # fmt: skip

    _adapter: EngineAdapter
    _peer: PrefillPod
    pair: PairDecision | None
    leg: PrefillLeg | None

    def __init__(self, begun: Exchange, pairing: Pairing) -> None:
        super().__init__(begun._gateway, begun._client, begun.head, begun._body, begun.began)
        self.id, self.own_id, self.asked = begun.id, begun.own_id, begun.asked
        self._policy = policies.PAIR
        self._pairing = pairing
        self._decode_body = b""
        self._leg_id = self.id
        """Both legs carry it. Another one for each try: a prefill pod may still keep the blocks of the one before under its name."""
        self._answered = False
        """The prefill pod has handed over what no decode pod has been given yet."""
        self._over: asyncio.Event | None = None
        """Set while only the prefill leg is waited for."""
        self.pair = self.leg = None
        self.prefill_attempts: tuple[str, ...] = ()
        self.prefill_error = ""

    # --- the decision ---

    def _begin(self) -> None:
        head, gateway, asked, pairing = self.head, self._gateway, self.asked, self._pairing
        assert asked is not None
        if head.ignored:
            gateway.count_ignored_headers(head.ignored)
        if head.selector and pairing:
            try:
                self._pairing = selected = pairing.selected(head.selector)
            except SelectorError as error:
                raise answers.bad_filter(str(error)) from None
            if not selected:
                raise answers.nothing_passes(head.selector)
            pairing = selected
        if not pairing:
            raise answers.no_pair(*pairing.ready)
        self._candidates = pairing.prefill
        if asked.ids is not None:
            return self._decide("")
        return self._find_tokens(asked, pairing.prefill)

    def _decide(self, problem: str) -> None:
        self._index_problem = problem
        if self.leg is not None:
            self._leg_id = b"%b-%d" % (self.id, len(self.attempts) + len(self.prefill_attempts) + self._fresh_tried)
        leg = PrefillLeg(self._gateway, self._choose(self._preferred()), self._prefill_ended)
        self.leg = leg
        self._answered = False
        self._adapter = self._gateway.adapter(leg.pod.engine)
        self._peer = PrefillPod(leg.pod.ip, leg.pod.bootstrap_port, self._gateway.new_room())
        try:
            prefill_body = self._adapter.prefill_request(self._body, self._peer)
        except WireError as error:
            raise answers.invalid_body(f"error processing request body: {error.message}") from None
        leg.start(self._head_lines(prefill_body, (b"host: ", leg.pod.pool.address.encode(), b"\r\n\r\n")), prefill_body)
        if self._adapter.legs == "concurrent" and self.leg is leg and not leg.ended_at:
            self._decode_body = self._adapter.decode_request(self._body, self._peer, b"").body
            self._reach_decode()

    def _preferred(self) -> Pairing:
        """Without pods that refused a connection a moment ago, as long as a pair is left."""
        gateway, pairing = self._gateway, self._pairing
        if not gateway.avoiding:
            return pairing
        now = asyncio.get_running_loop().time()
        refusing = {pod.name for side in (pairing.prefill, pairing.decode) for pod in side.pods if pod.pool.avoid_until > now}
        return (pairing.without(refusing) or pairing) if refusing else pairing

    def _choose(self, pairing: Pairing) -> PodTarget:
        """Choose both and count the decode pod (its leg counts the prefill pod), in one step with the look at the counts."""
        gateway, asked, problem, prefill, decode = self._gateway, self.asked, self._index_problem, pairing.prefill, pairing.decode
        assert asked is not None
        prefill_load = gateway.counts.picked(prefill.pick, gateway.rows)
        decode_load = gateway.counts.picked(decode.pick, gateway.rows)
        matched, prompt_tokens = self._match(asked, prefill.names)
        self.index_state = state = gateway.prefix.state
        if matched is None and not problem:
            problem = "index_stale" if state == "stale" else "index_absent"
        view = RequestView(gateway.random(), prompt_tokens, matched, problem)
        pairs = PairView(
            candidates=decode.names,
            in_flight=decode_load,
            prefill=FleetView(prefill.names, prefill_load),
            groups=pairing.decode_groups,
            prefill_groups=pairing.prefill_groups,
        )
        try:
            pair = pd.choose_pair(view, pairs, gateway.settings.routing)
        except NoCandidate:
            raise answers.no_pair(*pairing.ready) from None
        self.decision = self.pair = pair
        self.chosen = chosen = decode.pods[pair.pod]
        gateway.counts.plus(chosen.slot)
        self.predicted = matched[pair.prefill] if matched is not None else None
        if matched is not None:
            self.source = gateway.prefix.source(prefill.names, pair.prefill)
        self.decided_at = self.decided_at or perf_counter()
        return prefill.pods[pair.prefill]

    def _match(self, asked: body.Asked, names: list[str]) -> tuple[list[int] | None, int]:
        prefix = self._gateway.prefix
        if asked.ids is None:
            ids = self._token_ids
            return (prefix.match(ids, asked.model, names), len(ids)) if ids is not None else (None, 0)
        try:
            return prefix.match_text(self._body, *asked.ids, asked.model, names)
        except ValueError:
            raise answers.invalid_body("error processing request body: token ids must be whole numbers", "prompt") from None

    # --- the prefill leg ---

    def _head_lines(self, payload: bytes, last: tuple[bytes, ...]) -> tuple[bytes, ...]:
        head = self.head
        first = b"POST %b HTTP/1.1\r\n%bcontent-length: %d\r\nx-request-id: " % (head.target, head.forward, len(payload))
        return (first, self._leg_id, self._policy.after_id, *last)

    def _prefill_ended(self, leg: PrefillLeg) -> None:
        self._guarded(self._after_prefill, leg)

    def _after_prefill(self, leg: PrefillLeg) -> None:
        assert self.asked is not None
        self._gateway.count_prefill(self.asked.model, leg.failure or "ok", leg.status)
        if leg.sent_at and not self.sent_at:
            self.sent_at = self.connected_at = leg.sent_at
        if leg.failure:
            self.prefill_error = f"{leg.pod.name}: {leg.detail}"
        if self._over is not None:
            self._over.set()
        if self.ended_at or self.leg is not leg:
            return
        if leg.failure:
            self._prefill_failed(leg)
        elif self._adapter.legs == "sequential":
            self._hand_on(leg)

    def _hand_on(self, leg: PrefillLeg) -> None:
        """The decode leg's turn, to the pod chosen with the prefill: unless that one has begun to leave meanwhile and another can do it."""
        try:
            request = self._adapter.decode_request(self._body, self._peer, leg.answer)
        except WireError as error:
            leg.failure, leg.detail = "garbage", error.message
            self.prefill_error = f"{leg.pod.name}: {error.message}"
            return self._prefill_failed(leg)
        if not request.transfers:
            self._gateway.count_routing_error("prefill_without_transfer")
            log.warning("request %s: %s handed over no KV blocks; check its --kv-transfer-config", self.id.decode(), leg.pod.name)
        leg.answer = b""
        self._decode_body, self._answered = request.body, True
        self._gateway.refresh_fleet()
        candidates = self._gateway.targets.models.get(self.asked.model) if self.asked is not None else None
        latest = candidates.pairing if candidates is not None else None
        if latest is not None and self.chosen is not None and not latest.has_decode(self.chosen):
            others = latest.without(self.attempts).with_prefill(leg.pod)
            if others:
                self._take_other_decode(others)
        return self._reach_decode()

    def _take_other_decode(self, others: Pairing) -> None:
        """For a prompt that is computed already: `others` has only its prefill pod."""
        promised = self.predicted, self.source, self.index_state
        self._release_decode()
        self._choose(others)
        # What the index says by now was stored by this very request.
        self.predicted, self.source, self.index_state = promised

    def _prefill_failed(self, leg: PrefillLeg) -> None:
        if self.status:
            # The decode pod has answered, so it got what it needed.
            return log.warning("request %s: %s", self.id.decode(), self.prefill_error)
        self.error = self.prefill_error
        if leg.failure == "refused":
            # The request is wrong, as any other pod would say.
            self._drop_decode()
            return super()._send_error(leg.status, leg.answer, leg.retry_after)
        kept = self._pairing.without((leg.pod.name,))
        if leg.failure in _REPLACED and kept and self._tries_left():
            self._gateway.count_retry(f"prefill_{leg.failure}")
            self.prefill_attempts = (*self.prefill_attempts, leg.pod.name)
            self._pairing = kept
            return self._anew()
        self._drop_decode()
        problem = answers.no_pod_answers(f"prefill pod {leg.pod.name}: {leg.detail}")
        return self._refuse(problem, _OUTCOMES.get(leg.failure, "upstream_error"))

    # --- the decode leg ---

    def _reach_decode(self) -> None:
        pod = self.chosen
        assert pod is not None
        connection = pod.pool.take()
        if connection is not None:
            self._send(pod, connection, perf_counter())
        else:
            self._task = self._gateway.spawn(self._guarded_task(self._connect, pod))

    def _send(self, pod: PodTarget, connection: UpstreamConnection, now: float) -> None:
        self._answered = False
        self._connection = connection
        self.quiet_since = now
        self.sent_at = self.sent_at or now
        self.connected_at = self.connected_at or now
        connection.send(self._head_lines(self._decode_body, (pod.request_lines,)), self._decode_body, self)

    def on_failure(self, kind: FailureKind, detail: str) -> None:  # type: ignore[override]
        connection = self._connection
        idle_closed = kind == "reset" and self._response is None and connection is not None and connection.reused
        if idle_closed and not (self._fresh_tried or self.ended_at or self.status):
            # As with one pod the pod is not to blame; but whether it took the prefill's blocks nobody knows, so both legs are run again.
            self._connection = None
            self._fresh_tried = True
            return self._guarded(self._anew)
        return super().on_failure(kind, detail)

    def _tries_left(self) -> bool:
        return len(self.attempts) + len(self.prefill_attempts) + 1 < TRIES

    def _has_another(self) -> bool:
        return self.chosen is not None and self._tries_left() and bool(self._pairing.without((self.chosen.name,)))

    def _try_another(self, kind: str, detail: str) -> None:
        pod = self.chosen
        if self.ended_at:
            return None
        if pod is None or kind not in _REPLACED or not self._has_another():
            return super()._try_another(kind, detail)
        self.error = f"{pod.name}: {detail}"
        self._gateway.count_retry(kind)
        self.attempts = (*self.attempts, pod.name)
        self._pairing = self._pairing.without((pod.name,))
        return self._guarded(self._another_decode if self._answered else self._anew)

    def _send_error(self, status: int, payload: bytes, retry_after: bytes) -> None:
        """A decode pod that cannot load the blocks says 500 (its prefill pod went away behind its answer), one that takes none now 503:
        both are mended by another pair. Tried once, since a 500 may as well be the request's own fault."""
        leg, pod = self.leg, self.chosen
        if status not in (500, 503) or leg is None or pod is None or self.attempts or self.prefill_attempts:
            return super()._send_error(status, payload, retry_after)
        culprit = leg.pod if status == 500 else pod
        kept = self._pairing.without((culprit.name,))
        if not kept:
            return super()._send_error(status, payload, retry_after)
        self._gateway.count_retry(f"decode_{status}")
        if status == 500:
            self.prefill_attempts = (*self.prefill_attempts, culprit.name)
        else:
            self.attempts = (*self.attempts, culprit.name)
        self.error, self._pairing = f"{pod.name}: the pod answered {status}", kept
        return self._anew()

    def _another_decode(self) -> None:
        """What the prefill pod handed over has reached nobody: another decode pod of its RoleSet and revision can have it."""
        assert self.leg is not None
        others = self._pairing.with_prefill(self.leg.pod)
        if not others:
            return self._anew()
        self._take_other_decode(others)
        return self._reach_decode()

    def _anew(self) -> None:
        """Both legs from the beginning, with what is left of the pairs."""
        if self.leg is not None:
            self.leg.cancel()
        self._release_decode()
        self._decide(self._index_problem)

    def _release_decode(self) -> None:
        self._drop_decode()
        self._held = self._response = self.usage = self.notes = None
        self._body_began = False
        self.response_bytes = 0
        self.first_at = 0.0
        pod, self.chosen = self.chosen, None
        if pod is not None:
            self._gateway.counts.minus(pod.slot)

    def _drop_decode(self) -> None:
        self._drop_connection()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    # --- the end ---

    def _response_lines(self) -> tuple[bytes, ...]:
        lines = super()._response_lines()
        return (*lines, self.leg.pod.prefill_lines) if self.leg is not None else lines

    def check_time(self, now: float) -> None:
        if self.leg is not None:
            self.leg.check_time(now)
        if not self.ended_at:
            super().check_time(now)

    def _finish(self, outcome: Outcome) -> None:
        if self.ended_at:
            return
        self.ended_at = perf_counter()
        self.outcome = outcome
        self._body = self._decode_body = b""
        leg, pod = self.leg, self.chosen
        if pod is not None:
            self._gateway.counts.minus(pod.slot)
        if leg is not None and not leg.ended_at and outcome == "ok":
            self._over = asyncio.Event()
            self._gateway.spawn(self._await_prefill(leg, self._over))
        else:
            if leg is not None:
                leg.cancel()
            self._conclude()
        self._client.finished(self._keep)

    async def _await_prefill(self, leg: PrefillLeg, over: asyncio.Event) -> None:
        """The client has its answer; the record waits a moment for what the prefill pod has to say."""
        try:
            async with asyncio.timeout(LINGER_S):
                await over.wait()
        except TimeoutError:
            pass
        finally:
            leg.cancel()
            self._conclude()

    def _conclude(self) -> None:
        """Usage is the decode pod's, the prefix hit the prefill pod's: what a decode pod calls cached came from there."""
        gateway, leg = self._gateway, self.leg
        try:
            if self.notes is not None and self.outcome != "ok":
                self.usage = self.notes.usage()
            told = self.usage.counted() if self.usage is not None else Counted()
            first = leg.usage if leg is not None else Counted()
            prompt = told.prompt if told.prompt is not None else first.prompt
            self.tokens = msgspec.structs.replace(told, prompt=prompt, cached=first.cached)
            if leg is not None and first.cached != self.predicted:
                self.counts_after = gateway.prefix.counters(leg.pod.name)
            gateway.note_finished(self)
        except Exception:
            log.exception("request %s: its record is lost", self.id.decode())
            gateway.count_lost_records(1)
