"""Reads the bodies of SGLang's requests (OpenAI's two, and its own /generate) and refuses them with its error body.

Any model name is accepted, as SGLang does. Of the many sampling parameters those count that a simulated answer depends on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from backend.simulate.engine.requests import Asked, Body, RequestRefused, are_tokens, chat_prompt
from backend.simulate.engine.tokenizer import Tokenizer

_GENERATE_LIMIT = 128
_INTS = ("max_tokens", "max_completion_tokens", "max_new_tokens", "n", "bootstrap_room")
_FLOATS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
_NO_ROOM = "Invalid request: Disaggregated request received without bootstrap room id."


class SglangRefused(RequestRefused):
    """An answer with SGLang's error body, which is flat."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        Exception.__init__(self, message)
        self.status = status
        self.body = msgspec.json.encode({"object": "error", "message": message, "type": kind, "param": None, "code": status})


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the two halves of a pair find each other."""

    host: str
    port: int | None
    room: int


def bad(message: str) -> SglangRefused:
    return SglangRefused(400, "BadRequestError", message)


def invalid(message: str) -> SglangRefused:
    """What fails before SGLang looks at it itself."""
    return SglangRefused(400, "Bad Request", message)


def read_json(body: bytes, content_type: str) -> dict[str, Any]:
    """The JSON object of a body. Raises SglangRefused."""
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise invalid("Unsupported Media Type: Only 'application/json' is allowed")
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"1 validation error: JSON decode error: {error}") from None
    if not isinstance(value, dict):
        raise invalid("1 validation error: Input should be a valid dictionary or object to extract fields from")
    return value


def read_completion(body: Body, *, chat: bool, tokenizer: Tokenizer, max_model_len: int) -> Asked:
    """One of OpenAI's requests. Raises SglangRefused."""
    _check_types(body)
    if chat:
        messages = body.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise invalid("1 validation error: body.messages: Field required, a list of messages")
        if not messages:
            raise bad("Messages cannot be empty.")
        prompt = chat_prompt(body, tokenizer)
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
    else:
        prompt = _prompt(body.get("prompt"), "prompt", tokenizer)
        limit = body["max_tokens"] if body.get("max_tokens") is not None else 16
    options = body.get("stream_options") or {}
    return _asked(
        body,
        prompt,
        limit,
        chat=chat,
        max_model_len=max_model_len,
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
    )


def read_generate(body: Body, *, tokenizer: Tokenizer, max_model_len: int) -> Asked:
    """SGLang's own request: `text` or `input_ids`, and `sampling_params`. Raises SglangRefused."""
    sampling = body["sampling_params"] if body.get("sampling_params") is not None else {}
    if not isinstance(sampling, dict):
        raise invalid("1 validation error: body.sampling_params: Input should be a valid dictionary")
    _check_types(body)
    _check_types(sampling)
    if (body.get("text") is None) == (body.get("input_ids") is None):
        raise bad("Either text or input_ids should be provided.")
    name = "text" if body.get("text") is not None else "input_ids"
    limit = sampling.get("max_new_tokens", _GENERATE_LIMIT)
    prompt = _prompt(body[name], name, tokenizer)
    return _asked(body, prompt, limit, chat=False, max_model_len=max_model_len, include_usage=False, continuous_usage=False)


def read_tokens(body: Body) -> list[int]:
    """The `tokens` of a detokenize request. Raises SglangRefused."""
    tokens = body.get("tokens")
    if not isinstance(tokens, list) or not are_tokens(tokens):
        raise invalid("1 validation error: body.tokens: Input should be a list of integers")
    return tokens


def read_meeting(body: Body) -> Meeting:
    """Where a request's other half is; an engine that is one half of a pair refuses what does not say it. Raises SglangRefused."""
    host, port, room = (_scalar(body.get(name)) for name in ("bootstrap_host", "bootstrap_port", "bootstrap_room"))
    if room is None:
        raise bad(_NO_ROOM)
    if not isinstance(room, int) or not isinstance(host, str | None) or not isinstance(port, int | None):
        raise invalid("1 validation error: bootstrap_host is a name, bootstrap_port and bootstrap_room are numbers")
    return Meeting(host or "", port, room)


def _scalar(value: Any) -> Any:
    """A list of one stands for it; batches are refused elsewhere."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _asked(
    body: Body, prompt: list[int], limit: int | None, *, chat: bool, max_model_len: int, include_usage: bool, continuous_usage: bool
) -> Asked:
    if len(prompt) >= max_model_len:
        raise bad(f"The input ({len(prompt)} tokens) is longer than the model's context length ({max_model_len} tokens).")
    if limit is not None and limit < 1:
        raise invalid("1 validation error: max_tokens must be positive")
    if limit is not None and len(prompt) + limit > max_model_len:
        raise bad(
            f"Requested token count exceeds the model's maximum context length of {max_model_len} tokens. You requested a total of"
            f" {len(prompt) + limit} tokens: {len(prompt)} tokens from the input messages and {limit} tokens for the completion."
        )
    if (body.get("n") or 1) != 1:
        raise bad("This simulated engine gives one choice a request.")
    return Asked(
        chat=chat,
        prompt=prompt,
        max_tokens=limit,
        stream=bool(body.get("stream")),
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        return_token_ids=bool(body.get("return_token_ids")),
        cache_salt=body.get("cache_salt"),
        session_id=body.get("session_id"),
        report_hits=False,
    )


def _prompt(value: Any, name: str, tokenizer: Tokenizer) -> list[int]:
    """Text or token ids; a list of one of either is that one."""
    if isinstance(value, list) and value and isinstance(value[0], list | str):
        if len(value) > 1:
            raise bad("This simulated engine answers one prompt a request.")
        value = value[0]
    if isinstance(value, str):
        if not value:
            raise bad("Prompt cannot be empty.")
        return tokenizer.encode(value)
    if not isinstance(value, list) or not are_tokens(value):
        raise invalid(f"1 validation error: body.{name}: Input should be a valid string or a list of integers")
    if not value:
        raise bad("Prompt cannot be empty.")
    return value


def _check_types(fields: Mapping[str, Any]) -> None:
    for names, kinds, word in ((_INTS, int, "integer"), (_FLOATS, (int, float), "number")):
        for name in names:
            value = _scalar(fields.get(name))
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
                raise invalid(f"1 validation error: body.{name}: Input should be a valid {word}")
    for name, kind in (("stream", bool), ("stream_options", dict), ("cache_salt", str), ("session_id", str)):
        value = fields.get(name)
        if value is not None and not isinstance(value, kind):
            raise invalid(f"1 validation error: body.{name}: Input should be a valid {kind.__name__}")
    temperature = fields.get("temperature")
    if temperature is not None and temperature < 0:
        raise bad(f"temperature must be non-negative, got {temperature}.")
    top_p = fields.get("top_p")
    if top_p is not None and not 0 < top_p <= 1:
        raise bad(f"top_p must be in (0, 1], got {top_p}.")
