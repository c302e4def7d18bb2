"""What a request asks for: the routed fields of its JSON body, checked; the body itself is passed on byte for byte.

Knows the API paths and AIBrix's rules for each (an absent prompt and a null content are fine, `stream: "yes"` is not). Never
tokenizes, never looks at the fleet.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from backend.gateway import answers

Api = Literal["chat", "completions", "models", "metrics", "healthz"]

PATHS: dict[bytes, Api] = {
    b"/v1/chat/completions": "chat",
    b"/v1/completions": "completions",
    b"/v1/models": "models",
    b"/metrics": "metrics",
    b"/healthz": "healthz",
}


class _Completions(msgspec.Struct, gc=False):
    model: str = ""
    prompt: msgspec.Raw = msgspec.Raw(b"")
    stream: bool | None = None


class _Chat(msgspec.Struct, gc=False):
    model: str = ""
    messages: list[msgspec.Raw] | None = None
    stream: bool | None = None


class Asked(msgspec.Struct, gc=False):
    """The routed fields. At most one of `token_json` and `text_json` is set; both empty: nothing to match a prefix with."""

    model: str
    stream: bool
    token_json: msgspec.Raw | None = None
    """The prompt as it stands in the body, a JSON array of token ids."""
    text_json: msgspec.Raw | None = None
    """The prompt as a JSON string; None for a chat, whose whole body decides its tokens."""
    chat: bool = False
    batch: bool = False
    """Several prompts at once: the engine reports one hit for all of them, so there is nothing to compare a promise with."""


_BRACKET, _DIGIT_0, _DIGIT_9 = b"[09"
_completions = msgspec.json.Decoder(_Completions)
_chat = msgspec.json.Decoder(_Chat)
_strings = msgspec.json.Decoder(list[msgspec.Raw])


def read(api: Api, body: bytes) -> Asked:
    """Raises Problem (400) for a body that is not what `api` asks for."""
    if not body:
        raise answers.invalid_body("request body is empty")
    try:
        if api == "completions":
            asked = _completions.decode(body)
            start = memoryview(asked.prompt)
            if len(start) > 1 and start[0] == _BRACKET and _DIGIT_0 <= start[1] <= _DIGIT_9:
                return Asked(asked.model, asked.stream is True, asked.prompt)  # the usual case, without further looks
            return _with_prompt(asked.model, asked.stream is True, asked.prompt)
        chat = _chat.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise _explain(body) from None
    except RecursionError:
        raise answers.invalid_body("error processing request body: it is nested too deeply") from None
    if not chat.messages:
        raise answers.invalid_body("no messages in the request body", "messages")
    return Asked(chat.model, bool(chat.stream), chat=True)


def _with_prompt(model: str, stream: bool, prompt: msgspec.Raw) -> Asked:
    start = bytes(memoryview(prompt)[:1])
    if start == b'"':
        return Asked(model, stream, text_json=prompt)
    if start == b"[":
        return _with_array(model, stream, prompt)
    if start in (b"", b"n"):
        return Asked(model, stream)
    raise answers.invalid_body(param="prompt")


def _with_array(model: str, stream: bool, prompt: msgspec.Raw) -> Asked:
    """Token ids, or a list of prompts: one alone is as good as itself."""
    first = bytes(memoryview(prompt)[1:64]).lstrip(b" \t\r\n")[:1]
    if first.isdigit() or first == b"]":
        return Asked(model, stream, token_json=prompt)
    items = _strings.decode(prompt)
    if len(items) > 1 and first in (b"[", b'"'):
        return Asked(model, stream, batch=True)
    if first == b"[":
        return Asked(model, stream, token_json=items[0])
    if first == b'"':
        return Asked(model, stream, text_json=items[0])
    raise answers.invalid_body(param="prompt")


def _explain(body: bytes) -> answers.Problem:
    """AIBrix's one sentence, and the field when it can be told."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return answers.invalid_body("error processing request body: it is not JSON")
    if value is None:
        return answers.invalid_body("no messages in the request body", "messages")
    if not isinstance(value, dict):
        return answers.invalid_body("error processing request body: it is not a JSON object")
    for field, kinds in (("model", str), ("stream", bool), ("messages", list)):
        if field in value and value[field] is not None and not isinstance(value[field], kinds):
            return answers.invalid_body("error processing request body", field)
    return answers.invalid_body("error processing request body", "model" if value.get("model", "") is None else None)
