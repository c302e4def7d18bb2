"""SGLang's HTTP interface: which path answers what. Bodies of completions are in `bodies`."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any
from urllib.parse import urlsplit

import msgspec

from backend.simulate.engine.answers import Answer, Writer
from backend.simulate.engine.driver import Driver
from backend.simulate.engine.http import Exchange
from backend.simulate.engine.publisher import Publisher
from backend.simulate.engine.requests import Asked, chat_prompt, sequence_of
from backend.simulate.engine.routing import ANY, GET, POST, Router, reply
from backend.simulate.engine.settings import EngineSettings, now_seconds
from backend.simulate.engine.sglang import requests
from backend.simulate.engine.sglang.bodies import GenerateWriter, Head, OpenAiWriter, failed
from backend.simulate.engine.sglang.bootstrap import BootstrapConnector
from backend.simulate.engine.tokenizer import Tokenizer

# A health check generates a token, and looks once a second whether it came.
_HEALTH_S = 1.0
_TEXT = b"text/plain; charset=utf-8"
_MODES = {"both": "null", "prefill": "prefill", "decode": "decode"}


class SglangRoutes(Router):
    """One SGLang's interface."""

    def __init__(
        self,
        settings: EngineSettings,
        driver: Driver,
        tokenizer: Tokenizer,
        publisher: Publisher | None,
        connector: BootstrapConnector | None,
    ) -> None:
        super().__init__(driver)
        self.settings = settings
        self._tokenizer = tokenizer
        self._publisher = publisher
        self._connector = connector
        self.table |= {
            "/health": (GET, self._health),
            "/health_generate": (GET, self._health),
            "/ready": (GET, lambda exchange: exchange.reply(503 if self.draining else 200)),
            "/ping": (ANY, lambda exchange: exchange.reply(200)),
            "/v1/models": (GET, self._models),
            "/model_info": (GET, self._model_info),
            "/get_model_info": (GET, self._model_info),
            "/server_info": (GET, self._server_info),
            "/get_server_info": (GET, self._server_info),
            "/v1/loads": (GET, self._loads),
            "/v1/completions": (POST, lambda exchange: self._complete(exchange, chat=False)),
            "/v1/chat/completions": (POST, lambda exchange: self._complete(exchange, chat=True)),
            "/generate": (("POST", "PUT"), self._generate),
            "/tokenize": (POST, self._tokenize),
            "/v1/tokenize": (POST, self._tokenize),
            "/detokenize": (POST, self._detokenize),
            "/v1/detokenize": (POST, self._detokenize),
            "/flush_cache": (ANY, self._flush),
            "/abort_request": (POST, self._abort),
            "/pause_generation": (POST, self._pause),
            "/continue_generation": (POST, self._continue),
        }

    def internal_error(self) -> bytes:
        return failed("Internal server error")[1]

    def _complete(self, exchange: Exchange, *, chat: bool) -> None:
        body = self._body(exchange)
        asked = requests.read_completion(body, chat=chat, tokenizer=self._tokenizer, max_model_len=self.settings.core.max_model_len)
        head = Head(_request_id(body), now_seconds(), str(body.get("model") or "default"))
        self._answer(exchange, body, asked, head, OpenAiWriter(head, asked, details=self.settings.prompt_tokens_details))

    def _generate(self, exchange: Exchange) -> None:
        body = self._body(exchange)
        asked = requests.read_generate(body, tokenizer=self._tokenizer, max_model_len=self.settings.core.max_model_len)
        head = Head(_request_id(body), now_seconds(), self.settings.model)
        self._answer(exchange, body, asked, head, GenerateWriter(head, stream=asked.stream))

    def _answer(self, exchange: Exchange, body: dict[str, Any], asked: Asked, head: Head, writer: Writer) -> None:
        sequence = sequence_of(asked, head.id, max_model_len=self.settings.core.max_model_len, now=time.monotonic())
        answer = Answer(exchange, sequence, writer, self._tokenizer)
        if self._connector is None:
            self.driver.submit(answer)
        else:
            self._connector.prepare(answer, requests.read_meeting(body))

    def _body(self, exchange: Exchange) -> dict[str, Any]:
        return requests.read_json(exchange.body, exchange.header(b"content-type"))

    def _health(self, exchange: Exchange) -> None:
        """503 while it drains; else 200, after the token that it generates to see whether it can."""
        if self.draining:
            exchange.reply(503)
        elif self.settings.health_generates:
            timer = asyncio.get_running_loop().call_later(_HEALTH_S, exchange.reply, 200)
            exchange.on_gone = timer.cancel
        else:
            exchange.reply(200)

    def _models(self, exchange: Exchange) -> None:
        card = {"id": self.settings.model, "object": "model", "created": now_seconds(), "owned_by": "sglang"}
        card |= {"root": self.settings.model, "parent": None, "max_model_len": self.settings.core.max_model_len}
        reply(exchange, {"object": "list", "data": [card]})

    def _model_info(self, exchange: Exchange) -> None:
        root = self.settings.model_root or self.settings.model
        shown = {"model_path": root, "tokenizer_path": root, "served_model_name": self.settings.model, "is_generation": True}
        reply(exchange, shown | {"preferred_sampling_params": None, "weight_version": "default"})

    def _server_info(self, exchange: Exchange) -> None:
        settings, core = self.settings, self.driver.core
        root = settings.model_root or settings.model
        bootstrap = self._connector.port if self._connector is not None and settings.role == "prefill" else settings.transfer_port
        reply(
            exchange,
            {
                "model_path": root,
                "tokenizer_path": root,
                "served_model_name": settings.model,
                "host": settings.host,
                "port": settings.port,
                "context_length": settings.core.max_model_len,
                "page_size": settings.core.block_size,
                "max_running_requests": settings.core.max_num_seqs,
                "chunked_prefill_size": settings.core.max_num_batched_tokens,
                "max_prefill_tokens": settings.core.max_num_batched_tokens,
                "disable_radix_cache": not core.settings.prefix_cache,
                "enable_metrics": True,
                "tp_size": 1,
                "dp_size": 1,
                "pp_size": 1,
                "disaggregation_mode": _MODES[settings.role],
                "disaggregation_bootstrap_port": bootstrap,
                "max_total_num_tokens": core.blocks.usable * settings.core.block_size,
                "internal_states": [{"effective_max_running_requests_per_dp": settings.core.max_num_seqs}],
                "kv_events": self._event_source(),
                "kv_events_config": self._event_config(),
                "startup_time": 0.0,
                "version": settings.version,
            },
        )

    def _event_source(self) -> dict[str, object] | None:
        """Where subscribers find KV events; a wildcard stays one, they put in the host that they know."""
        if self._publisher is None:
            return None
        endpoint = urlsplit(self._publisher.endpoint.replace("*", "wildcard", 1))
        host = "*" if endpoint.hostname == "wildcard" else endpoint.hostname
        shown: dict[str, object] = {"publisher": "zmq", "endpoint_host": host, "endpoint_port_base": endpoint.port}
        shown |= {"topic": self._publisher.settings.topic, "block_size": self.settings.core.block_size, "dp_size": 1}
        if self._publisher.replay_endpoint:
            shown["replay_endpoint_port_base"] = int(self._publisher.replay_endpoint.rpartition(":")[2])
        return shown

    def _event_config(self) -> str | None:
        """The command line's own words, all that versions before the block `kv_events` told."""
        if self._publisher is None:
            return None
        events = self._publisher.settings
        shown = {"publisher": "zmq", "endpoint": self._publisher.endpoint, "replay_endpoint": self._publisher.replay_endpoint}
        return msgspec.json.encode({**shown, "buffer_steps": events.buffer_steps, "topic": events.topic}).decode()

    def _loads(self, exchange: Exchange) -> None:
        core = self.driver.core
        size = self.settings.core.block_size
        load: dict[str, float] = {"dp_rank": 0, "num_running_reqs": len(core.running), "num_waiting_reqs": len(core.waiting)}
        tokens = {"num_used_tokens": core.blocks.used * size, "max_total_num_tokens": core.blocks.usable * size}
        load |= {**tokens, "token_usage": core.kv_usage, "max_running_requests": self.settings.core.max_num_seqs}
        reply(exchange, {"timestamp": time.time(), "version": self.settings.version, "loads": [load]})

    def _tokenize(self, exchange: Exchange) -> None:
        body = self._body(exchange)
        tokens = chat_prompt(body, self._tokenizer) if "messages" in body else self._tokenizer.encode(str(body.get("prompt") or ""))
        reply(exchange, {"tokens": tokens, "count": len(tokens), "max_model_len": self.settings.core.max_model_len})

    def _detokenize(self, exchange: Exchange) -> None:
        reply(exchange, {"text": self._tokenizer.decode(requests.read_tokens(self._body(exchange)))})

    def _flush(self, exchange: Exchange) -> None:
        """Nothing is flushed while requests are there."""
        flushed = self.driver.core.idle and self.driver.core.clear_cache()
        exchange.reply(200 if flushed else 400, b"Cache flushed.\n" if flushed else b"Requests are running or waiting.\n", _TEXT)

    def _abort(self, exchange: Exchange) -> None:
        """What the request has so far is its answer. A half of a pair is known by its room, and not aborted by its name."""
        body = self._body(exchange)
        if body.get("abort_all"):
            self.driver.abort_all()
        elif isinstance(body.get("rid"), str):
            self.driver.abort_all(body["rid"])
        exchange.reply(200)

    def _pause(self, exchange: Exchange) -> None:
        self.driver.pause()
        reply(exchange, {"status": "ok", "message": "Generation paused successfully."})

    def _continue(self, exchange: Exchange) -> None:
        self.driver.resume()
        reply(exchange, {"status": "ok", "message": "Generation continued successfully."})


def _request_id(body: dict[str, Any]) -> str:
    rid = body.get("rid")
    return rid if isinstance(rid, str) and rid else os.urandom(16).hex()
