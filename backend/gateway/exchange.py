"""One request's life: read, decided, forwarded, answered, recorded. Exactly one ending, whatever happens first.

Choosing and counting are one synchronous step, so requests that arrive together see each other. Until the first byte has gone to the
client a failed pod is replaced by another; after it the connection is closed, since nothing else would be true. The answer's way back
is in `relay`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING

from backend.api.decisions import Outcome
from backend.gateway import answers, body, local, policies, tokens
from backend.gateway.answers import Problem
from backend.gateway.labels import SelectorError
from backend.gateway.model import Counted, Decision, FleetView, IndexState, NoCandidate, RequestView
from backend.gateway.relay import Client, Relay
from backend.gateway.request import RequestHead
from backend.gateway.targets import Candidates, PodTarget
from backend.gateway.upstream import UpstreamConnection

if TYPE_CHECKING:
    from backend.gateway.service import Gateway

log = logging.getLogger(__name__)

TRIES = 3
AVOID_S = 1.0
_NO_SOURCE, _NOT_TOLD = (0, 0, 0), Counted()
_CUT_SHORT = ("client_gone", "truncated", "timeout")


class Exchange(Relay):
    """Made for one request by its client's connection. Once finished it is what the request's record is made of (see `report`)."""

    __slots__ = (
        "_body", "_candidates", "_fresh_tried", "_index_problem", "_token_ids", "asked", "attempts", "began", "connected_at",
        "counts_after", "decided_at", "decision", "index_state", "outcome", "own_id", "predicted", "request_bytes", "sent_at",
        "source", "tokens",
    )  # fmt: skip

    _token_ids: tokens.TokenIds | None
    counts_after: tuple[int, int]
    """The last two of `source` when the answer was there; set when the prediction did not hold."""
    decision: Decision | None
    index_state: IndexState
    outcome: Outcome
    predicted: int | None
    source: tuple[int, int, int]
    """Block size of the chosen pod, and the blocks that it had stored and lost when it was chosen."""
    tokens: Counted
    """As the engine told them."""

    def __init__(self, gateway: Gateway, client: Client, head: RequestHead, request_body: bytes, began: float) -> None:
        self._gateway = gateway
        self._client = client
        self.head = head
        self._body = request_body
        self.began = began
        self.own_id = own_id = gateway.new_request_id()
        self.id = head.trace_id or own_id
        self.request_bytes = len(request_body)
        self._policy = gateway.default_policy
        self.asked: body.Asked | None = None
        self._candidates: Candidates | None = None
        self.attempts: tuple[str, ...] = ()
        self.chosen = self.decision = self.predicted = self._token_ids = self._connection = self._task = None
        self._response = self._held = self.notes = self.usage = None
        self.index_state = "absent"
        self.error = self._index_problem = ""
        self.status = self.response_bytes = 0
        self.decided_at = self.sent_at = self.connected_at = self.first_at = self.ended_at = 0.0
        self._keep = True
        self._fresh_tried = self._body_began = False
        self.source = _NO_SOURCE

    # --- the request ---

    def start(self) -> None:
        """Never raises."""
        try:
            self._begin()
        except Exception as error:  # noqa: BLE001  the request handler's edge
            self._caught(error)

    def _guarded(self, step: Callable[..., None], *arguments: object) -> None:
        try:
            step(*arguments)
        except Exception as error:  # noqa: BLE001  the same edge
            self._caught(error)

    def _caught(self, error: Exception) -> None:
        """What a step of this request raised: an answer of the gateway's own, or something that nobody foresaw."""
        if isinstance(error, Problem):
            return self._refuse(error)
        name = self.id.decode()
        log.error("request %s failed inside the gateway", name, exc_info=error)
        return self._refuse(answers.internal(name))

    async def _guarded_task(self, step: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """The same edge for what a request waits for."""
        try:
            await step(*arguments)
        except Exception as error:  # noqa: BLE001  the same edge
            self._task = None
            self._caught(error)

    def _begin(self) -> None:
        head, gateway = self.head, self._gateway
        api = head.api
        if api != "completions" and api != "chat":
            return self._answer_locally(api)
        if head.method != b"POST":
            raise answers.wrong_method(head.method.decode("latin-1"), "POST")
        if gateway.needs_key:
            gateway.check_key(head.authorization)
        asked = self.asked = body.read(api, self._body)
        candidates = gateway.targets.models.get(asked.model)
        if candidates is None:
            raise answers.unknown_model(asked.model)
        if candidates.pairing is not None and head.strategy in ("", policies.PAIR.name):
            return self._client.hand_over(self, candidates.pairing)
        if head.strategy:
            policy = policies.POLICIES.get(head.strategy)
            if policy is None:
                raise answers.bad_strategy(head.strategy)
            self._policy = policy
        if not candidates.pods:
            raise answers.no_ready_pod(asked.model)
        if head.ignored:
            gateway.count_ignored_headers(head.ignored)
        self._candidates = candidates = _selected(candidates, head.selector) if head.selector else candidates
        if asked.ids is not None:
            return self._decide("")
        return self._find_tokens(asked, candidates)

    def _answer_locally(self, api: body.Api | None) -> None:
        head = self.head
        if api is None:
            raise answers.unknown_path()
        if head.method not in (b"GET", b"HEAD"):
            raise answers.wrong_method(head.method.decode("latin-1"), "GET")
        if api == "models":
            self._gateway.check_key(head.authorization)
        self._keep = head.keep_alive and not self._gateway.draining
        whole = local.answer(api, self._gateway, close=not self._keep)
        self._client.write(whole[: whole.index(b"\r\n\r\n") + 4] if head.method == b"HEAD" else whole)
        self.ended_at = perf_counter()
        self._client.finished(self._keep)

    def _find_tokens(self, asked: body.Asked, candidates: Candidates) -> None:
        """Text and chats: ask an engine's tokenizer, but only where the answer changes the decision."""
        gateway = self._gateway
        if not self._policy.needs_tokens:
            return self._decide("")
        state = gateway.prefix.refresh()
        if asked.batch:
            return self._decide("batch")
        if asked.text_json is None and not asked.chat:
            return self._decide("no_prompt")
        if state != "live":
            return self._decide("index_stale" if state == "stale" else "index_absent")
        key = tokens.cache_key(asked.model, self._body if asked.chat else asked.text_json)
        remembered = gateway.tokenizer.remembered(key)
        if remembered is not None:
            self._token_ids = remembered
            return self._decide("")
        pod = candidates.pods[int(gateway.random() * len(candidates.pods))]
        self._task = gateway.spawn(self._guarded_task(self._tokenize, pod, key))
        return None

    async def _tokenize(self, pod: PodTarget, key: bytes) -> None:
        problem = ""
        try:
            self._token_ids = await self._gateway.tokenizer.ask(pod.pool, pod.engine, self._body, key)
        except tokens.TokenizeFailed as failure:
            problem = failure.reason
            self._gateway.count_routing_error(failure.reason)
            log.warning("request %s: its prompt was not tokenized by %s: %s", self.id.decode(), pod.name, failure)
        self._task = None
        if not self.ended_at:
            self._guarded(self._decide, problem)

    # --- the decision ---

    def _decide(self, problem: str) -> None:
        """Choose and count in one step; the prediction is fixed before anything is sent. `problem`: why no index is asked."""
        self._index_problem = problem
        gateway, asked, candidates = self._gateway, self.asked, self._candidates
        assert asked is not None
        assert candidates is not None
        if gateway.avoiding:
            candidates = gateway.preferred(candidates)
        policy, prefix = self._policy, gateway.prefix
        in_flight = gateway.counts.picked(candidates.pick, gateway.rows)
        if asked.ids is not None:
            start, end = asked.ids
            try:
                matched, prompt_tokens = prefix.match_text(self._body, start, end, asked.model, candidates.names)
            except ValueError:
                raise answers.invalid_body("error processing request body: token ids must be whole numbers", "prompt") from None
        else:
            matched, prompt_tokens = self._match_ids(asked.model, candidates, problem)
        self.index_state = state = prefix.state
        if matched is None and not problem:
            problem = "index_stale" if state == "stale" else "index_absent"
        view = RequestView(gateway.random(), prompt_tokens, matched, problem)
        try:
            decision = policy.choose(view, FleetView(candidates.names, in_flight), gateway.policy_settings[policy.name])
        except NoCandidate:
            raise answers.no_ready_pod(asked.model) from None
        pod = candidates.pods[decision.pod]
        gateway.counts.plus(pod.slot)
        self.decision, self.chosen = decision, pod
        if matched is not None:
            self.predicted = matched[decision.pod]
            self.source = prefix.source(candidates.names, decision.pod)
        else:
            self.predicted = None
        now = perf_counter()
        if not self.attempts:
            self.decided_at = now
        connection = pod.pool.take()
        if connection is not None:
            self._send(pod, connection, now)
        else:
            self._task = gateway.spawn(self._guarded_task(self._connect, pod))

    def _match_ids(self, model: str, candidates: Candidates, problem: str) -> tuple[list[int] | None, int]:
        """For a prompt that an engine has tokenized, if one has."""
        prefix, ids = self._gateway.prefix, self._token_ids
        if ids is not None:
            return prefix.match(ids, model, candidates.names), len(ids)
        if not problem and self._policy.needs_tokens:
            prefix.refresh()
        return None, 0

    async def _connect(self, pod: PodTarget) -> None:
        failed, connection = "", None
        try:
            connection = await pod.pool.connect(self._gateway.settings.limits.connect_timeout_s)
        except TimeoutError:
            failed = "connecting took too long"
        except OSError:
            failed = "the pod refused the connection"
        self._task = None
        if connection is None:
            pod.pool.avoid_until = asyncio.get_running_loop().time() + AVOID_S
            self._try_another("connect", failed)
        elif self.ended_at:
            connection.cancel()
        else:
            self._send(pod, connection, perf_counter())

    def _send(self, pod: PodTarget, connection: UpstreamConnection, now: float) -> None:
        head = self.head
        self._connection = connection
        self.connected_at = self.quiet_since = now
        self.sent_at = self.sent_at or now
        length = b"" if head.has_length else b"content-length: %d\r\n" % self.request_bytes
        connection.send((head.upstream, length, b"x-request-id: ", self.id, self._policy.after_id, pod.request_lines), self._body, self)

    # --- what goes wrong ---

    def on_failure(self, kind: str, detail: str) -> None:
        connection, self._connection = self._connection, None
        if self.ended_at:
            return
        if self.status:
            # Part of the answer has gone out: the missing end is all that can still be said.
            self.error = detail
            self._keep = False
            self._finish("timeout" if kind == "timeout" else "truncated")
            return
        pod = self.chosen
        untouched = kind == "reset" and self._response is None and not self._fresh_tried
        if untouched and pod is not None and connection is not None and connection.reused:
            # The engine closed an idle connection just as it was used: that says nothing about the pod.
            self._fresh_tried = True
            self._task = self._gateway.spawn(self._guarded_task(self._connect, pod))
            return
        self._try_another(kind, detail)

    def _has_another(self) -> bool:
        candidates = self._candidates
        return candidates is not None and len(candidates.pods) > 1 and len(self.attempts) + 1 < TRIES

    def _try_another(self, kind: str, detail: str) -> None:
        """Nothing has reached the client yet: another pod, or an error that names the last failure. Never raises."""
        pod, candidates, gateway = self.chosen, self._candidates, self._gateway
        assert pod is not None
        assert candidates is not None
        self._held = self._response = self.usage = self.notes = None
        self._body_began = False
        self.response_bytes = 0
        self.error = f"{pod.name}: {detail}"
        if kind in ("connect", "reset", "draining") and self._has_another():
            gateway.counts.minus(pod.slot)
            gateway.count_retry(kind)
            self.attempts = (*self.attempts, pod.name)
            self.chosen = None
            self._candidates = candidates.without((pod.name,))
            self._fresh_tried = False
            self._guarded(self._decide, self._index_problem)
        elif kind == "timeout":
            self._refuse(answers.gateway_timeout(detail), "timeout")
        elif kind == "connect":
            self._refuse(answers.no_pod_answers(detail), "upstream_error")
        else:
            self._refuse(answers.bad_gateway(detail), "upstream_reset" if kind == "reset" else "upstream_error")

    def _refuse(self, problem: Problem, outcome: Outcome = "refused") -> None:
        if self.ended_at:
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
        self._finish("client_gone")

    # --- the end ---

    def _finish(self, outcome: Outcome) -> None:
        if self.ended_at:
            return
        self.ended_at = perf_counter()
        self.outcome = outcome
        self._body = b""
        gateway, pod = self._gateway, self.chosen
        try:
            if self.notes is not None and outcome in _CUT_SHORT:
                self.usage = self.notes.usage()
            self.tokens = told = self.usage.counted() if self.usage is not None else _NOT_TOLD
            if pod is not None:
                gateway.counts.minus(pod.slot)
                if told.cached != self.predicted:
                    self.counts_after = gateway.prefix.counters(pod.name)
            gateway.note_finished(self)
        except Exception:
            log.exception("request %s: its record is lost", self.id.decode())
            gateway.count_lost_records(1)
        self._client.finished(self._keep)


def _selected(candidates: Candidates, selector: str) -> Candidates:
    try:
        selected = candidates.selected(selector)
    except SelectorError as error:
        raise answers.bad_filter(str(error)) from None
    if not selected.pods:
        raise answers.nothing_passes(selector)
    return selected
