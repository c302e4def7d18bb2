"""vLLM's HTTP interface: which path answers what. Bodies of completions are in `bodies`."""

from __future__ import annotations

import os
import time
from typing import Any

from backend.simulate.engine import bodies, requests
from backend.simulate.engine.answers import Answer
from backend.simulate.engine.driver import Driver
from backend.simulate.engine.http import Exchange
from backend.simulate.engine.nixl import NixlConnector
from backend.simulate.engine.publisher import Publisher
from backend.simulate.engine.requests import RequestRefused
from backend.simulate.engine.routing import ANY, GET, POST, Router, reply
from backend.simulate.engine.settings import EngineSettings, now_seconds
from backend.simulate.engine.tokenizer import Tokenizer

_KV_ROLES = {"both": "kv_both", "prefill": "kv_producer", "decode": "kv_consumer"}


class VllmRoutes(Router):
    """One vLLM's interface."""

    def __init__(
        self,
        settings: EngineSettings,
        driver: Driver,
        tokenizer: Tokenizer,
        publisher: Publisher | None,
        connector: NixlConnector | None = None,
    ) -> None:
        super().__init__(driver)
        self.settings = settings
        self._tokenizer = tokenizer
        self._publisher = publisher
        self._connector = connector
        self._fingerprint = settings.fingerprint
        self.table |= {
            "/health": (GET, lambda exchange: exchange.reply(200)),
            "/ping": (ANY, lambda exchange: exchange.reply(200)),
            "/version": (GET, lambda exchange: reply(exchange, {"version": settings.version})),
            "/load": (GET, self._load),
            "/v1/models": (GET, self._models),
            "/kv_event_sources": (GET, self._event_sources),
            "/server_info": (GET, self._server_info),
            "/v1/completions": (POST, lambda exchange: self._complete(exchange, chat=False)),
            "/v1/chat/completions": (POST, lambda exchange: self._complete(exchange, chat=True)),
            "/tokenize": (POST, self._tokenize),
            "/detokenize": (POST, self._detokenize),
            "/reset_prefix_cache": (POST, lambda exchange: reply(exchange, {"success": driver.core.clear_cache()})),
            "/is_paused": (GET, lambda exchange: reply(exchange, {"is_paused": driver.paused})),
            "/pause": (POST, self._pause),
            "/resume": (POST, self._resume),
        }

    def internal_error(self) -> bytes:
        return RequestRefused(500, "InternalServerError", "Internal server error").body

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
        internal = head.id if self._connector is None else self._connector.internal_id(head.id, chat=chat)
        sequence = requests.sequence_of(asked, internal, max_model_len=self.settings.core.max_model_len, now=time.monotonic())
        size, details = self.settings.core.block_size, self.settings.prompt_tokens_details
        writer = bodies.VllmWriter(head, asked, block_size=size, details=details)
        answer = Answer(exchange, sequence, writer, self._tokenizer)
        answer.open()
        if self.draining:
            sequence.finish_reason = "abort"
            answer.end(aborted=True)
            return
        if self._connector is not None and asked.transfer:
            self._connector.prepare(sequence, asked.transfer)
        self.driver.submit(answer)

    def _body(self, exchange: Exchange) -> dict[str, Any]:
        return requests.read_json(exchange.body, exchange.header(b"content-type"))

    def _tokenize(self, exchange: Exchange) -> None:
        body = self._body(exchange)
        requests.check_model(body, self.settings.model)
        prompt = body.get("prompt")
        tokens = requests.chat_prompt(body, self._tokenizer) if "messages" in body else self._tokenizer.encode(str(prompt or ""))
        shown = [self._tokenizer.piece(token) for token in tokens] if body.get("return_token_strs") else None
        reply(exchange, {"count": len(tokens), "max_model_len": self.settings.core.max_model_len, "tokens": tokens, "token_strs": shown})

    def _detokenize(self, exchange: Exchange) -> None:
        body = self._body(exchange)
        requests.check_model(body, self.settings.model)
        reply(exchange, {"prompt": self._tokenizer.decode(requests.token_list(body))})

    def _load(self, exchange: Exchange) -> None:
        reply(exchange, {"server_load": self.driver.answering if self.settings.server_load_tracking else 0})

    def _models(self, exchange: Exchange) -> None:
        created = now_seconds()
        allowed = {"allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True, "allow_search_indices": False}
        allowed |= {"allow_view": True, "allow_fine_tuning": False}
        permission = {"id": f"modelperm-{os.urandom(8).hex()}", "object": "model_permission", "created": created, **allowed}
        permission |= {"organization": "*", "group": None, "is_blocking": False}
        card = {"id": self.settings.model, "object": "model", "created": created, "owned_by": "vllm"}
        card |= {"root": self.settings.model_root or self.settings.model, "parent": None}
        card |= {"max_model_len": self.settings.core.max_model_len, "permission": [permission]}
        reply(exchange, {"object": "list", "data": [card]})

    def _event_sources(self, exchange: Exchange) -> None:
        events = self._events_config()
        reply(exchange, {"0": events} if events else {})

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
            "kv_transfer_config": self._transfer_config(),
            "kv_events_config": self._events_config(),
        }
        if exchange.query.get("config_format") != "json":
            config = {name: str(value) for name, value in config.items()}
        reply(exchange, {"vllm_config": config, "vllm_env": {}, "system_env": {}})

    def _transfer_config(self) -> dict[str, object] | None:
        if self._connector is None:
            return None
        role = _KV_ROLES[self.settings.role]
        return {"kv_connector": "NixlConnector", "engine_id": self._connector.engine_id, "kv_role": role, "kv_buffer_device": "cuda"}

    def _pause(self, exchange: Exchange) -> None:
        """Running requests are aborted unless `mode=keep`; new ones wait for /resume."""
        if exchange.query.get("mode", "abort") == "abort":
            self.driver.abort_all()
        self.driver.pause()
        reply(exchange, {"status": "paused"})

    def _resume(self, exchange: Exchange) -> None:
        self.driver.resume()
        reply(exchange, {"status": "resumed"})
