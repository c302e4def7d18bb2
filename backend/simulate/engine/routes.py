"""The engine's HTTP interface: which path answers what. Bodies are vLLM's; completion answers are in `answers`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from backend.simulate.engine import bodies, requests
from backend.simulate.engine.answers import Answer
from backend.simulate.engine.driver import Driver
from backend.simulate.engine.http import Exchange
from backend.simulate.engine.metrics import CONTENT_TYPE
from backend.simulate.engine.model import Sequence
from backend.simulate.engine.publisher import Publisher
from backend.simulate.engine.requests import Asked, RequestRefused
from backend.simulate.engine.settings import EngineSettings, now_seconds
from backend.simulate.engine.tokenizer import Tokenizer, natural_length

log = logging.getLogger(__name__)

Route = Callable[[Exchange], None]


class Routes:
    """Answers every request. Never waits: what takes time is given to the driver."""

    def __init__(self, settings: EngineSettings, driver: Driver, tokenizer: Tokenizer, publisher: Publisher | None) -> None:
        self.settings = settings
        self.draining = False
        self._driver = driver
        self._tokenizer = tokenizer
        self._publisher = publisher
        self._fingerprint = settings.fingerprint
        get, post = ("GET",), ("POST",)
        self._routes: dict[str, tuple[tuple[str, ...], Route]] = {
            "/health": (get, lambda exchange: exchange.reply(200)),
            "/ping": (("GET", "POST"), lambda exchange: exchange.reply(200)),
            "/version": (get, lambda exchange: _reply(exchange, {"version": settings.version})),
            "/load": (get, self._load),
            "/metrics": (get, self._metrics),
            "/v1/models": (get, self._models),
            "/kv_event_sources": (get, self._event_sources),
            "/server_info": (get, self._server_info),
            "/v1/completions": (post, lambda exchange: self._complete(exchange, chat=False)),
            "/v1/chat/completions": (post, lambda exchange: self._complete(exchange, chat=True)),
            "/tokenize": (post, self._tokenize),
            "/detokenize": (post, self._detokenize),
            "/reset_prefix_cache": (post, lambda exchange: _reply(exchange, {"success": driver.core.clear_cache()})),
            "/debug/blocks": (get, self._blocks),
            "/is_paused": (get, lambda exchange: _reply(exchange, {"is_paused": driver.paused})),
            "/pause": (post, self._pause),
            "/resume": (post, self._resume),
        }

    def handle(self, exchange: Exchange) -> None:
        """The request handler's edge: whatever goes wrong becomes an answer."""
        known = self._routes.get(exchange.path)
        if known is None:
            return _reply(exchange, {"detail": "Not Found"}, status=404)
        methods, route = known
        exchange.handler = exchange.path
        if exchange.method not in methods:
            return _reply(exchange, {"detail": "Method Not Allowed"}, status=405)
        try:
            route(exchange)
        except RequestRefused as refused:
            exchange.reply(refused.status, refused.body)
        except Exception:
            log.exception("%s %s failed", exchange.method, exchange.path)
            exchange.reply(500, RequestRefused(500, "InternalServerError", "Internal server error").body)
        return None

    def observe(self, exchange: Exchange) -> None:
        """Count an answered request."""
        seconds = time.monotonic() - exchange.started
        received = len(exchange.body)
        self._driver.metrics.http(exchange.handler, exchange.method, exchange.status, seconds, received, exchange.sent_bytes)

    def _complete(self, exchange: Exchange, *, chat: bool) -> None:
        asked = requests.read_completion(
            self._body(exchange),
            chat=chat,
            tokenizer=self._tokenizer,
            served=self.settings.model,
            max_model_len=self.settings.core.max_model_len,
            session=exchange.header(b"x-session-id"),
        )
        name = exchange.header(b"x-request-id") or os.urandom(8).hex()
        head = bodies.AnswerHead(f"{'chatcmpl' if chat else 'cmpl'}-{name}", now_seconds(), self.settings.model, self._fingerprint)
        sequence = self._sequence(head.id, asked)
        size, details = self.settings.core.block_size, self.settings.prompt_tokens_details
        answer = Answer(exchange, asked, sequence, head, self._tokenizer, block_size=size, details=details)
        answer.open()
        if self.draining:
            sequence.finish_reason = "abort"
            answer.end(aborted=True)
        else:
            self._driver.submit(answer)

    def _sequence(self, request_id: str, asked: Asked) -> Sequence:
        room = self.settings.core.max_model_len - len(asked.prompt)
        limit = asked.max_tokens if asked.max_tokens is not None else min(room, natural_length(asked.prompt))
        return Sequence(
            request_id=request_id,
            tokens=asked.prompt,
            max_tokens=limit,
            arrived_at=time.monotonic(),
            limit_reason="stop" if asked.max_tokens is None and limit < room else "length",
            cache_salt=asked.cache_salt,
            session_id=asked.session_id,
            report_hits=asked.report_hits,
        )

    def _body(self, exchange: Exchange) -> dict[str, Any]:
        return requests.read_json(exchange.body, exchange.header(b"content-type"))

    def _tokenize(self, exchange: Exchange) -> None:
        body = self._body(exchange)
        requests.check_model(body, self.settings.model)
        prompt = body.get("prompt")
        tokens = requests.chat_prompt(body, self._tokenizer) if "messages" in body else self._tokenizer.encode(str(prompt or ""))
        shown = [self._tokenizer.piece(token) for token in tokens] if body.get("return_token_strs") else None
        _reply(exchange, {"count": len(tokens), "max_model_len": self.settings.core.max_model_len, "tokens": tokens, "token_strs": shown})

    def _detokenize(self, exchange: Exchange) -> None:
        body = self._body(exchange)
        requests.check_model(body, self.settings.model)
        _reply(exchange, {"prompt": self._tokenizer.decode(requests.token_list(body))})

    def _load(self, exchange: Exchange) -> None:
        _reply(exchange, {"server_load": self._driver.answering if self.settings.server_load_tracking else 0})

    def _blocks(self, exchange: Exchange) -> None:
        """What the prefix cache really holds: no engine has this, tests compare the index with it."""
        held = [digest.hex() for digest in self._driver.core.blocks.cached_hashes]
        _reply(exchange, {"blocks": len(held), "block_hashes": held})

    def _metrics(self, exchange: Exchange) -> None:
        core, metrics = self._driver.core, self._driver.metrics
        metrics.set("num_requests_running", len(core.running))
        metrics.set("num_requests_waiting", len(core.waiting))
        metrics.set("num_requests_waiting_by_reason", len(core.waiting), "capacity")
        for name in ("kv_cache_usage_perc", "gpu_cache_usage_perc"):
            metrics.set(name, core.kv_usage)
        exchange.reply(200, metrics.render(), CONTENT_TYPE)

    def _models(self, exchange: Exchange) -> None:
        created = now_seconds()
        allowed = {"allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True, "allow_search_indices": False}
        allowed |= {"allow_view": True, "allow_fine_tuning": False}
        permission = {"id": f"modelperm-{os.urandom(8).hex()}", "object": "model_permission", "created": created, **allowed}
        permission |= {"organization": "*", "group": None, "is_blocking": False}
        card = {"id": self.settings.model, "object": "model", "created": created, "owned_by": "vllm"}
        card |= {"root": self.settings.model_root or self.settings.model, "parent": None}
        card |= {"max_model_len": self.settings.core.max_model_len, "permission": [permission]}
        _reply(exchange, {"object": "list", "data": [card]})

    def _event_sources(self, exchange: Exchange) -> None:
        events = self._events_config()
        _reply(exchange, {"0": events} if events else {})

    def _events_config(self) -> dict[str, object] | None:
        if self._publisher is None:
            return None
        events = self._publisher.settings
        shown: dict[str, object] = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": self._publisher.endpoint}
        shown |= {"replay_endpoint": self._publisher.replay_endpoint, "buffer_steps": events.buffer_steps, "hwm": events.hwm}
        return shown | {"max_queue_size": events.max_queue_size, "topic": events.topic}

    def _server_info(self, exchange: Exchange) -> None:
        core = self.settings.core
        config: dict[str, object] = {
            "model_config": {"model": self.settings.model_root or self.settings.model, "max_model_len": core.max_model_len},
            "cache_config": {
                "block_size": core.block_size,
                "num_gpu_blocks": core.num_blocks,
                "enable_prefix_caching": True,
                "prefix_caching_hash_algo": self.settings.hash_algorithm,
            },
            "parallel_config": {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 1},
            "scheduler_config": {"max_num_seqs": core.max_num_seqs, "max_num_batched_tokens": core.max_num_batched_tokens},
            "kv_transfer_config": None,
            "kv_events_config": self._events_config(),
        }
        if exchange.query.get("config_format") != "json":
            config = {name: str(value) for name, value in config.items()}
        _reply(exchange, {"vllm_config": config, "vllm_env": {}, "system_env": {}})

    def _pause(self, exchange: Exchange) -> None:
        """Running requests are aborted unless `mode=keep`; new ones wait for /resume."""
        if exchange.query.get("mode", "abort") == "abort":
            self._driver.abort_all()
        self._driver.pause()
        _reply(exchange, {"status": "paused"})

    def _resume(self, exchange: Exchange) -> None:
        self._driver.resume()
        _reply(exchange, {"status": "resumed"})


def _reply(exchange: Exchange, value: Mapping[str, object], *, status: int = 200) -> None:
    exchange.reply(status, msgspec.json.encode(value))
