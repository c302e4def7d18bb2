"""Text to token ids and back, chat messages to one prompt, and the next token of a simulated answer.

The built-in tokenizer needs no file: text is cut as most tokenizers do (a word with the space before it, a run of digits, marks,
or blanks), each piece into groups of at most three UTF-8 bytes, and the id of a group is its bytes as a number. It is reversible,
two texts with a common beginning have a common beginning of ids (but for the last piece), and three bytes a token is close to
what real vocabularies reach. Simulated words are one token each, also when a client sends them back in its next turn.

With `--tokenizer FILE` the `tokenizers` library reads a real one; then ids and counts are those of the real model.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from backend.core.errors import ConfigError
from backend.simulate.engine import model

Message = Mapping[str, Any]

# Ids 0..255 are kept for marks that no text contains; groups of one, two and three bytes follow.
_BEGIN, _END = 1, 2
_ROLES = {"user": 3, "assistant": 4, "system": 5, "tool": 6, "developer": 7}
_MARKS = {_BEGIN: "<s>", _END: "</s>", **{number: f"<|{role}|>" for role, number in _ROLES.items()}}
_FIRST = {1: 256, 2: 512, 3: 512 + 2**16}
_LIMIT = _FIRST[3] + 2**24
_PIECES = re.compile(r" ?[^\W\d_]+| ?\d+| ?[^\w\s]+|_+|\s+(?!\S)|\s+")
_WORD_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Tokenizer(Protocol):
    """What the server asks of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`; marks of the chat template have none."""

    def piece(self, token: int) -> str:
        """How one token is shown to people."""

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> list[int]: ...

    def sample(self, sequence: model.Sequence) -> int:
        """The next token of a simulated answer: the same for the same prompt and position."""


class GroupTokenizer:
    """The built-in one."""

    def encode(self, text: str) -> list[int]:
        return [_FIRST[len(group)] + int.from_bytes(group, "big") for piece in _PIECES.findall(text) for group in _groups(piece.encode())]

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(_bytes_of(token) for token in tokens).decode(errors="replace")

    def piece(self, token: int) -> str:
        return _MARKS.get(token) or _bytes_of(token).decode(errors="replace")

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> list[int]:
        tokens = [_BEGIN]
        for message in messages:
            tokens += [_ROLES.get(str(message.get("role")), _ROLES["user"]), *self.encode(content_text(message)), _END]
        return [*tokens, _ROLES["assistant"]] if add_generation_prompt else tokens

    def sample(self, sequence: model.Sequence) -> int:
        number = draw(sequence)
        word = f" {_WORD_LETTERS[number % 26]}{_WORD_LETTERS[number // 26 % 26]}"
        return _FIRST[3] + int.from_bytes(word.encode(), "big")


class FileTokenizer:
    """A `tokenizer.json` read by the `tokenizers` library, with the chat template that lies beside it."""

    def __init__(self, file: Path) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise ConfigError("needs the package `tokenizers`", field="--tokenizer", fix="pip install 'fleet-workbench[test]'") from error
        if not file.is_file():
            raise ConfigError("no such file", file=str(file), field="--tokenizer")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        self._size = int(self._tokenizer.get_vocab_size())
        self._template = _ChatTemplate(file.parent)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens)))

    def piece(self, token: int) -> str:
        return str(self._tokenizer.id_to_token(token) or "")

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> list[int]:
        text = self._template.render(messages, add_generation_prompt=add_generation_prompt)
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def sample(self, sequence: model.Sequence) -> int:
        first = min(256, self._size // 2)  # beyond single bytes, so that most answers are valid UTF-8
        return first + draw(sequence) % (self._size - first)


class _ChatTemplate:
    """`chat_template.jinja` and the marks of `tokenizer_config.json`."""

    def __init__(self, folder: Path) -> None:
        import json

        import jinja2.sandbox

        file = folder / "chat_template.jinja"
        if not file.is_file():
            raise ConfigError("no such file", file=str(file), field="--tokenizer", fix="Chat needs the model's template beside it.")
        marks = folder / "tokenizer_config.json"
        config = json.loads(marks.read_text()) if marks.is_file() else {}
        self._marks = {name: config.get(name, "") for name in ("bos_token", "eos_token")}
        self._template = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(file.read_text())

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        shown = [{**message, "content": content_text(message)} for message in messages]
        return self._template.render(messages=shown, add_generation_prompt=add_generation_prompt, **self._marks)


class Detokenizer:
    """Text of a growing answer, piece by piece: a token that ends inside a character has no text until the rest is there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        self._pending.append(token)
        text = self._tokenizer.decode(self._pending)
        if text.endswith("\ufffd") and len(self._pending) < 8:
            return ""
        self._pending.clear()
        return text


def load(file: Path | None) -> Tokenizer:
    return GroupTokenizer() if file is None else FileTokenizer(file)


def content_text(message: Message) -> str:
    """The text of a message whose content is a string or a list of parts; parts other than text have none."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, Iterable):
        return "\n".join(part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str))
    return ""


def draw(sequence: model.Sequence) -> int:
    """A number from the prompt and the position in the answer."""
    if sequence.seed < 0:
        sequence.seed = _fingerprint(sequence.tokens[: sequence.prompt_tokens])
    return zlib.crc32(sequence.generated.to_bytes(4, "big"), sequence.seed)


def natural_length(prompt: Sequence[int]) -> int:
    """Tokens of an answer that nobody limits: 32 to 287, the same for the same prompt."""
    return 32 + _fingerprint(prompt) % 256


def _fingerprint(prompt: Sequence[int]) -> int:
    """A number that the end and the length of a prompt decide."""
    return zlib.crc32(array("Q", prompt[-64:]).tobytes(), len(prompt))


def _groups(piece: bytes) -> Iterable[bytes]:
    return (piece[at : at + 3] for at in range(0, len(piece), 3))


def _bytes_of(token: int) -> bytes:
    if token < _FIRST[1] or token >= _LIMIT:
        return b""
    length = 1 if token < _FIRST[2] else 2 if token < _FIRST[3] else 3
    return (token - _FIRST[length]).to_bytes(length, "big")
