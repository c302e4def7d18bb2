"""One request's life: read, decided, forwarded, answered, recorded. Exactly one ending, whatever happens first.

Choosing and counting are one synchronous step, so requests that arrive together see each other. Until the first byte has gone to the
client a failed pod is replaced by another; after it the connection is closed, since nothing else would be true.
"""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from backend.api.decisions import Outcome
from backend.gateway import answers, body, local, policies, report, tokens, upstream_errors
from backend.gateway.answers import Problem
from backend.gateway.classify import Evidence
from backend.gateway.framing import CHUNKED, UNTIL_CLOSE, ResponseHead, dechunked
from backend.gateway.model import Decision, FleetView, NoCandidate, RequestView, Usage
from backend.gateway.request import Request
from backend.gateway.stream import StreamNotes, read_answer
from backend.gateway.targets import Candidates, PodTarget
from backend.gateway.upstream import FailureKind, UpstreamConnection
from backend.kvindex.tokens import parse_token_array

if TYPE_CHECKING:
    from backend.gateway.service import Gateway

log = logging.getLogger(__name__)

HELD_BYTES = 262_144
"""A plain answer up to this size is sent on once it is whole, so that a pod that dies or drains in the middle can be replaced."""
HELD_ERROR_BYTES = 65_536
HELD_HTTP10_BYTES = 16 * 2**20
TRIES = 3
AVOID_S = 1.0


class Client(Protocol):
    """The connection that the request came by."""

    def write(self, data: bytes) -> None: ...

    def finished(self, keep_alive: bool) -> None: ...

    @property
    def write_paused(self) -> bool: ...


class Exchange:
    """Made for one request by its client's connection; the sink of its pod's answer."""

    __slots__ = (
        "_client", "_connection", "_done", "_fresh_tried", "_gateway", "_held", "_held_limit", "_keep", "_policy", "_response", "_task",
        "_token_ids", "asked", "attempts", "candidates", "chosen", "connected_at", "decided_at", "decision", "error", "evidence",
        "first_at", "id", "in_flight", "index_state", "notes", "predicted", "quiet_since", "request", "response_bytes", "sent_at",
        "status", "trace_id", "usage",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, client: Client, request: Request) -> None:
        self._gateway = gateway
        self._client = client
        self.request = request
        self.trace_id = request.head.trace_id
        self.id = gateway.new_request_id()
        self.asked: body.Asked | None = None
        self.candidates: Candidates | None = None
        self.chosen: PodTarget | None = None
        self.decision: Decision | None = None
        self.evidence: Evidence | None = None
        self.notes: StreamNotes | None = None
        self.usage: Usage | None = None
        self.attempts: list[str] = []
        self.predicted: int | None = None
        self.index_state = "absent"
        self.in_flight = 0
        self.status = 0
        self.error = ""
        self.response_bytes = 0
        self.decided_at = self.sent_at = self.connected_at = self.first_at = self.quiet_since = 0.0
        self._policy = gateway.default_policy
        self._token_ids: tokens.TokenIds | None = None
        self._connection: UpstreamConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._response: ResponseHead | None = None
        self._held: list[bytes] | None = None
        self._held_limit = 0
        self._keep = True
        self._fresh_tried = False
        self._done = False

    # --- the request ---

    def start(self) -> None:
        """Never raises: this is the request handler's edge."""
        self._guarded(self._begin)

    def _guarded(self, step: object, *arguments: object) -> None:
        try:
            step(*arguments)  # type: ignore[operator]
        except Problem as problem:
            self._refuse(problem)
        except Exception:
            log.exception("request %s failed inside the gateway", self.id)
            self._refuse(answers.internal(self.id))

    def _begin(self) -> None:
        head, gateway = self.request.head, self._gateway
        api = body.PATHS.get(head.path)
        if api is None:
            raise answers.unknown_path()
        if api in ("models", "metrics", "healthz"):
            return self._answer_locally(api)
        if head.method != b"POST":
            raise answers.wrong_method(head.method.decode("latin-1"), "POST")
        gateway.check_key(head.authorization)
        asked = self.asked = body.read(api, self.request.body)
        candidates = gateway.targets.models.get(asked.model)
        if candidates is None:
            raise answers.unknown_model(asked.model)
        if head.strategy:
            policy = policies.POLICIES.get(head.strategy)
            if policy is None:
                raise answers.bad_strategy(head.strategy)
            self._policy = policy
        if not candidates.pods:
            raise answers.no_ready_pod(asked.model)
        self.candidates = candidates
        gateway.exchanges.add(self)
        if asked.token_json is not None:
            try:
                self._token_ids = parse_token_array(memoryview(asked.token_json))
            except ValueError:
                raise answers.invalid_body("error processing request body: token ids must be whole numbers", "prompt") from None
            return self._decide("")
        return self._find_tokens()

    def _answer_locally(self, api: body.Api) -> None:
        head = self.request.head
        if head.method not in (b"GET", b"HEAD"):
            raise answers.wrong_method(head.method.decode("latin-1"), "GET")
        if api == "models":
            self._gateway.check_key(head.authorization)
        self._keep = head.keep_alive and not self._gateway.draining
        whole = local.answer(api, self._gateway, close=not self._keep)
        self._client.write(whole[: whole.index(b"\r\n\r\n") + 4] if head.method == b"HEAD" else whole)
        self._done = True
        self._client.finished(self._keep)

    def _find_tokens(self) -> None:
        """Text and chats: ask an engine's tokenizer, but only where the answer changes the decision."""
        asked, gateway, candidates = self.asked, self._gateway, self.candidates
        assert asked is not None
        assert candidates is not None
        if not self._policy.needs_tokens:
            return self._decide("")
        if asked.text_json is None and not asked.chat:
            return self._decide("no_prompt")
        if gateway.prefix.refresh() != "live":
            return self._decide("")
        key = tokens.cache_key(asked.model, self.request.body if asked.chat else asked.text_json)
        remembered = gateway.tokenizer.remembered(key)
        if remembered is not None:
            self._token_ids = remembered
            return self._decide("")
        pod = candidates.pods[int(gateway.random() * len(candidates.pods))]
        self._task = gateway.spawn(self._tokenize(pod, key))
        return None

    async def _tokenize(self, pod: PodTarget, key: bytes) -> None:
        problem = ""
        try:
            self._token_ids = await self._gateway.tokenizer.ask(pod.pool, pod.engine, self.request.body, key)
        except tokens.TokenizeFailed as failure:
            problem = failure.reason
            self._gateway.count_routing_error(failure.reason)
            log.warning("request %s: its prompt was not tokenized by %s: %s", self.id, pod.name, failure)
        self._task = None
        if not self._done:
            self._guarded(self._decide, problem)

    # --- the decision ---

    def _decide(self, problem: str) -> None:
        """Choose and count in one step; the prediction is fixed before anything is sent."""
        gateway, asked, candidates = self._gateway, self.asked, self.candidates
        assert asked is not None
        assert candidates is not None
        candidates = gateway.preferred(candidates)
        in_flight = gateway.counts.in_flight(candidates.slots, gateway.rows)
        ids, matched = self._token_ids, None
        if ids is not None:
            matched = gateway.prefix.match(ids, asked.model, candidates.names)
        elif not problem and self._policy.needs_tokens:
            gateway.prefix.refresh()
        self.index_state = gateway.prefix.state
        if matched is None and not problem:
            problem = "index_stale" if self.index_state == "stale" else "index_absent"
        view = RequestView(
            random=gateway.random(), prompt_tokens=0 if ids is None else len(ids), matched_tokens=matched, index_problem=problem
        )
        fleet = FleetView(candidates=candidates.names, in_flight=in_flight)
        try:
            decision = self._policy.choose(view, fleet, gateway.policy_settings(self._policy))
        except NoCandidate:
            raise answers.no_ready_pod(asked.model) from None
        pod = candidates.pods[decision.pod]
        gateway.counts.plus(pod.slot)
        self.decision, self.chosen = decision, pod
        self.in_flight = in_flight[decision.pod]
        if matched is not None:
            self.predicted = matched[decision.pod]
            stored, removed = gateway.prefix.counters(pod.name)
            self.evidence = Evidence(stored, removed, stored, removed, self.in_flight)
        else:
            self.predicted = self.evidence = None
        if not self.decided_at:
            self.decided_at = perf_counter()
        self._forward(pod)

    def _forward(self, pod: PodTarget) -> None:
        connection = pod.pool.take()
        if connection is not None:
            self._send(pod, connection)
        else:
            self._task = self._gateway.spawn(self._connect(pod))

    async def _connect(self, pod: PodTarget) -> None:
        try:
            connection = await pod.pool.connect(self._gateway.settings.limits.connect_timeout_s)
        except (OSError, TimeoutError) as error:
            self._task = None
            pod.pool.avoid_until = asyncio.get_running_loop().time() + AVOID_S
            detail = "connecting took too long" if isinstance(error, TimeoutError) else "the pod refused the connection"
            self._guarded(self._try_another, "connect", detail)
            return
        self._task = None
        if self._done:
            connection.cancel()
        else:
            self._guarded(self._send, pod, connection)

    def _send(self, pod: PodTarget, connection: UpstreamConnection) -> None:
        head = self.request.head
        self._connection = connection
        self.connected_at = perf_counter()
        self.sent_at = self.sent_at or self.connected_at
        self.quiet_since = self.connected_at
        lines = b"POST %b HTTP/1.1\r\n%b%bcontent-length: %d\r\nx-request-id: %b\r\nrouting-strategy: %b\r\ntarget-pod: %b\r\n\r\n" % (
            head.target,
            pod.host_line,
            head.forward,
            len(self.request.body),
            (self.trace_id or self.id).encode(),
            self._policy.name.encode(),
            pod.address.encode(),
        )
        connection.send(lines, self.request.body, self)

    # --- the answer ---

    def on_head(self, head: ResponseHead, data: bytes, ended: bool) -> None:
        self.first_at = self.quiet_since = perf_counter()
        self._response = head
        if ended:
            self._connection = None
        hold = self._hold_limit(head)
        if hold:
            self._held, self._held_limit = [data], hold
            if ended:
                self._guarded(self._answer_whole)
            elif len(data) > hold:
                self.on_data(b"", False)
            return
        self.notes = StreamNotes()
        self._start_passing(head, data)
        if ended:
            self._passed()

    def _hold_limit(self, head: ResponseHead) -> int:
        """Bytes that this answer may have to be kept until it is whole; 0: it is passed on as it comes."""
        if head.status >= 400:
            return HELD_ERROR_BYTES
        if head.length == CHUNKED and self.request.head.http10:
            return HELD_HTTP10_BYTES
        if head.status == 200 and not head.event_stream and 0 < head.length <= HELD_BYTES:
            return HELD_BYTES
        return 0

    def on_data(self, data: bytes, ended: bool) -> None:
        if ended:
            self._connection = None
        held = self._held
        if held is None:
            if data:
                self._pass(data)
            if ended:
                self._passed()
            return
        held.append(data)
        if ended:
            self._guarded(self._answer_whole)
        elif sum(map(len, held)) > self._held_limit:
            if self._connection is not None:
                self._connection.cancel()
                self._connection = None
            self._guarded(self._answer_whole)

    def _start_passing(self, head: ResponseHead, data: bytes) -> None:
        self.status = head.status
        request = self.request.head
        self._keep = request.keep_alive and not self._gateway.draining and head.length != UNTIL_CLOSE
        self._client.write(b"%b%b\r\n%b" % (head.forward, self._response_lines(), data))
        self._note(data)
        if self._client.write_paused:
            self.pause()

    def _pass(self, data: bytes) -> None:
        self._client.write(data)
        self._note(data)

    def _note(self, data: bytes) -> None:
        if data and self.notes is not None:
            self.response_bytes += len(data)
            self.notes.packet(data, perf_counter())

    def _passed(self) -> None:
        notes = self.notes
        if notes is not None:
            self.usage = notes.usage()
        self._finish("ok")

    def _answer_whole(self) -> None:
        """An answer that was held: normalise an error, replace a draining pod, or send it on unchanged."""
        head = self._response
        assert head is not None
        whole = b"".join(self._held or ())
        self._held = None
        if head.status >= 400:
            payload = dechunked(whole) if head.length == CHUNKED else whole
            return self._send_error(head.status, payload, head.retry_after)
        if head.length == CHUNKED:
            return self._send_http10(head, dechunked(whole))
        answer = read_answer(whole)
        if answer is None:
            raise answers.unreadable_answer()
        if answer.error is not None and bytes(answer.error) != b"null":
            return self._send_error(head.status, whole, b"")
        self.usage = answer.usage
        drained = self._is_draining(answer.choices[0].finish_reason if answer.choices else None)
        if drained and self._has_another():
            return self._try_another("draining", "the pod is draining")
        self._start_passing(head, whole)
        self._finish("aborted" if drained else "ok")
        return None

    def _is_draining(self, finish_reason: str | None) -> bool:
        if finish_reason != "abort" or self.chosen is None:
            return False
        completion = self.usage.completion if self.usage is not None else 0
        return self._gateway.adapter(self.chosen.engine).is_draining(finish_reason, completion or 0)

    def _send_http10(self, head: ResponseHead, payload: bytes) -> None:
        self._start_passing(head.without_framing(), payload)
        self._keep = False
        self._passed()

    def _send_error(self, status: int, payload: bytes, retry_after: bytes) -> None:
        status, rendered, lines = upstream_errors.normalise(status, payload, retry_after)
        self._own_answer(status, rendered, lines)
        self.error = self.error or f"the pod answered {status}"
        self._finish("upstream_error")

    def _own_answer(self, status: int, payload: bytes, lines: bytes) -> None:
        self.status = status
        self._keep = self._keep and self.request.head.keep_alive and not self._gateway.draining
        self.response_bytes += len(payload)
        whole = answers.response(status, payload, extra=lines + self._response_lines())
        self._client.write(whole[: -len(payload)] if self.request.head.method == b"HEAD" and payload else whole)

    def _response_lines(self) -> bytes:
        lines = b"request-id: %b\r\n" % (self.trace_id or self.id).encode()
        if self.chosen is not None:
            lines += b"routing-strategy: %b\r\n%b" % (self._policy.name.encode(), self.chosen.response_lines)
        if not self._keep:
            return lines + b"connection: close\r\n"
        return lines + b"connection: keep-alive\r\n" if self.request.head.http10 else lines

    # --- what goes wrong ---

    def on_failure(self, kind: FailureKind, detail: str) -> None:
        connection, self._connection = self._connection, None
        if self.status:
            # Part of the answer has gone out: the missing end is all that can still be said.
            self.error = detail
            self._keep = False
            self._passed_partly("timeout" if kind == "timeout" else "truncated")
            return
        if kind == "reset" and connection is not None and connection.reused and self._response is None and not self._fresh_tried:
            # The engine closed an idle connection just as it was used: that says nothing about the pod.
            self._fresh_tried = True
            pod = self.chosen
            assert pod is not None
            self._task = self._gateway.spawn(self._connect(pod))
            return
        self._guarded(self._try_another, kind, detail)

    def _passed_partly(self, outcome: Outcome) -> None:
        if self.notes is not None:
            self.usage = self.notes.usage()
        self._finish(outcome)

    def _has_another(self) -> bool:
        candidates = self.candidates
        return candidates is not None and len(candidates.pods) > 1 and len(self.attempts) + 1 < TRIES

    def _try_another(self, kind: str, detail: str) -> None:
        """Nothing has reached the client yet: another pod, or an error that names the last failure."""
        pod = self.chosen
        assert pod is not None
        self._held = self._response = self.usage = None
        self.error = f"{pod.name}: {detail}"
        if kind in ("connect", "reset", "draining") and self._has_another():
            assert self.candidates is not None
            self._gateway.counts.minus(pod.slot)
            self._gateway.count_retry(kind)
            self.attempts.append(pod.name)
            self.chosen = None
            self.candidates = self.candidates.without((pod.name,))
            self._fresh_tried = False
            self._decide("")
            return
        if kind == "timeout":
            self._refuse(answers.gateway_timeout(detail), "timeout")
        elif kind == "connect":
            self._refuse(answers.no_pod_answers(detail), "upstream_error")
        else:
            self._refuse(answers.bad_gateway(detail), "upstream_reset" if kind == "reset" else "upstream_error")

    def _refuse(self, problem: Problem, outcome: Outcome = "refused") -> None:
        if self._done:
            return
        if self._connection is not None:
            self._connection.cancel()
            self._connection = None
        self.error = self.error or problem.message
        if self.status:
            self._keep = False
        else:
            self._keep = not problem.close
            self._own_answer(problem.status, problem.body(), problem.header_lines)
        self._finish(outcome)

    def client_gone(self) -> None:
        """The client left: the engine must not go on generating for nobody."""
        if self._connection is not None:
            self._connection.cancel()
            self._connection = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._passed_partly("client_gone")

    def pause(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    def check_time(self, now: float) -> None:
        """Called a few times a second; `now` is perf_counter."""
        connection = self._connection
        if connection is None:
            return
        if connection.active or self._client.write_paused:
            connection.active = False
            self.quiet_since = now
            return
        limits = self._gateway.settings.limits
        quiet = now - self.quiet_since
        limit = limits.idle_timeout_s if self._response is not None else limits.first_byte_timeout_s
        if quiet > limit:
            connection.cancel()
            what = "the pod stopped in the middle of its answer" if self._response is not None else "no answer from the pod"
            self.on_failure("timeout", f"{what} for {limit:g} s")

    def _finish(self, outcome: Outcome) -> None:
        if self._done:
            return
        self._done = True
        gateway = self._gateway
        gateway.exchanges.discard(self)
        if self.chosen is not None:
            gateway.counts.minus(self.chosen.slot)
        report.finished(gateway, self, outcome, self._policy.name)
        self._client.finished(self._keep)
