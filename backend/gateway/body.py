"""What a request asks for: the routed fields of its JSON body, checked; the body itself is passed on byte for byte.

Knows the API paths and AIBrix's rules for each (an absent prompt and a null content are fine, `stream: "yes"` is not). Never
tokenizes, never looks at the fleet.

A prompt of token ids is most of its body, and a parser would walk all its digits only to skip them: it is cut out before the rest is
parsed, and read once, when it is matched.
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


class _Cut(msgspec.Struct, gc=False):
    """A completion whose prompt was cut out."""

    model: str = ""
    prompt: int = 0
    stream: bool | None = None


class Asked(msgspec.Struct, gc=False):
    """The routed fields. At most one of `ids` and `text_json` is set; neither: nothing to match a prefix with."""

    model: str
    stream: bool
    ids: tuple[int, int] | None = None
    """Where in the body the prompt stands as a JSON array of token ids: from, to. What is between the brackets was not looked at."""
    text_json: msgspec.Raw | None = None
    """The prompt as a JSON string; None for a chat, whose whole body decides its tokens."""
    chat: bool = False
    batch: bool = False
    """Several prompts at once: the engine reports one hit for all of them, so there is nothing to compare a promise with."""


_KEY = b'"prompt":'
_BRACKET, _SPACE, _DIGIT_0, _DIGIT_9 = b"[ 09"
_MARK = -4611686018427387903
_MARK_JSON = b"%d" % _MARK
_completions = msgspec.json.Decoder(_Completions)
_cut = msgspec.json.Decoder(_Cut)
_chat = msgspec.json.Decoder(_Chat)
_strings = msgspec.json.Decoder(list[msgspec.Raw])

KNOWN_RESTS, KNOWN_REST_BYTES = 1024, 512
_known_rests: dict[bytes, _Cut] = {}
"""What stands around the prompt is the same with most requests of one application."""


def read(api: Api, body: bytes) -> Asked:
    """Raises Problem (400) for a body that is not what `api` asks for."""
    if not body:
        raise answers.invalid_body("request body is empty")
    try:
        if api == "completions":
            return _read_cut(body) or _read_completions(body)
        chat = _chat.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise _explain(body) from None
    except RecursionError:
        raise answers.invalid_body("error processing request body: it is nested too deeply") from None
    if not chat.messages:
        raise answers.invalid_body("no messages in the request body", "messages")
    return Asked(chat.model, bool(chat.stream), chat=True)


def _read_cut(body: bytes) -> Asked | None:
    """The quick way for a list of token ids; None where it cannot be sure. In place of the prompt a number is parsed: when that is what
    the field has, and it stands nowhere else, what was cut out was the field's whole value."""
    start = body.find(_KEY) + len(_KEY)
    if start < len(_KEY) or start + 3 > len(body):
        return None
    if body[start] == _SPACE:
        start += 1
    if body[start] != _BRACKET or not _DIGIT_0 <= body[start + 1] <= _DIGIT_9:
        return None
    end = body.find(b"]", start) + 1
    rest = body[:start] + _MARK_JSON + body[end:]
    asked = _known_rests.get(rest)
    if asked is None:
        try:
            asked = _cut.decode(rest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        if asked.prompt != _MARK or rest.count(_MARK_JSON) != 1:
            return None
        if len(rest) < KNOWN_REST_BYTES:
            if len(_known_rests) >= KNOWN_RESTS:
                _known_rests.clear()
            _known_rests[rest] = asked
    return Asked(asked.model, asked.stream is True, (start, end))


def _read_completions(body: bytes) -> Asked:
    asked = _completions.decode(body)
    model, stream, prompt = asked.model, asked.stream is True, asked.prompt
    start = bytes(memoryview(prompt)[:1])
    if start == b'"':
        return Asked(model, stream, text_json=prompt)
    if start == b"[":
        return _with_array(body, model, stream, prompt)
    if start in (b"", b"n"):
        return Asked(model, stream)
    raise answers.invalid_body(param="prompt")


def _with_array(body: bytes, model: str, stream: bool, prompt: msgspec.Raw) -> Asked:
    """Token ids, or a list of prompts: one alone is as good as itself."""
    first = bytes(memoryview(prompt)[1:64]).lstrip(b" \t\r\n")[:1]
    if first.isdigit() or first == b"]":
        return Asked(model, stream, _place(body, prompt))
    items = _strings.decode(prompt)
    if len(items) > 1 and first in (b"[", b'"'):
        return Asked(model, stream, batch=True)
    if first == b"[":
        return Asked(model, stream, _place(body, items[0]))
    if first == b'"':
        return Asked(model, stream, text_json=items[0])
    raise answers.invalid_body(param="prompt")


def _place(body: bytes, part: msgspec.Raw) -> tuple[int, int]:
    """Where `part` stands in `body`, or the same text before it: that says the same."""
    text = bytes(part)
    start = body.find(text)
    return start, start + len(text)


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
