"""Reads the bodies of OpenAI requests and refuses them as vLLM does: same checks, same order, same words, same status.

Fields that change nothing in a simulated answer (temperature, top_p, stop, tools, ...) are accepted; of those, only what vLLM
itself refuses is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from backend.simulate.engine.model import Sequence
from backend.simulate.engine.tokenizer import Message, Tokenizer, natural_length

Body = Mapping[str, Any]


class RequestRefused(Exception):
    """An answer with an OpenAI error body."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": status}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a completion request asks for, checked."""

    chat: bool
    prompt: list[int]
    max_tokens: int | None
    """None: the answer ends by itself."""
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    cache_salt: str | None
    session_id: str | None
    report_hits: bool
    transfer: Mapping[str, Any] | None = None
    """What it says about KV on another engine, as it came."""


def read_json(body: bytes, content_type: str) -> dict[str, Any]:
    """The JSON object of a body. Raises RequestRefused in the words of vLLM's validation."""
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise _invalid(["Unsupported Media Type: Only 'application/json' is allowed"], None)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _not_json(body) from None
    if not isinstance(value, dict):
        problem = {
            "type": "model_attributes_type",
            "loc": "body",
            "msg": "Input should be a valid dictionary or object to extract fields from",
        }
        raise _invalid([problem | {"input": value}], "body")
    return value


def check_model(body: Body, served: str) -> None:
    """Unknown models are 404, also where a stream was asked for."""
    model = body.get("model")
    if model is not None and model != served:
        raise RequestRefused(404, "NotFoundError", f"The model `{model}` does not exist. Valid aliases: {served}.", "model")


def read_completion(body: Body, *, chat: bool, tokenizer: Tokenizer, served: str, max_model_len: int, session: str) -> Asked:
    """Check a completion request and make its prompt. Raises RequestRefused."""
    _check_fields(body, ("messages",) if chat else ())
    options = body.get("stream_options") or {}
    stream = bool(body.get("stream"))
    if options and not stream:
        raise _bad("Stream options can only be defined when `stream=True`.", "stream_options")
    _check_sampling(body)
    check_model(body, served)
    name, limit = _limit(body, chat=chat)
    if limit is not None and limit > max_model_len:
        message = f"{name}={limit} cannot be greater than max_model_len={max_model_len}. Please request fewer output tokens."
        raise _valued(message, name, limit)
    prompt = chat_prompt(body, tokenizer) if chat else text_prompt(body, tokenizer)
    room = _room(body, len(prompt), max_model_len)
    xargs = body.get("vllm_xargs") or {}
    return Asked(
        chat=chat,
        prompt=prompt,
        max_tokens=None if limit is None else min(limit, room),
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        return_token_ids=bool(body.get("return_token_ids")),
        cache_salt=body.get("cache_salt"),
        session_id=session or body.get("session_id"),
        report_hits=isinstance(xargs, dict) and xargs.get("kv_cache_report_mode") == "full",
        transfer=body.get("kv_transfer_params"),
    )


def sequence_of(asked: Asked, request_id: str, *, max_model_len: int, now: float) -> Sequence:
    """The engine's side of a request; one without a limit ends by itself."""
    room = max_model_len - len(asked.prompt)
    limit = asked.max_tokens if asked.max_tokens is not None else min(room, natural_length(asked.prompt))
    return Sequence(
        request_id=request_id,
        tokens=asked.prompt,
        max_tokens=limit,
        arrived_at=now,
        limit_reason="stop" if asked.max_tokens is None and limit < room else "length",
        cache_salt=asked.cache_salt,
        session_id=asked.session_id,
        report_hits=asked.report_hits,
    )


def chat_prompt(body: Body, tokenizer: Tokenizer) -> list[int]:
    messages: list[Message] = body["messages"]
    return tokenizer.chat(messages, add_generation_prompt=bool(body.get("add_generation_prompt", True)))


def text_prompt(body: Body, tokenizer: Tokenizer) -> list[int]:
    """A prompt as text or token ids; a list of one of either is that one."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], list | str):
        if len(prompt) > 1:
            raise _bad("This simulated engine answers one prompt a request.", "prompt")
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return tokenizer.encode(prompt)
    if isinstance(prompt, list) and prompt:
        if not are_tokens(prompt):
            raise _invalid([_type_problem("prompt", "int_type", "Input should be a valid integer", prompt)], "body.prompt")
        return prompt
    raise _bad("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")


def token_list(body: Body) -> list[int]:
    """The `tokens` of a detokenize request."""
    tokens = body.get("tokens")
    if tokens is None:
        raise _invalid([_missing("tokens", body)], "body.tokens")
    if not isinstance(tokens, list) or not are_tokens(tokens):
        raise _invalid([_type_problem("tokens", "int_type", "Input should be a valid integer", tokens)], "body.tokens")
    return tokens


def are_tokens(values: list[Any]) -> bool:
    """Whether all are token ids; by set and extremes, because prompts have a hundred thousand of them."""
    return not values or (set(map(type, values)) == {int} and min(values) >= 0 and max(values) < 2**32)


def _limit(body: Body, *, chat: bool) -> tuple[str, int | None]:
    """The field that limits the answer, and its value."""
    if chat and body.get("max_completion_tokens") is not None:
        return "max_completion_tokens", body["max_completion_tokens"]
    value = body.get("max_tokens")
    # The completions API has had a default since before there was chat.
    return "max_tokens", 16 if value is None and not chat else value


_INTS = ("max_tokens", "max_completion_tokens", "min_tokens", "n", "seed")
_FLOATS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
_BOOLS = ("stream", "ignore_eos", "return_token_ids")


def _check_fields(body: Body, required: tuple[str, ...]) -> None:
    """Missing fields and wrong types, all of them in one answer."""
    problems: list[dict[str, Any]] = [_missing(name, body) for name in required if name not in body]
    problems += [
        _type_problem(name, "list_type", "Input should be a valid list", body[name])
        for name in required
        if name in body and not (isinstance(body[name], list) and all(isinstance(item, dict) for item in body[name]))
    ]
    for names, kinds, word in ((_INTS, (int,), "integer"), (_FLOATS, (int, float), "number"), (_BOOLS, (bool,), "boolean")):
        for name in names:
            value = body.get(name)
            if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
                problems.append(
                    _type_problem(name, f"{word[:3] if word == 'integer' else word}_type", f"Input should be a valid {word}", value)
                )
    for name, kind in (("stream_options", dict), ("cache_salt", str), ("session_id", str), ("kv_transfer_params", dict)):
        value = body.get(name)
        if value is not None and not isinstance(value, kind):
            word = "string" if kind is str else "dictionary"
            problems.append(_type_problem(name, f"{kind.__name__}_type", f"Input should be a valid {word}", value))
    if problems:
        raise _invalid(problems, str(problems[0]["loc"]))


def _check_sampling(body: Body) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        value = body.get(name)
        if value is not None and value < 1:
            raise _valued(f"max_tokens must be at least 1, got {value}.", "max_tokens", value)
    temperature = body.get("temperature")
    if temperature is not None and not 0 <= temperature <= 2:
        rule = "must be non-negative" if temperature < 0 else "must be in [0, 2]"
        raise _valued(f"temperature {rule}, got {float(temperature)}.", "temperature", float(temperature))
    top_p = body.get("top_p")
    if top_p is not None and not 0 < top_p <= 1:
        raise _valued(f"top_p must be in (0, 1], got {float(top_p)}.", "top_p", float(top_p))
    if (body.get("n") or 1) != 1:
        raise _bad("This simulated engine gives one choice a request.", "n")


def _room(body: Body, prompt: int, longest: int) -> int:
    """Tokens left for the answer; a larger limit is cut down to it without a word."""
    if prompt > longest:
        # Text is tokenized up to one token beyond what fits; token ids are counted to their end.
        text = not isinstance(body.get("prompt"), list)
        seen = longest + 1 if text else prompt
        raise _valued(
            f"This model's maximum context length is {longest} tokens. However, your prompt contains"
            f" {'at least ' if seen == longest + 1 else ''}{seen} input tokens, which exceeds this limit even without any output tokens."
            " Please reduce the length of the input prompt.",
            "input_tokens",
            seen,
        )
    if prompt == longest:
        raise _valued("max_tokens must be at least 1, got 0.", "max_tokens", 0)
    return longest - prompt


def _bad(message: str, param: str) -> RequestRefused:
    return RequestRefused(400, "BadRequestError", message, param)


def _valued(message: str, param: str, value: float) -> RequestRefused:
    return _bad(f"{message} (parameter={param}, value={value})", param)


def _invalid(problems: list[Any], param: str | None) -> RequestRefused:
    plural = "" if len(problems) == 1 else "s"
    lines = "\n".join(f"  {problem}" for problem in problems)
    return RequestRefused(400, "Bad Request", f"{len(problems)} validation error{plural}:\n{lines}", param)


def _not_json(body: bytes) -> RequestRefused:
    """The position and the words are those of the standard library's parser, which the real engine uses."""
    import json

    where, why = 0, "Invalid UTF-8"
    try:
        json.loads(body)
    except json.JSONDecodeError as error:
        where, why = error.pos, error.msg
    except UnicodeDecodeError as error:
        where = error.start
    problem = {
        "type": "json_invalid",
        "loc": f"body.{where}",
        "msg": "JSON decode error",
        "input": "<dict of 0 items>",
        "ctx": {"error": why},
    }
    return _invalid([problem], f"body.{where}")


def _missing(name: str, body: Body) -> dict[str, Any]:
    return {"type": "missing", "loc": f"body.{name}", "msg": "Field required", "input": f"<dict of {len(body)} items>"}


def _type_problem(name: str, kind: str, message: str, value: object) -> dict[str, Any]:
    shown = value
    if isinstance(value, dict | list):
        shown = f"<{type(value).__name__} of {len(value)} items>"
    return {"type": kind, "loc": f"body.{name}", "msg": message, "input": shown}
